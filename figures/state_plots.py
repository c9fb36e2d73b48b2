"""Figures of layers and components: similarity of states, importance, redundancy; each from artefacts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .cells import CellSize, as_array, frame, heat
from .similarity_plots import sized
from .style import GRID, INK, FigureError, new_figure, palette, sequential, themed

if TYPE_CHECKING:
    from ..analysis.redundancy import Redundancy
    from ..analysis.representations import Representations
    from ..attribution.importance import Importance

_MOST_LINES = 10


def states_by_layer(found: Representations) -> Figure:
    """Lines by layer, from the embedding on: cosine of mean states and CKA, mean over pairs of groups (FuxiTranyu, figure 6).

    Bands reach from the lowest to the highest pair. CKA is left out where no examples match.
    """
    first, second = np.triu_indices(len(found.groups), 1)
    depth = found.cosine.shape[-1]
    named = (
        ("cosine of mean states", found.cosine),
        ("linear CKA", found.cka),
        ("CKA, 95 % of chance", found.cka_high),
    )
    with themed():
        figure = new_figure(min(12.0, max(6.5, 3.5 + 0.2 * depth)), 3.6)
        axes = figure.subplots()
        for (label, table), colour, marker in zip(named, [*palette(2), (0.5, 0.5, 0.5)], "os.", strict=True):
            pairs = as_array(table)[first, second].astype(float)
            if not np.isfinite(pairs).any():
                continue
            pairs = pairs[np.isfinite(pairs).all(axis=1)]
            axes.plot(range(depth), pairs.mean(axis=0), color=colour, marker=marker, label=label)
            if marker != ".":
                axes.fill_between(
                    range(depth), pairs.min(axis=0), pairs.max(axis=0), color=colour, alpha=0.15, linewidth=0
                )
        axes.set(xlabel="layer", ylabel=f"similarity of last-token states ({len(first)} pairs)")
        every = max(1, round(depth / 24))
        axes.set_xticks(range(0, depth, every), ["emb" if s == 0 else str(s - 1) for s in range(0, depth, every)])
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def state_matrix(found: Representations, *, state: int, cka: bool = False) -> Figure:
    """Heat map [group, group]: cosine of mean states (or CKA) behind a block, 0 for the embedding (FuxiTranyu, figure 3).

    Raises FigureError for a state that there is not.
    """
    if not 0 <= state < found.cosine.shape[-1]:
        raise FigureError(
            f"state is {state}; expected 0 (the embedding) to {found.cosine.shape[-1] - 1} (the last block)"
        )
    values = as_array(found.cka if cka else found.cosine)[..., state].astype(float).copy()
    np.fill_diagonal(values, np.nan)
    cell, notes = sized(values, digits=2)
    with themed(found.groups):
        figure = new_figure(*frame(found.groups, found.groups, cell=cell))
        axes = figure.subplots()
        heat(
            axes, values, columns=found.groups, rows=found.groups, colours=sequential(), notes=notes, points=cell.points,
            limits=(min(0.0, float(np.nanmin(values, initial=0.0))), 1.0), bar="linear CKA" if cka else "cosine",
        )  # fmt: skip
        axes.set_title("embedding" if state == 0 else f"layer {state - 1}", pad=10)
    return figure


def importance_by_layer(found: Importance) -> Figure:
    """Summed scores of every layer, a line for each group, or beyond ten groups a heat map (FuxiTranyu, figure 4)."""
    values = as_array(found.of_layers).astype(float)
    depth = values.shape[1]
    with themed(found.groups):
        if len(values) <= _MOST_LINES:
            figure = new_figure(min(12.0, max(6.5, 3.5 + 0.2 * depth)), 3.6)
            axes = figure.subplots()
            styles = ("-", "--", ":", "-.")
            for row, (name, colour) in enumerate(zip(found.groups, palette(len(values)), strict=True)):
                axes.plot(range(depth), values[row], color=colour, linestyle=styles[row % 4], marker="o", label=name)
            axes.set(xlabel="layer", ylabel="importance (sum of scores)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(True, axis="y", color=GRID, linewidth=0.6)
            figure.legend(loc="outside right upper", frameon=False)
            return figure
        cell = CellSize("", max(0.16, min(0.5, 10 / depth)), 0.24, 7.0)
        figure = new_figure(*frame(found.groups, ["00"], cell=cell, extra=cell.width * depth))
        axes = figure.subplots()
        every = max(1, round(depth / 32))
        heat(
            axes, values, columns=[str(n) if n % every == 0 else "" for n in range(depth)], rows=found.groups,
            colours=sequential(), limits=(0.0, float(values.max(initial=1e-9))), bar="importance", level=True,
        )  # fmt: skip
        axes.set(xlabel="layer")
    return figure


def importance_by_component(found: Importance) -> Figure:
    """Heat map [component, layer]: summed scores, mean over groups, as a share of all (FuxiTranyu, figure 5).

    A component is a site; sites that hold the same units (`gate`, `up`, `mlp`) each have their own sum.
    """
    mean = as_array(found.values).astype(float).mean(axis=0).T
    shares = 100 * mean / max(float(mean.sum()), 1e-30)
    depth = shares.shape[1]
    noted = depth <= 16
    cell = CellSize("", 0.5 if noted else max(0.16, 10 / depth), 0.32, 7.5)
    rows = [f"{name} ({int(width)})" for name, width in zip(found.components, as_array(found.widths), strict=True)]
    with themed():
        figure = new_figure(*frame(rows, ["00"], cell=cell, extra=cell.width * depth))
        axes = figure.subplots()
        heat(
            axes, shares, columns=[str(layer) for layer in range(depth)], rows=rows, colours=sequential(),
            limits=(0.0, float(shares.max(initial=1e-9))), points=cell.points, bar="share of the importance (%)",
            notes=np.array([[f"{v:.1f}" for v in row] for row in shares]) if noted else None, level=True,
        )  # fmt: skip
        axes.set(xlabel="layer", ylabel="component (neurons)")
    return figure


def redundancy_by_set(found: Redundancy) -> Figure:
    """Bars: the share of each set's neurons that others predict; in grey the range of matched random sets.

    The dashed line is the share of all neurons. Raises FigureError where no sets were measured.
    """
    if not found.groups:
        raise FigureError("this redundancy was measured without sets; give them to npl.redundancy")
    shares, random = 100 * as_array(found.shares), 100 * as_array(found.control_shares)
    with themed(found.groups):
        figure = new_figure(6.5, 1.2 + 0.3 * len(shares))
        axes = figure.subplots()
        axes.barh(range(len(shares)), shares, height=0.55, color=palette(1)[0], alpha=0.8, label="set")
        if random.size:
            low, mean, high = _ends(random)
            axes.errorbar(
                mean, range(len(shares)), xerr=[mean - low, high - mean], fmt="o", color="0.35", markersize=3, capsize=3,
                label="random sets, range",
            )  # fmt: skip
        axes.axvline(100 * found.whole, color=INK, linestyle="--", linewidth=0.9, label="all neurons")
        names = [f"{name} ({int(size)})" for name, size in zip(found.groups, as_array(found.sizes), strict=True)]
        axes.set_yticks(range(len(shares)), names)
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.set_xlabel(f"neurons that others predict (r\u00b2 \u2265 {found.threshold:g} held out), % of the set")
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def _ends(random: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.nan_to_num(np.asarray(random))
    return values.min(axis=1), values.mean(axis=1), values.max(axis=1)
