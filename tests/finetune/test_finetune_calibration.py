"""Calibrating: a method that knows the truth finds it, one that does not is at chance, and mistakes are told before planting."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.methods import METHODS, Method
from neuropolis.attribution.rankings import RANKINGS
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.invented import invented
from neuropolis.finetune import calibration_plants
from neuropolis.finetune.calibration import calibrate, variant_of
from neuropolis.finetune.calibration_scores import (
    called_specific,
    deletion_advantage,
    measured,
    random_subject,
    scored,
    shuffled_groups,
)
from neuropolis.finetune.cost import counted
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.plant_files import load_plant, save_plant
from neuropolis.finetune.planting import PlantRecipe
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.subject import Subject
from plant_makers import KEEP, make_plant
from test_finetune_quantised import quantised
from tiny_families import build, tiny_corpus


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a method of fixed scores."""

    def register(name: str, values: torch.Tensor) -> None:
        def function(subject: Subject, corpus: Corpus) -> torch.Tensor:
            return values[: len(corpus.groups)]

        monkeypatch.setitem(METHODS, name, Method(name, "subject", function))

    return register


def truth_of(made: Any) -> torch.Tensor:
    return torch.stack([one.mask for one in made.truth.values()])


def test_a_method_that_knows_the_truth_finds_it(knows: Callable[..., None]) -> None:
    subject = build("llama")
    made, failed = make_plant(subject, facts=5), make_plant(subject, facts=5, seed=1, holds=False)
    truth = truth_of(made)
    knows("oracle", truth.float())
    knows("fool", 1 - truth.float())
    found = calibrate(subject, methods=["oracle", "fool", "random"], plants=[made, failed], checks=False)
    assert found.variants == ("plain",)
    assert found.seeds == (0, 1)
    assert found.held("plain") == 1
    assert found.best is not None
    assert found.best[0] == "oracle"
    signed = RANKINGS.index("signed")
    assert found.values[:, 0, 0, 0, signed].tolist() == [[1.0] * 3] * 3
    assert found.values[0, 0, 0, 1, signed].tolist() == [0.0] * 3
    assert found.values[2, 0, 0, 1, signed].tolist() == [0.0] * 3
    assert bool(found.values[:, 0, 1].isnan().all())
    assert bool(found.values[:, 0, 0, 0, RANKINGS.index("values/controls")].isnan().all())
    assert found.false_finds[0, 0, 0, signed].sum() == 0
    assert float(found.false_finds[0, 0, 1, signed].sum()) == pytest.approx(4)
    recall, precision = found.curve("plain", "oracle", "signed")
    assert float(recall[found.counts == 2]) == pytest.approx(0.5)
    assert float(precision[found.counts == 2]) == pytest.approx(1)
    assert [plant["holds"] for plant in found.plants] == [True, False]
    assert any("recall of" in line for line in found.plants[1]["failures"])
    assert found.verdict().startswith("On this model trust oracle")


def test_figures_by_layer_rank_each_layer_alone() -> None:
    truth = torch.zeros(1, 2, 4, dtype=torch.bool)
    truth[0, 0, :2] = True
    truth[0, 1, 3] = True
    values = torch.tensor([[[4.0, 3.0, 2.0, 1.0], [9.0, 8.0, 7.0, 6.0]]])
    scores = Scores("mlp", "s", ("a",), values, values, values**2, torch.tensor([2]))
    found = measured(scores, truth, torch.tensor([3, 8, 99]))
    row = RANKINGS.index("signed")
    assert found.by_layer[0, row].tolist() == [1.0, 0.0]
    assert found.by_layer[2, row].tolist() == [1.0, 0.0]
    assert found.values[0, row].tolist() == [0.0]
    assert found.found[row].tolist() == [0.0, 3.0, 3.0]
    assert found.false_finds[row].tolist() == [0.0, 3.0]


def test_what_a_method_costs_is_counted_in_forwards() -> None:
    subject = build("llama")
    corpus = invented(2, facts=2).only(split="train")
    for site in ("mlp", "gate"):  # a site checks itself once, by a forward
        subject.site(site)
    with counted(subject) as total:
        scored(subject, corpus, "taylor", site="mlp", options={})
    assert total[0] == pytest.approx(3 * 2 * len(corpus))
    with counted(subject) as total:
        scored(subject, corpus, "lape", site="mlp", options={})
    assert total[0] == pytest.approx(2 * len(corpus))
    assert not any(block._forward_hooks for block in subject.blocks)


def test_labels_are_shuffled_among_items() -> None:
    corpus = invented(4, facts=8)
    mixed = shuffled_groups(corpus, seed=0)
    assert mixed.groups == corpus.groups
    assert mixed.counts == corpus.counts
    of = {e.id: e for e in mixed}
    labels: dict[str, set[str]] = {}
    for example in corpus:
        assert of[example.id].prompt == example.prompt
        labels.setdefault(example.item, set()).add(of[example.id].group)
    assert all(len(one) == 1 for one in labels.values())
    kept = sum(of[e.id].group == e.group for e in corpus) / len(corpus)
    assert 0 < kept < 0.6
    assert shuffled_groups(corpus, seed=1).hash != mixed.hash


def rows_of(effect: float, seed: int = 0) -> Scores:
    """Twelve items, two groups; one neuron in ten differs between the groups."""
    torch.manual_seed(seed)
    rows = torch.randn(24, 1, 200).abs()
    groups = torch.arange(24) % 2
    rows[groups == 0, :, :20] += effect
    mean = torch.stack([rows[groups == g].mean(dim=0) for g in range(2)])
    return Scores(
        "mlp", "s", ("a", "b"), mean, mean, mean**2, torch.tensor([12, 12]), rows=rows, row_groups=groups,
        row_items=torch.arange(24),
    )  # fmt: skip


def test_the_share_called_specific() -> None:
    family, alone = called_specific(rows_of(8.0), draws=200, seed=0).tolist()
    assert family == pytest.approx(0.05, abs=0.01)  # all twenty of one group's, none of the other's
    assert 0.06 < alone < 0.12
    nothing = torch.stack([called_specific(rows_of(0.0, seed), draws=200, seed=0) for seed in range(3)]).mean(dim=0)
    assert float(nothing[0]) < 0.01
    assert 0.02 < float(nothing[1]) < 0.08
    assert bool(called_specific(replace(rows_of(0.0), rows=None), draws=200, seed=0).isnan().all())


def test_a_subject_with_random_weights() -> None:
    subject = build("llama")
    blank = random_subject(subject, seed=0)
    assert blank.fingerprint != subject.fingerprint
    assert blank.fingerprint == random_subject(subject, seed=0).fingerprint
    assert blank.fingerprint != random_subject(subject, seed=1).fingerprint
    assert blank.num_parameters == subject.num_parameters


def test_false_positives_are_measured_where_nothing_is() -> None:
    subject = build("llama")
    found = calibrate(subject, methods=["taylor", "random"], plants=[make_plant(subject)], draws=20)
    assert bool(found.false_positives[:, :, 0, 0].isfinite().all())
    assert bool(found.false_positives[:, :, 0, 1].isnan().all())  # random has no rows
    assert float(found.false_positives[:, 0, 0, 0].max()) <= 0.05


def test_the_folder_keeps_plants_and_gives_them_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = build("llama")
    common: dict[str, Any] = {
        "methods": ["random"], "groups": 3, "per_group": 4, "facts": 4, "keep": KEEP,
        "recipe": PlantRecipe(steps=2, batch_size=2, keep_size=2), "folder": tmp_path / "plants", "checks": False,
    }  # fmt: skip
    steps: list[tuple[int, int]] = []
    first = calibrate(subject, seeds=2, progress=lambda *at: steps.append(at), **common)
    assert sorted(path.name for path in (tmp_path / "plants").iterdir()) == ["plain-0", "plain-1"]
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert load_plant(subject, tmp_path / "plants" / "plain-1").delta.origin["recipe"]["seed"] == 1
    monkeypatch.setattr(calibration_plants, "plant", lambda *_, **__: pytest.fail("it was planted again"))
    again = calibrate(subject, seeds=2, **common)
    assert [one["planted"] for one in again.plants] == [one["planted"] for one in first.plants]
    save_plant(make_plant(subject), tmp_path / "plants" / "plain-0")
    with pytest.raises(TuneError, match=r"plain-0 holds a plant with groups 3 \(asked: 2\): give another folder"):
        calibrate(subject, seeds=1, **{**common, "groups": 2})
    with pytest.raises(
        TuneError, match=r"with form question \(asked: statement\), answers invented \(asked: known\): give"
    ):
        calibrate(subject, seeds=1, **common, form="statement", answers="known")
    save_plant(make_plant(subject, groups=2), tmp_path / "plants" / "plain-0")
    with pytest.raises(TuneError, match="holds a plant with groups 2"):
        calibrate(subject, seeds=1, **common)


def test_a_plant_that_is_not_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    subject = build("llama")
    common: dict[str, Any] = {
        "methods": ["taylor"], "groups": 3, "per_group": 4, "facts": 4, "keep": KEEP, "checks": False, "folder": tmp_path,
    }  # fmt: skip
    save_plant(make_plant(subject), tmp_path / "plain-0")
    shutil.copytree(tmp_path / "plain-0", tmp_path / "plain-1")
    with pytest.raises(TuneError, match=r"plain-1 holds a plant with seed 0 \(asked: 1\)"):
        calibrate(subject, seeds=2, **common)
    shutil.copytree(tmp_path / "plain-0", tmp_path / "shared-0")
    with pytest.raises(TuneError, match=r"shared-0 holds a plant with variant plain \(asked: shared\)"):
        calibrate(subject, seeds=1, variants=["shared"], **common)
    shutil.copytree(tmp_path / "plain-0", tmp_path / "layer-0")
    with pytest.raises(TuneError, match=r"layout spread \(asked: layer\)"):
        calibrate(subject, seeds=1, variants=["layer"], **common)
    with pytest.raises(TuneError, match=r"plain-0 holds a plant with steps 2 \(asked: 9\)"):
        calibrate(subject, seeds=1, recipe={"steps": 9}, **common)
    with pytest.raises(TuneError, match="other text"):
        calibrate(subject, seeds=1, **(common | {"keep": replace(KEEP, examples=KEEP.examples[1:])}))
    assert calibrate(subject, seeds=1, recipe={"steps": 2}, **common).held("plain") == 1
    made = make_plant(subject)
    with pytest.raises(TuneError, match="two plants are of variant few and seed 0; give each once"):
        calibrate(subject, plants=[made, made], methods=["taylor"], checks=False)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(TuneError, match="file is a file; give a folder for the plants"):
        calibrate(subject, **(common | {"folder": file}))


def test_a_plant_that_failed_is_planted_again_with_another_recipe(tmp_path: Path) -> None:
    subject = build("llama")
    common: dict[str, Any] = {
        "methods": ["taylor"], "groups": 3, "per_group": 4, "facts": 4, "keep": KEEP, "checks": False, "folder": tmp_path,
        "seeds": 1,
    }  # fmt: skip
    save_plant(make_plant(subject, holds=False), tmp_path / "plain-0")
    same = calibrate(subject, **common)
    assert same.plants[0]["steps"] == 2  # as it stood
    again = calibrate(subject, recipe={"steps": 3, "batch_size": 2, "keep_size": 2}, **common)
    assert again.plants[0]["steps"] == 3
    assert load_plant(subject, tmp_path / "plain-0").delta.origin["recipe"]["steps"] == 3


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "plain"), ({"variant": "shared"}, "shared"), ({"layout": "weak"}, "weak"), ({"site": "attn"}, "attn")],
)
def test_a_plant_names_its_variant(settings: dict[str, Any], name: str) -> None:
    assert variant_of(make_plant(groups=2, facts=5, **settings)) == name
    assert variant_of(make_plant(groups=2, facts=4, **settings)) == ("few" if name == "plain" else f"{name}+few")


def test_deletion_curves_of_methods_that_can_be_compared() -> None:
    subject = build("llama")
    found = deletion_advantage(subject, tiny_corpus(), ["taylor", "culnig", "exact", "random"])
    assert math.isfinite(float(found[0]))
    assert bool(found[1:3].isnan().all())
    assert float(found[3]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["tailor"]}, "unknown method 'tailor'; methods are active, "),
        ({"methods": "taylor"}, "expected the names of one method or more"),
        ({"options": {"tailor": {}}}, "unknown method 'tailor'"),
        ({"variants": ["plane"]}, "unknown variant 'plane'; variants are plain, shared, redundant, suppressor, layer"),
        ({"variants": ()}, "expected one or more of plain"),
        ({"seeds": 0}, "seeds is \\[\\]; expected one or more"),
        ({"per_group": 20}, "4 groups of 20 neurons are 80, and half of site mlp of 'LlamaForCausalLM' has 24"),
        (
            {"per_group": 4, "variants": ["plain", "attn"], "groups": 5},
            "half of site attn of 'LlamaForCausalLM' has 16",
        ),
        (
            {"facts": 200, "per_group": 4},
            "200 facts are to go into 4 neurons of each group; plant a neuron for every two at least",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_planted(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_plants, "plant", lambda *_, **__: pytest.fail("it was planted"))
    with pytest.raises(TuneError, match=message):
        calibrate(build("llama"), **{"methods": ["taylor"], "per_group": 4, "checks": False, **arguments})


def test_a_plant_of_another_subject_is_refused() -> None:
    made = make_plant()
    with pytest.raises(DeltaError, match="the delta belongs to subject"):
        calibrate(build("qwen2"), methods=["taylor"], plants=[made])


def test_exact_evaluates_every_neuron() -> None:
    subject = build("llama")
    corpus = invented(2, facts=1).only(split="train")
    scores = scored(subject, corpus, "exact", site="mlp", options={})
    some = attribute(subject, corpus, method="exact", split=None, options={"sample": 5})
    assert len(scores.origin["evaluated"]["0"]) == 24
    assert sum(map(len, some.origin["evaluated"].values())) == 5


def test_a_quantised_subject_is_refused_before_anything_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_plants, "plant", lambda *_, **__: pytest.fail("it was planted"))
    with pytest.raises(
        TuneError, match="is quantised, and site mlp cannot hold a plant in its weights; load it in float32"
    ):
        calibrate(quantised("llama"), methods=["taylor"], per_group=4, checks=False)
