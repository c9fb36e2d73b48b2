"""Alignment and difficulty in the report: their words, their tables, their pictures."""

from __future__ import annotations

import pytest
import torch
from neuropolis.analysis.value_alignment import Alignment
from neuropolis.attribution.difficulty import Difficulty
from neuropolis.figures.corpus_parts import alignment, alignment_by_culture, difficulties, difficulty
from neuropolis.figures.style import FigureError


def found() -> Alignment:
    numbers = {
        "values": [70.0, 50.0], "low": [66.0, 40.0], "high": [74.0, 60.0], "chance": [40.0, 44.0], "middle": [60.0, 58.0],
    }  # fmt: skip
    tensors = {name: torch.tensor(row, dtype=torch.float64) for name, row in numbers.items()}
    return Alignment(("日本", "USA"), **tensors, valid=torch.tensor([9, 8]), asked=torch.tensor([9, 9]))


def test_words_and_table_by_hand() -> None:
    part = alignment(found())
    assert part.headline == ("60.0", "mean alignment with 2 cultures' majorities")
    assert "random answers have 42.0, always the middle option 59.0" in part.words[0]
    assert "For 1 of 2 cultures the interval lies above the middle option." in part.words[0]
    assert part.tables[0].first[1] == ["USA", "50.0", "40.0 to 60.0", "44.0", "58.0", "8", "9"]


def test_a_dot_with_its_interval_for_each_culture_and_both_baselines() -> None:
    axes = alignment_by_culture(found())
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["日本", "USA"]
    (dots,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(dots.get_ydata()) == [70.0, 50.0]
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[66.0, 74.0], [40.0, 60.0]]
    assert {line.get_marker() for line in axes.lines} >= {"o", "_", "x"}


def test_difficulty_by_hand() -> None:
    given, alone = torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([2.0, 1.0, torch.nan])
    one = Difficulty("s", ("a", "b", "c"), given, alone, torch.tensor([3, 4, 0]), {"c": "too long"})
    part = difficulty(one)
    assert "Of 3 examples 2 have a difficulty" in part.words[0]
    assert "For 50% of them the prompt makes the answer likelier." in part.words[0]
    assert part.tables[0].first[0] == ["a", "0.368", "1.000", "2.000", "3"]
    assert part.tables[0].first[2][1] == "–"
    assert sum(patch.get_height() for patch in difficulties(one).patches) == 2
    none = Difficulty("s", ("c",), given[2:], alone[2:], torch.tensor([0]), {"c": "too long"})
    assert difficulty(none).words == ("None of 1 examples has a difficulty.",)
    with pytest.raises(FigureError, match="no example has a difficulty"):
        difficulties(none)
