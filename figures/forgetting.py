"""The figure of what tuning learned and what it forgot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cells import as_array
from .style import GRID, INK, new_figure, palette, text_inches, themed


def forgetting(retention: Any) -> Figure:
    """Accuracy before and after learning a new group, by method: on the new group, and on the mean of the trained ones.

    Takes a finetune Retention. Intervals of the new group are its own; that of the mean over trained groups combines
    theirs as independent. The small dots are the trained groups one by one.
    """
    after, low, high = (100 * as_array(getattr(retention, name)) for name in ("after", "after_low", "after_high"))
    before = 100 * as_array(retention.before)
    new, kept = retention.groups.index(retention.group), [retention.groups.index(g) for g in retention.trained_groups]
    labels = [
        f"{name} ({int(size):,} trained)"
        for name, size in zip(retention.methods, as_array(retention.trainable), strict=True)
    ]
    titles = (f"learned: {retention.group}", f"kept: mean of {len(kept)} trained groups")
    with themed([*labels, *titles]):
        figure = new_figure(max(7.5, text_inches(labels) + 5.5), 1.5 + 0.5 * len(labels))
        left, right = figure.subplots(1, 2, sharey=True, sharex=True)
        colours = palette(max(len(labels), 2))
        spread = [
            (combine(low[m, kept], after[m, kept], -1), combine(high[m, kept], after[m, kept], 1))
            for m in range(len(labels))
        ]
        own = [(low[m, new], high[m, new]) for m in range(len(labels))]
        _dots(left, after[:, new], own, before=float(before[new]), colours=colours, title=titles[0])
        _dots(
            right,
            after[:, kept].mean(axis=1),
            spread,
            before=float(before[kept].mean()),
            colours=colours,
            title=titles[1],
        )
        for row in range(len(labels)):
            place = np.linspace(row - 0.22, row + 0.22, len(kept))
            right.scatter(after[row, kept], place, s=7, color=colours[row], alpha=0.45, linewidth=0, zorder=1)
        left.set_yticks(range(len(labels)), labels)
        left.set_ylim(len(labels) - 0.4, -0.6)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower right", frameon=False, ncols=2)
    return figure


def combine(bounds: np.ndarray, means: np.ndarray, sign: int) -> float:
    """A bound of a mean over groups, from the groups' own bounds taken as independent: half-widths add in squares."""
    return float(means.mean() + sign * np.sqrt(np.square(bounds - means).sum()) / len(means))


def _dots(
    axes: Axes,
    values: np.ndarray,
    bounds: Sequence[tuple[float, float]],
    *,
    before: float,
    colours: list[Any],
    title: str,
) -> None:
    axes.axvline(before, color=INK, linestyle="--", linewidth=1, label="before")
    for row, (value, (low, high)) in enumerate(zip(values, bounds, strict=True)):
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, row, xerr=reach, fmt="o", markersize=7, color=colours[row], elinewidth=1.6, capsize=3.5)
    axes.errorbar([], [], xerr=[], fmt="o", color=INK, elinewidth=1.6, capsize=3.5, label="after, with 95 % interval")
    axes.set_title(title)
    axes.set_xlabel("accuracy (%)")
    axes.set_xlim(-3, 103)
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
