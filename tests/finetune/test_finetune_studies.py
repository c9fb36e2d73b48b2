from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.selection import select
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.location import Location
from neuropolis.finetune.studies import (
    chance_by_layer,
    chance_jaccard,
    jaccard_by_layer,
    jaccard_index,
    mixed_set,
    overlap_ablation,
    proportion,
)
from neuropolis.finetune.sweep import Sweep, sweep_from_record
from neuropolis.neurons.atlas import Atlas, write_atlas
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, some, state
from torch import Tensor

TRAIN, TEST = ("aland", "borland"), ("dor",)


def capitals(subject: Subject, corpus: Corpus) -> Tensor:
    """Right for capitals and, once the subject was changed, for food of the second group too."""
    changed = float(subject.model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().sum())
    return torch.tensor([e.tags["item"] == "capital" or (e.group == "borland" and changed != ORIGINAL) for e in corpus])


ORIGINAL = float(build("llama").model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().sum())


def run(study: Any, corpus: Corpus, subject: Subject | None = None, **changed: Any) -> Sweep:
    arguments: dict[str, Any] = {
        "train_on": TRAIN, "test_on": TEST, "accuracy": capitals, "seeds": (0, 1), "steps": 1, "batch_size": 2,
        "lr": 0.01,
    }  # fmt: skip
    return study(subject or build("llama"), corpus, **(arguments | changed))


def test_proportion_tunes_larger_and_larger_sets(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    ticks: list[tuple[int, int]] = []
    found = run(proportion, corpus, subject, sets="mean", progress=lambda *tick: ticks.append(tick))
    assert same_bits(state(subject), before)
    assert found.sizes.tolist() == [[n, n] for n in (5, 14, 24, 34, 48)]
    assert found.groups == ("aland", "borland", "dor")
    assert found.untouched.tolist() == [0.5, 0.5, 0.5]
    assert found.accuracy[-1].tolist() == [[0.5, 1.0, 0.5]] * 2
    assert found.mean(found.in_domain)[-1].tolist() == [0.75, 0.75]
    assert [float(bound[-1]) for bound in found.interval(found.out_of_domain)] == [0.5, 0.5, 0.5]
    assert found.jaccard[-1].tolist() == [1.0, 1.0]
    assert float(found.chance[-1]) == 1.0
    assert ticks[-1] == (10, 10)


def test_a_layers_share_is_of_its_neurons(corpus: Corpus) -> None:
    found = run(proportion, corpus, sets="mean", shares=(0.5, 1.0), location=Location(layers=(1,)))
    assert found.sizes[:, 0].tolist() == [12, 24]
    found = run(proportion, corpus, sets="mean", shares=(0.5,), location=Location(scope="layer"))
    assert found.sizes[:, 0].tolist() == [24]


def test_overlap_is_set_at_one_size(corpus: Corpus) -> None:
    found = run(overlap_ablation, corpus, shares=(0.25,), overlaps=(0.0, 0.5, 1.0))
    assert [setting["overlap"] for setting in found.settings] == ["natural", 0.0, 0.5, 1.0]
    assert found.sizes.unique().tolist() == [12]
    # of 12 and 12 neurons 0, 6 and 12 are shared
    assert found.jaccard[1:, 0].tolist() == pytest.approx([0, 6 / 18, 1])
    assert found.tested_sizes is not None
    assert found.tested_sizes.tolist() == [12] * 4
    assert 3 / 21 <= float(found.chance[0]) < 0.5  # sets that gather in the same layers share more by chance


def test_a_share_is_the_union_of_the_groups_sets(corpus: Corpus) -> None:
    """Leng & Xiong's N_x: each group's own top share, together; a study may ask for the share by mean scores instead."""
    subject = build("llama")
    found = run(proportion, corpus, subject, shares=(0.25,), seeds=(0,))
    scores = Location().score(subject, corpus.part("auto", auto="train"))
    sets = select(scores, top=12)
    own = sets["aland"] | sets["borland"]
    assert found.sizes.tolist() == [[len(own)]]
    assert len(own) > 12
    assert found.tested_sizes is not None
    assert found.by_layer is not None
    assert found.tested_sizes.tolist() == [12]
    assert float(found.jaccard[0, 0]) == pytest.approx(jaccard_index(own, sets["dor"]))
    assert float(found.chance[0]) == pytest.approx(chance_by_layer(own, sets["dor"])[0])
    for layer in range(2):
        one, other = own.mask[layer], sets["dor"].mask[layer]
        assert float(found.by_layer[0, 0, layer]) == pytest.approx(float((one & other).sum() / (one | other).sum()))
        expected = chance_jaccard(int(one.sum()), int(other.sum()), 24)
        assert float(found.by_layer[0, 1, layer]) == pytest.approx(expected)
    assert found.origin["sets"] == "union"
    with pytest.raises(TuneError, match="unknown sets 'both'"):
        run(proportion, corpus, sets="both")


def test_chance_of_unions_by_hand() -> None:
    """Of 24 neurons in each of two layers: 6 and 12 in the first, which share 3 by chance, none and 4 in the second."""
    subject = build("llama")
    one = NeuronSet.from_indices(subject, indices={0: range(6)})
    other = NeuronSet.from_indices(subject, indices={0: range(12), 1: range(4)})
    total, layers = chance_by_layer(one, other)
    assert total == pytest.approx(3 / (22 - 3))
    assert layers.tolist() == pytest.approx([3 / 15, 0.0])
    assert jaccard_by_layer(one, other).tolist() == [0.5, 0.0]


def test_mixed_set_draws_from_both_sides() -> None:
    subject = build("llama")
    tested = some(subject)
    half = mixed_set(tested, 3 / 7, seed=0)
    assert (len(half), len(half & tested)) == (7, 3)
    assert half == mixed_set(tested, 3 / 7, seed=0) != mixed_set(tested, 3 / 7, seed=1)
    assert not bool(mixed_set(tested.layers([1]), 0.0, seed=0, layers=[1]).mask[0].any())
    with pytest.raises(TuneError, match="expected 0 to 1, got 2"):
        mixed_set(tested, 2, seed=0)
    with pytest.raises(TuneError, match="needs 41 neurons outside the tested groups' 41, there are 7"):
        mixed_set(~tested, 0.0, seed=0)


def test_jaccard_by_hand() -> None:
    subject = build("llama")
    one = NeuronSet.from_indices(subject, indices={0: [1, 2, 3]})
    other = NeuronSet.from_indices(subject, indices={0: [3, 4], 1: [1]})
    assert jaccard_index(one, other) == 1 / 5
    assert chance_jaccard(10, 10, 100) == pytest.approx(0.1 / 1.9)  # k / (2 - k) at k = 10 %


def test_the_record_brings_it_back(corpus: Corpus, tmp_path: Path) -> None:
    found = run(proportion, corpus, shares=(0.5,), seeds=(4,))
    with Atlas(write_atlas(tmp_path / "study.h5", [found.to_record()])) as atlas:
        back = atlas.get("sweep", "proportion")
    assert isinstance(back, Sweep)
    assert torch.equal(back.accuracy, found.accuracy)
    assert back.by_layer is not None
    assert found.by_layer is not None
    assert torch.equal(back.by_layer.nan_to_num(7), found.by_layer.nan_to_num(7))
    record = found.to_record()
    for name in ("by_layer", "tested_sizes"):  # as a study of an earlier version has it
        del record.arrays[name]  # pyright: ignore[reportIndexIssue]
    assert sweep_from_record(record).by_layer is None
    assert (back.settings, back.in_domain, back.seeds) == (({"share": 0.5},), TRAIN, (4,))


def test_what_cannot_be_studied_is_refused(corpus: Corpus) -> None:
    with pytest.raises(TuneError, match="group 'aland' is trained on and tested"):
        run(proportion, corpus, test_on=("aland",))
    for empty in ({"seeds": ()}, {"shares": ()}, {"seeds": (1, 1)}):
        with pytest.raises(TuneError, match=f"give at least one of {next(iter(empty))}, and each once"):
            run(proportion, corpus, **empty)
    with pytest.raises(TuneError, match="name at least one group"):
        run(overlap_ablation, corpus, test_on=())
    with pytest.raises(TuneError, match=r"above 0 and at most at 1, got 1.5"):
        run(proportion, corpus, shares=(1.5,))
    with pytest.raises(TuneError, match="needs 38 neurons outside"):
        run(overlap_ablation, corpus, shares=(0.8,), overlaps=(0.0,))


@pytest.mark.parametrize(
    ("group", "split", "message"),
    [
        ("dor", "test", r"group 'dor' has no rows to train on \(split train\): they give its neurons"),
        ("borland", "test", r"group 'borland' has no rows to train on"),
        ("dor", "train", r"group 'dor' has no rows to ask \(split test\); add some, or leave the group out"),
        ("aland", "train", "group 'aland' has no rows to ask"),
    ],
)
def test_a_group_without_rows_is_named(group: str, split: str, message: str, corpus: Corpus) -> None:
    rows = tuple(e for e in corpus if e.group != group or e.tags["split"] == split)
    for study in (proportion, overlap_ablation):
        with pytest.raises(TuneError, match=message):
            run(study, Corpus(rows))
