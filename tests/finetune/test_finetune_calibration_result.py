"""Calibration's result: aggregation over seeds, what is best, what it lets one say, and the way to an atlas and back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.analysis.study import load, save
from neuropolis.finetune.calibration_result import Calibration, over_seeds
from neuropolis.finetune.calibration_words import LIMIT
from neuropolis.finetune.errors import TuneError
from torch import Tensor

SUBJECT = "f" * 16
METHODS, RANKINGS = ("taylor", "coalition", "random"), ("values", "signed")


def sound(variant: str, seed: int, holds: bool = True) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "holds": holds, "failures": [] if holds else ["too little"]}


def make(
    recall: dict[str, list[float]], *, layers: tuple[float, float] = (0.3, 0.95), variants: tuple[str, ...] = ("plain",)
) -> Calibration:
    """Two groups, two layers; a method's recall by seed, the same for both groups, best by `signed`."""
    seeds = len(next(iter(recall.values())))
    values = torch.full((3, len(variants), seeds, 3, 2, 2), 0.05, dtype=torch.float64)
    for m, method in enumerate(METHODS):
        values[:, :, :, m, 1] = torch.tensor(recall[method], dtype=torch.float64)[None, None, :, None]
    by_layer = torch.tensor(layers, dtype=torch.float64).expand(3, len(variants), seeds, 3, 2, 2)
    counts = torch.tensor([1, 4, 16])
    found = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64).expand(len(variants), seeds, 3, 2, 3)
    shape = (len(variants), seeds, 3)
    return Calibration(
        SUBJECT, "mlp", METHODS, RANKINGS, variants, tuple(range(seeds)), values, by_layer, counts, found,
        torch.ones(*shape, 2, 2, dtype=torch.float64), torch.full((len(variants), seeds, 2), 4),
        torch.full((2, 2, seeds, 3), 0.01, dtype=torch.float64), torch.ones(shape, dtype=torch.float64),
        torch.tensor([3.0, 39.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64),
        tuple(sound(variant, seed) for variant in variants for seed in range(seeds)), {"checks": True},
    )  # fmt: skip


GOOD = {"taylor": [0.5, 0.6, 0.7], "coalition": [0.90, 0.92, 0.94], "random": [0.05, 0.05, 0.05]}


def test_over_seeds_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, math.nan, 3.0], [4.0, math.nan, math.nan], [math.nan] * 3])
    mean, low, high = over_seeds(values)
    assert mean[:3].tolist() == [2.0, 2.0, 4.0]
    assert math.isnan(mean[3])
    # t of 2 degrees of freedom is 4.3027, of one 12.706
    assert float(high[0]) == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    assert float(low[1]) == pytest.approx(2 - 12.7062 * 2**0.5 / 2**0.5, abs=1e-3)
    assert math.isnan(low[2])


def test_the_best_and_its_rows() -> None:
    found = make(GOOD)
    assert found.first == "plain"
    assert found.best == ("coalition", "signed")
    assert found.best_ranking("taylor") == "signed"
    assert found.best_ranking("nobody") is None
    first, second, third = found.summary()
    assert (first["method"], second["method"], third["method"]) == ("coalition", "taylor", "random")
    assert first["recall"] == pytest.approx(0.92)
    assert first["recall_low"] == pytest.approx(0.92 - 4.3027 * 0.02 / 3**0.5, abs=1e-4)
    assert first["forwards"] == 39
    assert len(found.summary(every=True)) == 5  # random orders have one ranking, or the best of them would be no chance
    with pytest.raises(TuneError, match="no variant 'hard'; variants are plain"):
        found.summary("hard")


def test_the_curve_is_recall_and_precision_of_what_was_found() -> None:
    recall, precision = make(GOOD).curve("plain", "taylor", "signed")
    assert recall.tolist() == [0.25, 0.75, 1.0]
    assert precision.tolist() == [1.0, 0.75, 0.25]


def test_agreement_is_a_rank_correlation_over_methods() -> None:
    found = make(GOOD)
    # recall ranks taylor, coalition, random as 2, 3, 1 and deletion as 1, 3, 2
    assert found.agreement() == (pytest.approx(0.5), 3)
    assert found.agreement(None) == (pytest.approx(0.5), 3)
    fewer = replace(found, deletion=torch.tensor([1.0, math.nan, 2.0]))
    assert math.isnan(fewer.agreement()[0])
    assert fewer.agreement()[1] == 2


def test_a_failed_plant_counts_for_nothing() -> None:
    found = make(GOOD)
    values = found.values.clone()
    values[:, :, 1] = math.nan
    plants = (sound("plain", 0), sound("plain", 1, holds=False), sound("plain", 2))
    found = replace(found, values=values, plants=plants)
    assert found.held("plain") == 2
    assert found.summary()[0]["recall"] == pytest.approx(0.92)
    assert "95 % interval over 2 plants" in found.verdict()


@pytest.mark.parametrize(
    ("recall", "line"),
    [
        (GOOD, "On this model trust coalition ranked by signed to name single planted neurons. Of the 4 neurons planted for a "
               "group, 92% are among as many ranked first (95 % interval over 3 plants 87% to 97%; "),
        ({**GOOD, "coalition": [0.6, 0.7, 0.8]}, "it names as many neurons as were planted about 30% of them are others"),
        ({**GOOD, "taylor": [0.1] * 3, "coalition": [0.4, 0.4, 0.41]}, "Trust no method to name single planted neurons"),
        ({**GOOD, "taylor": [0.1] * 3, "coalition": [0.0, 0.2, 0.4]}, "Trust no method on this model: the best, coalition "
                                                                     "ranked by signed, is not told from random orders."),
        ({"taylor": [0.3], "coalition": [0.95], "random": [0.05]}, "(1 plant, no interval; "),
    ],
)  # fmt: skip
def test_the_sentence_says_how_far_to_trust(recall: dict[str, list[float]], line: str) -> None:
    said = make(recall).verdict()
    assert line in said
    assert "it is weakest in layer 0 (30%)." in said


def test_the_sentence_names_the_weakest_variant_and_those_of_which_nothing_is_known() -> None:
    found = make(GOOD, variants=("plain", "shared", "few"))
    values = found.values.clone()
    values[:, 1] = 0.4
    values[:, 2] = math.nan
    plants = tuple(one | {"holds": one["variant"] != "few"} for one in found.plants)
    said = replace(found, values=values, plants=plants).verdict()
    assert said.endswith(
        f"and on the variant shared (40%). Nothing is known of few: no plant of it stood its proof. {LIMIT}"
    )


def test_where_no_plant_held_nothing_is_said() -> None:
    found = make(GOOD)
    found = replace(found, values=torch.full_like(found.values, math.nan), plants=(sound("plain", 0, holds=False),))
    assert found.best is None
    assert found.first is None
    assert found.summary() == []
    assert found.verdict().startswith("No plant stood its proof (1 tried), so nothing can be said")


@pytest.mark.parametrize(
    ("failures", "form", "said"),
    [
        (
            ["recall of a planted is 0.20"],
            "question",
            "fewer facts in more neurons; put facts as statements with known answers.",
        ),
        (["recall of a planted is 0.20"], "statement", "train longer, or plant fewer facts in more neurons."),
        (
            ["perplexity of other text moves by +4%"],
            "question",
            ": weigh other text more (keep), or plant in fewer neurons.",
        ),
        (["with a put back another group's recall moves by 0.1"], "question", "on this model: train longer."),
    ],
)
def test_where_no_plant_held_what_to_try_follows_from_what_failed(failures: list[str], form: str, said: str) -> None:
    found = make(GOOD)
    plants = [{**plant, "holds": False, "failures": failures} for plant in found.plants]
    assert replace(found, plants=tuple(plants), origin={"form": form}).verdict().endswith(said)


def test_an_atlas_gives_it_back(tmp_path: Path) -> None:
    found = make(GOOD)
    again = load(save(tmp_path / "c.h5", found)).calibration
    assert again.methods == found.methods
    assert again.plants == found.plants
    assert dict(again.origin) == {"checks": True}
    for key, value in vars(found).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(getattr(again, key), value, equal_nan=True)
    assert again.verdict() == found.verdict()


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TuneError, match=r"forwards must have shape \[3\], got \[2\]"):
        replace(make(GOOD), forwards=torch.zeros(2))
