from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.location import Location
from neuropolis.finetune.studies import (
    chance_jaccard,
    jaccard_index,
    mixed_set,
    overlap_ablation,
    proportion,
)
from neuropolis.finetune.sweep import Sweep
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
    found = run(proportion, corpus, subject, progress=lambda *tick: ticks.append(tick))
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
    found = run(proportion, corpus, shares=(0.5, 1.0), location=Location(layers=(1,)))
    assert found.sizes[:, 0].tolist() == [12, 24]
    found = run(proportion, corpus, shares=(0.5,), location=Location(scope="layer"))
    assert found.sizes[:, 0].tolist() == [24]


def test_overlap_is_set_at_one_size(corpus: Corpus) -> None:
    found = run(overlap_ablation, corpus, shares=(0.25,), overlaps=(0.0, 0.5, 1.0))
    assert [setting["overlap"] for setting in found.settings] == ["natural", 0.0, 0.5, 1.0]
    assert found.sizes.unique().tolist() == [12]
    # of 12 and 12 neurons 0, 6 and 12 are shared
    assert found.jaccard[1:, 0].tolist() == pytest.approx([0, 6 / 18, 1])
    assert float(found.chance[0]) == pytest.approx(3 / 21)


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
    assert (back.settings, back.in_domain, back.seeds) == (({"share": 0.5},), TRAIN, (4,))


def test_what_cannot_be_studied_is_refused(corpus: Corpus) -> None:
    with pytest.raises(TuneError, match="group 'aland' is trained on and tested"):
        run(proportion, corpus, test_on=("aland",))
    with pytest.raises(TuneError, match="name at least one group"):
        run(overlap_ablation, corpus, test_on=())
    with pytest.raises(TuneError, match=r"above 0 and at most at 1, got 1.5"):
        run(proportion, corpus, shares=(1.5,))
    with pytest.raises(TuneError, match="needs 38 neurons outside"):
        run(overlap_ablation, corpus, shares=(0.8,), overlaps=(0.0,))
