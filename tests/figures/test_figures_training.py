from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from neuropolis.figures.saving import check_figure_path
from neuropolis.figures.style import FigureError
from neuropolis.figures.training import running_mean, training


def delta(steps: int, **origin: Any) -> Any:
    return SimpleNamespace(history=tuple(10.0 - k / 10 for k in range(steps)), origin=origin)


def test_lines_are_the_losses_by_step() -> None:
    held = {"losses": [[0, 9.0], [4, 7.0], [8, 8.0]], "best_step": 4}
    (axes,) = training(delta(8, held_out=held, resumed=[{"step": 5}])).axes
    lines = {str(line.get_label()): np.asarray(line.get_data()) for line in axes.get_lines()}
    assert lines["training"][0].tolist() == list(range(1, 9))
    assert lines["training"][1].tolist() == list(delta(8).history)
    assert lines["held out"].tolist() == [[0, 4, 8], [9.0, 7.0, 8.0]]
    assert lines["lowest held out, step 4"][0].tolist() == [4, 4]
    assert lines["other recipe from step 5"][0].tolist() == [5, 5]
    assert axes.get_ylim()[0] == 0


def test_long_runs_are_smoothed() -> None:
    (axes,) = training(delta(60)).axes
    assert axes.get_lines()[0].get_ydata()[30] == pytest.approx(7.0)  # the mean of a straight line is its middle
    assert len(axes.collections[0].get_offsets()) == 60
    assert running_mean(np.array([1.0, 2.0, 6.0, 7.0]), 3).tolist() == [1.5, 3.0, 5.0, 6.5]


def test_what_has_no_curve_is_refused(tmp_path: Any) -> None:
    with pytest.raises(FigureError, match="has no history of losses"):
        training(delta(0))
    with pytest.raises(FigureError, match="unknown suffix"):
        check_figure_path(tmp_path / "curve.gif")
    with pytest.raises(FigureError, match="there is no folder"):
        check_figure_path(tmp_path / "nowhere" / "curve.svg")
