"""The figure of a stream: what was known after every stage, and what was forgotten at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cells import as_array, heat
from .style import GRID, INK, FigureError, new_figure, palette, sequential, text_inches, themed

_PANELS = {"forgetting": "forgotten of the stream", "known_forgetting": "forgotten of what was known before"}
_MOST_COLUMNS = 5  # matrices beside each other


def continual(result: Any) -> Figure:
    """The accuracy matrix of every method and bars of what was forgotten, from a finetune Continual alone.

    Matrices are means over seeds: rows are stages, columns the tasks in the order of learning (named where every seed
    has the same order). Bars are means over seeds with their 95 % t interval and a dot for every seed. What was not
    measured stays empty. Raises FigureError for a result without methods or tasks.
    """
    methods, stages = list(result.methods), len(result.tasks)
    if not methods or not stages:
        raise FigureError("a result without methods or tasks has nothing to show")
    matrices = np.stack([_mean(matrix) for matrix in 100 * as_array(result.learned_order)])
    names = _columns(result)
    panels = [name for name in _PANELS if np.isfinite(as_array(result.metric(name))).any()]
    columns = min(len(methods), _MOST_COLUMNS)
    rows = -(-len(methods) // columns)
    side = max(1.2, 0.42 * stages)
    with themed([*methods, *names]):
        height = rows * (side + 0.9) + (0.9 + 0.3 * len(methods) if panels else 0)
        figure = new_figure(max(7.5, columns * (side + 0.5) + text_inches(names) + 0.8), height)
        upper: Any = figure
        lower: Any = None
        if panels:
            parts: Any = figure.subfigures(2, 1, height_ratios=[rows * (side + 0.9), 0.9 + 0.3 * len(methods)])
            upper, lower = parts
        grid: Any = upper.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.ravel()):
            if place >= len(methods):
                axes.set_axis_off()
                continue
            _matrix(axes, matrices[place], names, first=place % columns == 0, last=place == len(methods) - 1)
            axes.set_title(methods[place])
        if lower is not None:
            below: Any = lower.subplots(1, len(panels), sharey=True, squeeze=False)
            for axes, name in zip(below[0], panels, strict=True):
                _bars(axes, as_array(result.metric(name)), [as_array(part) for part in result.interval(name)], methods)
                axes.set_title(_PANELS[name])
    return figure


def _matrix(axes: Axes, values: np.ndarray, names: list[str], *, first: bool, last: bool) -> None:
    notes = np.array([[f"{value:.0f}" if np.isfinite(value) else "" for value in row] for row in values])
    heat(
        axes, values, columns=names, rows=[str(stage + 1) for stage in range(len(values))], colours=sequential(),
        limits=(0.0, 100.0), notes=notes if len(values) <= 10 else None, bar="right answers (%)" if last else None,
    )  # fmt: skip
    axes.set_ylabel("tasks learned" if first else "")


def _bars(axes: Axes, values: np.ndarray, interval: list[np.ndarray], methods: list[str]) -> None:
    colours = palette(max(2, len(methods)))
    mean, low, high = (100 * part for part in interval)
    for row, dots in enumerate(100 * values):
        if not np.isfinite(mean[row]):
            continue
        axes.barh(row, mean[row], height=0.6, color=colours[row], alpha=0.55)
        if np.isfinite(low[row]):
            reach = [[mean[row] - low[row]], [high[row] - mean[row]]]
            axes.errorbar(mean[row], row, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.4, capsize=3)
        axes.scatter(dots, np.linspace(row - 0.18, row + 0.18, len(dots)), s=8, color=INK, alpha=0.5, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel("points of accuracy, mean over seeds, 95 % t interval")
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)


def _columns(result: Any) -> list[str]:
    orders = as_array(result.orders)
    if (orders == orders[0]).all():
        return [result.tasks[place] for place in orders[0]]
    return [f"task {place + 1}" for place in range(len(result.tasks))]


def _mean(matrix: np.ndarray) -> np.ndarray:
    """Over seeds; NaN where no seed was measured."""
    there = np.isfinite(matrix)
    return np.where(
        there.any(axis=0), np.where(there, matrix, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1), np.nan
    )
