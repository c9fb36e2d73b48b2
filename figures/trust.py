"""Figures of how far scores and sets can be trusted: agreement of methods, stability, importance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from .cells import BARE, CellSize, as_array, cell_size, frame, heat
from .style import GRID, INK, FigureError, new_figure, palette, sequential, text_inches, themed

if TYPE_CHECKING:
    from ..analysis.agreement import Agreement
    from ..attribution.importance import Importance
    from ..attribution.stability import Stability


def method_agreement(agreement: Agreement) -> Figure:
    """Two heat maps [method, method]: Spearman correlation of scores, and Jaccard index of the top neurons, means over groups."""
    if len(agreement.methods) < 2:
        raise FigureError(
            f"agreement needs scores by two methods at least, found {len(agreement.methods)}; score again with another "
            "method: neuropolis locate --method taylor,ig"
        )
    names = agreement.methods
    cell = cell_size(len(names))
    panels = (
        ("rank correlation of all scores", agreement.correlation.mean(axis=0), (-1.0, 1.0)),
        (f"Jaccard of the top {100 * agreement.top:g} %", agreement.jaccard.mean(axis=0), (0.0, 1.0)),
    )
    with themed(names):
        width, height = frame(names, names, cell=cell)
        figure = new_figure(2 * width, height)
        for place, (axes, (title, values, limits)) in enumerate(zip(figure.subplots(1, 2), panels, strict=True)):
            notes = np.array([[f"{v:.2f}" if np.isfinite(v) else "" for v in row] for row in values], dtype=object)
            heat(
                axes, values, columns=names, rows=names if place == 0 else None, colours=sequential(),
                limits=(max(limits[0], min(0.0, float(np.nanmin(values)))), 1.0),
                notes=None if cell.detail == BARE else notes, points=cell.points, bar="mean over groups",
            )  # fmt: skip
            axes.set_title(title)
    return figure


def stability_dots(stability: Stability) -> Figure:
    """Dots by what was changed: each group's Jaccard index with the reference set, its mean, and chance (dashed)."""
    rows = list(range(len(stability.variants)))
    names = [f"{axis}: {variant}" for axis, variant in zip(stability.axes, stability.variants, strict=True)]
    jaccard, chance = as_array(stability.jaccard), as_array(stability.chance)
    axes_names = list(dict.fromkeys(stability.axes))
    colours = dict(zip(axes_names, palette(max(2, len(axes_names))), strict=False))
    with themed(names):
        figure = new_figure(max(7.0, text_inches(names) + 5.5), 1.3 + 0.26 * len(rows))
        axes = figure.subplots()
        for row in rows:
            colour = colours[stability.axes[row]]
            axes.scatter(jaccard[row], np.full(len(jaccard[row]), row), s=14, color=colour, alpha=0.45, linewidth=0)
            axes.scatter([jaccard[row].mean()], [row], s=46, color=colour, marker="D", linewidth=0)
            axes.plot([chance[row].mean()] * 2, [row - 0.4, row + 0.4], color=INK, linestyle=":", linewidth=1.4)
        axes.scatter([], [], s=46, color=INK, marker="D", linewidth=0, label="mean over groups")
        axes.scatter([], [], s=14, color=INK, alpha=0.45, linewidth=0, label="a group")
        axes.plot([], [], color=INK, linestyle=":", linewidth=1.4, label="by chance")
        axes.set_yticks(rows, names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Jaccard index with the set of the settings given (1: the same neurons)")
        axes.grid(True, axis="x", color=GRID, linewidth=0.6)
        figure.legend(loc="outside upper right", frameon=False, ncols=3)
    return figure


def importance_map(importance: Importance) -> Figure:
    """Heat map [component, layer]: summed scores of a component of a layer, mean over groups, as shares of the whole in %."""
    values = as_array(importance.values).astype(float)
    totals = values.sum(axis=(1, 2), keepdims=True)
    shares = 100 * np.divide(values, totals, out=np.full_like(values, np.nan), where=totals > 0)
    mean = np.nanmean(shares, axis=0).T if np.isfinite(shares).any() else shares[0].T
    depth = mean.shape[1]
    noted = depth <= 16
    cell = CellSize("", 0.5 if noted else max(0.16, min(0.5, 10 / depth)), 0.3, 7.5)
    every = max(1, round(depth / 32))
    columns = [str(layer) if layer % every == 0 else "" for layer in range(depth)]
    notes = np.array([[f"{v:.1f}" if np.isfinite(v) else "" for v in row] for row in mean]) if noted else None
    with themed(importance.components):
        figure = new_figure(*frame(importance.components, ["00"], cell=cell, extra=cell.width * depth))
        axes = figure.subplots()
        heat(
            axes, mean, columns=columns, rows=importance.components, colours=sequential(),
            limits=(0.0, float(np.nanmax(mean, initial=1e-9))), notes=notes, points=cell.points,
            bar="share of all scores (%)", level=True,
        )  # fmt: skip
        axes.set(xlabel="layer", ylabel="component (site)")
    return figure
