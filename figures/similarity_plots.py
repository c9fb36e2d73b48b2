"""Figures of how sets of neurons relate: trees, distances, ranks, movement and transfer; each from artefacts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .cells import FULL, SHORT, CellSize, as_array, cell_size, frame, heat
from .style import GRID, INK, FigureError, diverging, new_figure, palette, sequential, themed

if TYPE_CHECKING:
    from ..analysis.movement import Movement
    from ..analysis.overlap import Overlap
    from ..analysis.ranks import RankAgreement
    from ..analysis.transfer import Transfer
    from ..analysis.trees import Mantel, Tree

_NAMED = 12  # points of more groups are not named one by one
_TREE_INCHES = 1.6


def tree_beside_map(overlap: Overlap, tree: Tree) -> Figure:
    """Heat map [group, group] of the Jaccard index in the order of the tree's leaves, the tree on its left.

    Branches meet at the distance of the groups they join. Raises FigureError when the two are of different groups.
    """
    from scipy.cluster.hierarchy import dendrogram

    if overlap.groups != tree.groups:
        raise FigureError(
            f"the overlap is of {', '.join(overlap.groups)}, the tree of {', '.join(tree.groups)}; give two of one study"
        )
    order = as_array(tree.order)
    names = [overlap.groups[place] for place in order]
    values = as_array(overlap.jaccard).astype(float)[np.ix_(order, order)]
    np.fill_diagonal(values, np.nan)
    cell, notes = sized(values, digits=2)
    drawn = dendrogram(as_array(tree.linkage), no_plot=True, count_sort=False, distance_sort=False)
    with themed(names):
        width, height = frame(names, names, cell=cell, extra=_TREE_INCHES + 0.4)
        figure = new_figure(width, height)
        left, right = figure.subplots(1, 2, width_ratios=[_TREE_INCHES, cell.width * len(names)])
        for heights, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
            left.plot(heights, np.asarray(places) / 10, color=INK, linewidth=1.2, solid_capstyle="butt")
        left.set(ylim=(len(names), 0), yticks=[], xlabel=f"distance (1 \u2212 {tree.origin.get('index', 'jaccard')})")
        joins = as_array(tree.linkage)[:, 2]
        spread = float(joins.max() - joins.min()) or float(joins.max())
        # sets that share little join late: the axis begins where there is something to see
        left.set_xlim(float(joins.max()) + 0.05 * spread, max(0.0, float(joins.min()) - 0.5 * spread))
        left.xaxis.set_major_locator(MaxNLocator(3))
        left.spines["left"].set_visible(False)
        heat(
            right, values, columns=names, rows=names, colours=sequential(),
            limits=(0.0, float(np.nanmax(values, initial=1e-9))), notes=notes, points=cell.points, bar="Jaccard index",
        )  # fmt: skip
    return figure


def distances_against_overlap(mantel: Mantel) -> Figure:
    """One dot per pair of groups: the distance given for them, and how far apart their sets are."""
    first, second = np.triu_indices(len(mantel.groups), 1)
    given, own = (as_array(table)[first, second] for table in (mantel.given, mantel.distance))
    with themed(mantel.groups):
        figure = new_figure(5.4, 4.0)
        axes = figure.subplots()
        axes.scatter(given, own, s=16, color=palette(1)[0], alpha=0.7, linewidth=0)
        if len(mantel.groups) <= 5:
            _name_dots(
                axes,
                given,
                own,
                [f"{mantel.groups[a]} \u2013 {mantel.groups[b]}" for a, b in zip(first, second, strict=True)],
            )
        one = mantel.agreement
        axes.set(
            xlabel="distance given", ylabel=f"distance of the sets (1 \u2212 {mantel.origin.get('index', 'jaccard')})"
        )
        axes.set_title(_found(str(mantel.origin.get("method", "")), one.r, one.low, one.high, one.p))
        axes.grid(True, color=GRID, linewidth=0.6)
    return figure


def rank_matrix(ranks: RankAgreement) -> Figure:
    """Heat map [group, group]: rank-biased overlap below the diagonal, Spearman's correlation above it.

    An asterisk marks a corrected p below 0.05.
    """
    count = len(ranks.groups)
    lower = np.tri(count, k=-1, dtype=bool)
    values = np.where(lower, as_array(ranks.rbo), as_array(ranks.spearman)).astype(float)
    starred = np.where(lower, as_array(ranks.rbo_p_corrected), as_array(ranks.spearman_p_corrected)) < 0.05
    np.fill_diagonal(values, np.nan)
    cell, notes = sized(values, digits=2, starred=starred)
    limit = float(np.nanmax(np.abs(values), initial=0.1))
    with themed(ranks.groups):
        figure = new_figure(*frame(ranks.groups, ranks.groups, cell=cell, extra=0.6))
        axes = figure.subplots()
        heat(
            axes, values, columns=ranks.groups, rows=ranks.groups, colours=diverging(), limits=(-limit, limit), notes=notes,
            points=cell.points, bar="agreement",
        )  # fmt: skip
        axes.set_title("below: rank-biased overlap; above: Spearman", pad=10)
    return figure


def similarity_and_transfer(transfer: Transfer) -> Figure:
    """One dot per ordered pair of tasks: similarity of parameters and gain; beside it the correlation by layer."""
    off = ~np.eye(len(transfer.groups), dtype=bool)
    similar = as_array(transfer.similar)
    known = np.isfinite(similar)
    mean = np.where(known, similar, 0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)
    layers = as_array(transfer.by_layer)
    with themed(transfer.groups):
        figure = new_figure(9.0, 3.8)
        left, right = figure.subplots(1, 2)
        colours = palette(max(2, len(transfer.groups)))
        given = bool(transfer.origin.get("given"))
        gains = (1 if given else 100) * as_array(transfer.gains)
        for row, name in enumerate(transfer.groups):
            left.scatter(
                mean[row][off[row]], gains[row][off[row]], s=18, color=colours[row], linewidth=0,
                label=name if len(transfer.groups) <= _NAMED else None,
            )  # fmt: skip
        if not given:
            left.axhline(0, color=INK, linewidth=0.8)
        measure = "performance, as given" if given else "change of accuracy (points)"
        left.set(xlabel="similarity of parameters (mean over layers)", ylabel=measure)
        left.set_title(_found("Pearson", *(float(v) for v in as_array(transfer.overall)[0, :4])))
        places = np.arange(layers.shape[1])
        for values, name, colour, marker in zip(layers, ("Pearson", "Spearman"), palette(2), "os", strict=True):
            right.plot(places, values[:, 0], color=colour, marker=marker, label=name)
            right.fill_between(places, values[:, 1], values[:, 2], color=colour, alpha=0.15, linewidth=0)
        right.axhline(0, color=INK, linewidth=0.8)
        right.set(xlabel="layer", ylabel="correlation, 95 % interval", ylim=(-1.05, 1.05))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.legend(frameon=False, loc="lower right")
        if len(transfer.groups) <= _NAMED:
            figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="learned")
    return figure


def movement_by_layer(movement: Movement) -> Figure:
    """Heat map [group, layer]: how far training moved a set's parameters over how far it moved random sets, as log2."""
    change, random = as_array(movement.change).astype(float), as_array(movement.control_change).astype(float)
    known = np.isfinite(random)
    mean = np.where(known, random, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    ratio = np.divide(change, mean, out=np.full_like(change, np.nan), where=mean > 0)
    with np.errstate(divide="ignore"):
        logs = np.log2(ratio)
    limit = float(np.clip(np.max(np.abs(logs), initial=1.0, where=np.isfinite(logs)), 1.0, 4.0))
    depth = change.shape[1]
    noted = depth <= 16 and len(movement.groups) <= 40
    notes = np.array([[f"{v:.3f}" if np.isfinite(v) else "" for v in row] for row in change]) if noted else None
    cell = CellSize(FULL if noted else SHORT, 0.56 if noted else max(0.16, 10 / depth), 0.3, 7.0)
    with themed(movement.groups):
        figure = new_figure(*frame(movement.groups, ["00"], cell=cell, extra=cell.width * depth))
        axes = figure.subplots()
        heat(
            axes, np.where(np.isneginf(logs), -limit, logs), columns=[str(layer) for layer in range(depth)],
            rows=movement.groups, colours=diverging(), limits=(-limit, limit), notes=notes, points=cell.points,
            bar="log2 (change / random sets')", level=True, open_ended=True,
        )  # fmt: skip
        axes.set(xlabel="layer (in the cells: |after \u2212 before| / |before|)", ylabel="set")
    return figure


def sized(values: np.ndarray, *, digits: int, starred: np.ndarray | None = None) -> tuple[CellSize, np.ndarray | None]:
    """The size of a square matrix's cells, and what stands in them where it fits."""
    base = cell_size(len(values))
    cell = CellSize(
        base.detail, 0.52 if base.detail == FULL else base.width, 0.32 if base.detail == FULL else base.height, 7.5
    )
    if base.detail not in (FULL, SHORT):
        return cell, None
    notes = np.full(values.shape, "", dtype=object)
    for place in np.ndindex(values.shape):
        if np.isfinite(values[place]):
            mark = "*" if starred is not None and starred[place] else ""
            notes[place] = f"{values[place]:.{digits}f}".replace("-", "\u2212") + mark
    return cell, notes


def _found(name: str, r: float, low: float, high: float, p: float) -> str:
    """A correlation in words."""
    text = f"{name} r {r:+.2f} ({low:+.2f} to {high:+.2f}), p {'<0.001' if p < 0.001 else f'{p:.3f}'}"
    return text.replace("-", "\u2212")


def _name_dots(axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    for place, name in enumerate(names):
        axes.annotate(name, (x[place], y[place]), xytext=(3, 3), textcoords="offset points", size=7)
