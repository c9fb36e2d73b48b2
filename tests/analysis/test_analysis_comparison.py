"""Two studies side by side: what is the same is called the same, and what cannot be compared is said."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from neuropolis.analysis.comparison import compare_studies
from neuropolis.analysis.effects import Effects
from neuropolis.analysis.study import Study, load, save
from neuropolis.figures.comparison import page, words_of
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet

GROUPS = ("north", "south")
L, N, ITEMS = 4, 50, 12


def sets(subject: str, start: int = 0, width: int = N) -> dict[str, NeuronSet]:
    """Ten neurons a layer, from `start` on, and from ten later for the second group."""
    found = {}
    for place, group in enumerate(GROUPS):
        mask = torch.zeros((L, width), dtype=torch.bool)
        mask[:, start + 10 * place : start + 10 * place + 10] = True
        found[group] = NeuronSet("mlp", subject, mask, {"group": group})
    return found


def scores(subject: str, *, turned: bool = False) -> Scores:
    values = torch.arange(2.0 * L * N).reshape(2, L, N)
    return Scores("mlp", subject, GROUPS, -values if turned else values, values, values.square(), torch.tensor([9, 9]))


def effects(subject: str, lost: int, *, corpus: str = "c") -> Effects:
    """Every set loses the first `lost` items of its own group."""
    group_index = torch.arange(2).repeat_interleave(ITEMS)
    base = torch.ones(2 * ITEMS, dtype=torch.bool)
    ablated = torch.stack([~((group_index == g) & (torch.arange(2 * ITEMS) % ITEMS < lost)) for g in range(2)])
    return Effects(
        "mlp", subject, "zero", "choice", GROUPS, GROUPS, group_index, torch.arange(2 * ITEMS), base, ablated,
        torch.ones((2, 1, 2 * ITEMS), dtype=torch.bool), torch.tensor([40, 40]), {"corpus_hash": corpus},
    )  # fmt: skip


def study(folder: Path, name: str, *artefacts: object, subject: str = "one") -> Study:
    return load(save(folder / f"{name}.h5", *artefacts, subject={"fingerprint": subject, "name": f"model {subject}"}))


def test_a_study_beside_itself_is_the_same(tmp_path: Path) -> None:
    one = study(tmp_path, "a", sets("one"), scores("one"), effects("one", 6))
    found = compare_studies(one, one)
    assert [(pair.name, pair.shared, pair.jaccard) for pair in found.sets] == [("north", 40, 1.0), ("south", 40, 1.0)]
    assert all(pair.p < 1e-6 for pair in found.sets)
    assert found.ranks[0].correlation[:, 0, 1].tolist() == pytest.approx([1.0, 1.0])
    assert [(pair.difference, pair.difference_low, pair.difference_high) for pair in found.own] == [(0.0, 0.0, 0.0)] * 2
    assert found.notes == ()


def test_sets_ranks_and_effects_that_differ(tmp_path: Path) -> None:
    one = study(tmp_path, "a", sets("one"), scores("one"), effects("one", 3))
    two = study(tmp_path, "b", sets("one", start=5), scores("one", turned=True), effects("one", 9))
    found = compare_studies(one, two)
    assert [pair.shared for pair in found.sets] == [20, 20]
    assert [pair.jaccard for pair in found.sets] == pytest.approx([20 / 60] * 2)
    assert found.sets[0].expected == pytest.approx(0.112, abs=0.01)
    assert found.ranks[0].correlation[:, 0, 1].tolist() == pytest.approx([-1.0, -1.0])
    pair = found.own[0]
    assert pair.paired
    assert pair.change == pytest.approx((-0.25, -0.75))
    assert pair.difference == pytest.approx(-0.5)
    assert -1 <= pair.difference_low < -0.5 < pair.difference_high < 0
    assert "lies off zero for 2 of 2: north, south." in words_of(found)["effects"][0]
    html = page(found)
    assert all(f'id="figure-{key}-0"' in html for key in ("sets", "ranks", "effects"))


def test_other_questions_are_not_paired(tmp_path: Path) -> None:
    one = study(tmp_path, "a", effects("one", 3), scores("one"))
    two = study(tmp_path, "b", effects("one", 9, corpus="other"), scores("one"))
    pair = compare_studies(one, two).own[0]
    assert not pair.paired
    assert pair.difference_low < pair.difference < pair.difference_high


def test_subjects_of_one_shape_are_matched_by_place_and_others_are_not(tmp_path: Path) -> None:
    one = study(tmp_path, "a", sets("one"))
    tuned = study(tmp_path, "b", sets("two"), subject="two")
    found = compare_studies(one, tuned)
    assert found.sets[0].shared == 40
    assert "different subjects" in found.notes[0]
    wider = compare_studies(one, study(tmp_path, "c", sets("three", width=60), subject="three"))
    assert wider.sets[0].shared is None
    assert "Neurons of 2 of 2 sets cannot be matched: north is of site mlp [4, 50]" in wider.notes[1]
    assert 'id="table-sets-0"' in page(wider)


def test_effects_by_a_loss_are_in_its_unit_and_not_beside_accuracy(tmp_path: Path) -> None:
    plain = effects("one", 6)
    loss = replace(
        plain, metric="loss", base=torch.zeros(2 * ITEMS), ablated=1.5 * (~plain.ablated).float(),
        controls=torch.zeros(2, 1, 2 * ITEMS), origin={**plain.origin, "unit": "nats", "higher_is_better": False},
    )  # fmt: skip
    one = study(tmp_path, "a", loss, scores("one"))
    found = compare_studies(one, one)
    assert (found.metric, found.unit, found.scale) == ("loss", "nats", 1.0)
    share = 1.5 * 6 / ITEMS
    assert f": +{share:.3f} nats in " in words_of(found)["effects"][0]
    html = page(found)
    assert (
        "change of loss on the set&#39;s own group (nats)" in html
        or "change of loss on the set's own group (nats)" in html
    )
    assert "Change of loss by silencing" in html
    assert "accuracy" not in html
    beside = compare_studies(one, study(tmp_path, "b", plain, scores("one")))
    assert beside.effects == ()
    assert "They are in nats and in percentage points, and are not set side by side." in beside.notes


def test_nothing_in_common_is_one_line(tmp_path: Path) -> None:
    one = study(tmp_path, "a", sets("one"))
    other = study(tmp_path, "b", {"east": dataclasses.replace(sets("one")["north"])})
    with pytest.raises(
        SetError, match=r"a\.h5 has sets and groups north, south; .*b\.h5 has sets and groups east; expected"
    ):
        compare_studies(one, other)
