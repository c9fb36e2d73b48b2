"""Figures of two studies side by side: sets in common, agreement of ranks, effects beside one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import GRID, INK, FigureError, new_figure, palette, text_inches, themed

if TYPE_CHECKING:
    from ..analysis.agreement import Agreement
    from ..analysis.comparison import Comparison


def sets_in_common(comparison: Comparison) -> Figure:
    """Bars by set: Jaccard index of the two studies' sets, with the 95 % interval of chance. Raises FigureError without any."""
    pairs = [pair for pair in comparison.sets if pair.shared is not None]
    if not pairs:
        raise FigureError("no set of both studies has one site and shape, so that no neurons can be matched")
    names = [pair.name for pair in pairs]
    with themed(names):
        figure, axes = _rows(names)
        rows = np.arange(len(pairs))
        axes.barh(
            rows, [pair.jaccard for pair in pairs], height=0.6, color=palette(2)[0], alpha=0.8, label="Jaccard index"
        )
        low, high = (np.array([getattr(pair, end) for pair in pairs]) for end in ("low", "high"))
        axes.hlines(rows, low, high, color=INK, linewidth=4, alpha=0.55, label="by chance, 95 %")
        axes.set_xlim(0, 1.0)
        axes.set_xlabel("Jaccard index of the two studies' sets (1: the same neurons)")
        figure.legend(loc="outside upper right", frameon=False, ncols=2)
    return figure


def rank_agreement(found: Agreement) -> Figure:
    """Dots by group: rank correlation of both studies' scores, and Jaccard index of their top neurons."""
    with themed(found.groups):
        figure, axes = _rows(found.groups)
        rows = np.arange(len(found.groups))
        colours = palette(2)
        axes.scatter(found.correlation[:, 0, 1], rows, color=colours[0], s=42, label="rank correlation of all scores")
        label = f"Jaccard index of the top {100 * found.top:g} %"
        axes.scatter(found.jaccard[:, 0, 1], rows, color=colours[1], marker="D", s=34, label=label)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(min(-0.05, float(np.nanmin(found.correlation)) - 0.05), 1.05)
        axes.set_xlabel("1: the same order, the same neurons")
        figure.legend(loc="outside upper right", frameon=False, ncols=2)
    return figure


def effects_beside(comparison: Comparison) -> Figure:
    """Dots by set: change of the metric on its own group in both studies, with 95 % intervals. Raises FigureError without any."""
    pairs = comparison.own
    if not pairs:
        raise FigureError("no set of both studies bears the name of a group whose effect was measured in both")
    with themed([*(pair.set for pair in pairs), *comparison.names]):
        figure, axes = _rows([pair.set for pair in pairs], height=0.42)
        for study, (name, colour, marker) in enumerate(zip(comparison.names, palette(2), "oD", strict=True)):
            values = np.array([comparison.scale * pair.change[study] for pair in pairs])
            low, high = (
                np.array([comparison.scale * getattr(pair, end)[study] for pair in pairs]) for end in ("low", "high")
            )
            rows = np.arange(len(pairs)) + (study - 0.5) * 0.34
            reach = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)
            axes.errorbar(values, rows, xerr=reach, fmt=marker, color=colour, capsize=3, elinewidth=1.4, label=name)
        axes.axvline(0, color=INK, linewidth=0.8)
        unit = "points" if comparison.unit == "share" else comparison.unit
        axes.set_xlabel(f"change of {comparison.metric} on the set's own group ({unit}), 95 % interval")
        figure.legend(loc="outside upper right", frameon=False, ncols=2)
    return figure


def _rows(names: list[str] | tuple[str, ...], height: float = 0.3) -> tuple[Figure, Axes]:
    figure = new_figure(max(7.0, text_inches(names) + 5.5), 1.4 + height * len(names))
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
    return figure, axes
