"""Figures and part of a calibration, drawn from the atlas alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from figure_makers import SUBJECT
from neuropolis.analysis.study import load, save
from neuropolis.attribution.rankings import RANKINGS
from neuropolis.figures.calibration import false_finds_by_layer, precision_recall, recall_by_count
from neuropolis.figures.calibration_parts import calibration as part
from neuropolis.figures.report import page
from neuropolis.figures.saving import save_figure
from neuropolis.figures.style import FigureError
from neuropolis.finetune.calibration_result import Calibration

METHODS = ("taylor", "coalition", "random")


def make(holds: bool = True) -> Calibration:
    """Two seeds of one variant; coalition finds the most, by `positive/ratio`."""
    shape = (1, 2, 3, len(RANKINGS))
    values = torch.full((3, *shape, 2), 0.1, dtype=torch.float64)
    values[:, :, :, 1, RANKINGS.index("positive/ratio")] = 0.9
    values[:, :, :, 0, RANKINGS.index("signed")] = 0.6
    counts = torch.tensor([1, 4, 100])
    proof = {
        "groups": ["a", "b"], "before": [0.0, 0.0], "planted": [1.0, 1.0], "without": [[0.0, 1.0], [0.98, 0.0]],
        "reworded": [0.25, 0.5],
        "perplexity": [4.0, 4.02],
    }  # fmt: skip
    plants = tuple(
        {"variant": "plain", "seed": s, "holds": holds, "failures": [] if holds else ["recall of a is 0.1"], "proof": proof}
        for s in range(2)
    )  # fmt: skip
    if not holds:
        values = torch.full_like(values, math.nan)
    return Calibration(
        SUBJECT, "mlp", METHODS, RANKINGS, ("plain",), (0, 1), values, values[..., :1].expand(3, *shape, 4), counts,
        torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64).expand(*shape, 3),
        torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64).expand(*shape, 4), torch.full((1, 2, 2), 4),
        torch.full((2, 2, 2, 3), 0.01, dtype=torch.float64), torch.ones(1, 2, 3, dtype=torch.float64),
        torch.tensor([384.0, 4992.0, 0.0]), torch.tensor([2.0, 1.0, 0.0]), plants, {"checks": True, "natural": "polis"},
    )  # fmt: skip


def test_the_curves_are_those_of_the_record() -> None:
    found = make()
    axes = precision_recall(found)
    first = axes.lines[0]
    assert first.get_xdata().tolist() == [0.25, 0.75, 1.0]
    assert first.get_ydata().tolist() == [1.0, 0.75, 0.04]
    assert axes.lines[1].get_xdata().tolist() == [0.75]  # the dot, at as many as were planted
    axes = recall_by_count(found)
    assert axes.lines[0].get_xdata().tolist() == [1, 4, 100]
    assert axes.lines[0].get_ydata().tolist() == [0.25, 0.75, 1.0]
    assert axes.lines[-1].get_xdata()[0] == 4
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names == ["coalition (positive/ratio)", "taylor (signed)", "random"]


def test_false_finds_stand_by_layer(tmp_path: Path) -> None:
    axes = false_finds_by_layer(make())
    assert len(axes.containers) == len(METHODS)
    assert [bar.get_height() for bar in axes.containers[0]] == [0.5, 0.0, 0.25, 0.25]
    assert axes.get_ylabel() == "others among the first 4"
    assert save_figure(axes.figure, tmp_path / "false.svg").stat().st_size > 1000


def test_the_part_says_what_the_record_holds(tmp_path: Path) -> None:
    found = make()
    study = load(save(tmp_path / "study.h5", found, subject={"fingerprint": SUBJECT}))
    html = page(study)
    assert found.verdict().split(" (95 %")[0] in html
    assert "rank alike by a Spearman correlation of 0.87" in html
    for place in range(3):
        assert f'id="figure-calibration-{place}"' in html
    assert 'id="table-calibration-0"' in html
    assert part(found).headline == ("90%", "of planted neurons found by coalition (positive/ratio), 2 seeds")


def test_where_no_plant_held_there_is_nothing_to_draw() -> None:
    found = make(holds=False)
    with pytest.raises(FigureError, match="no plant held, so there is nothing to draw"):
        precision_recall(found)
    with pytest.raises(FigureError, match="no plant of 'plain' held"):
        recall_by_count(found, "plain")
    made = part(found)
    assert made.pictures == ()
    assert made.headline is None
    assert any("not scored: plain, seed 0: recall of a is 0.1" in note for note in made.notes)
    assert replace(found).first is None
