"""The figures: each function takes artefacts and returns a matplotlib Figure; nothing is shown or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..neurons.sets import NeuronSet
from .cells import BARE, FULL, CellSize, as_array, cell_size, frame, heat, signed
from .forgetting import forgetting as forgetting
from .style import GRID, FigureError, diverging, new_figure, palette, sequential, themed

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity

SIGNIFICANT = 0.05
CELLS = "benjamini_hochberg"  # of a whole matrix: Holm over hundreds of cells lies beyond what permutations can resolve
_FARTHEST = 4.0  # log2: colours end at 16 times chance, so that one pair without overlap does not pale all others


def neurons_by_layer(sets: Mapping[str, NeuronSet]) -> Figure:
    """Heat map [group, layer]: the share of each set's neurons that lie in a layer, in per cent.

    Rows of sets that are spread evenly have 100 / layers per cent everywhere. The row of an empty set stays empty.
    Raises FigureError when there are no sets, or when they differ in subject or in their number of layers.
    """
    _one_subject(sets)
    layers = {s.num_layers for s in sets.values()}
    if len(layers) != 1:
        raise FigureError(f"expected sets of one subject and site, found {len(sets)} sets with {sorted(layers)} layers")
    depth = layers.pop()
    counts = np.stack([as_array(s.per_layer) for s in sets.values()]).astype(float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    rows = [f"{name} ({int(total)})" for name, total in zip(sets, totals[:, 0], strict=True)]
    noted = depth <= 16 and len(rows) <= 40
    cell = CellSize("", 0.5 if noted else max(0.16, min(0.5, 10 / depth)), 0.3 if len(rows) <= 40 else 0.2, 7.5)
    every = max(1, round(depth / 32))
    columns = [str(layer) if layer % every == 0 else "" for layer in range(depth)]
    notes = np.array([[f"{v:.0f}" if np.isfinite(v) else "" for v in row] for row in shares]) if noted else None
    with themed(rows):
        figure = new_figure(*frame(rows, ["00"], cell=cell, extra=cell.width * depth))
        axes = figure.subplots()
        heat(
            axes, shares, columns=columns, rows=rows, colours=sequential(),
            limits=(0.0, float(np.nanmax(shares, initial=1))), notes=notes,
            points=cell.points, bar="share of the set (%)", level=True,
        )  # fmt: skip
        axes.set(xlabel=f"layer (an even spread would be {100 / depth:.1f} % in each)", ylabel="set (neurons)")
    return figure


def _one_subject(sets: Mapping[str, NeuronSet]) -> None:
    owners = {s.subject: name for name, s in sets.items()}
    if len(owners) > 1:
        listed = ", ".join(f"{subject} ({name})" for subject, name in list(owners.items())[:4])
        raise FigureError(f"expected sets of one subject, found sets of {listed}; draw each subject's sets apart")


def effect_matrix(effects: Effects, interval: tuple[Tensor, Tensor] | None = None) -> Figure:
    """Heat map [set, group]: change of the metric, in its own unit, when a set is ablated, with its interval.

    Red is harm: a fall of what should be high, a rise of what should be low. An asterisk marks changes that are worse (for
    kept sets better) than those by the matched controls at a corrected p below 0.05. Beside it stand, per set, the change on
    its own group, the mean over the others and the mean of the controls on its own group (where sets and groups share no
    names: the means over all groups). `interval` is that of the effects, where it is known.
    """
    change = effects.scale * as_array(effects.effect)
    low, high = (effects.scale * as_array(bound) for bound in interval or effects.interval())
    starred = as_array(effects.corrected(cells="all", correction=CELLS)[0]) < SIGNIFICANT
    limit, digits = _limit_and_digits(effects, change)
    cell = cell_size(max(change.shape))
    if cell.detail == FULL and effects.unit != "share":
        longest = max(len(signed(value, digits=digits)) for value in (np.nanmin(low), np.nanmax(high), limit))
        cell = replace(cell, width=max(cell.width, 0.055 * (2 * longest + 5)))
    side, headings = _beside(effects)
    notes = np.full(change.shape, "", dtype=object)
    for place in np.ndindex(change.shape):
        mark = "*" if starred[place] else ""
        value = signed(change[place], digits=digits if cell.detail == FULL else max(0, digits - 1))
        ends = [signed(end[place], digits=digits - (effects.unit == "share")) for end in (low, high)]
        span = f"\n{ends[0]} to {ends[1]}" if value else ""
        notes[place] = {FULL: f"{value}{mark}{span}", BARE: mark}.get(cell.detail, f"{value}{mark}")
    with themed([*effects.sets, *effects.groups]):
        wide = CellSize(FULL, 0.62, cell.height, 7.5)
        width, height = frame(effects.sets, [*effects.groups, headings[-1]], cell=cell, extra=3 * wide.width + 0.4)
        figure = new_figure(width, height)
        main, beside = figure.subplots(1, 2, width_ratios=[cell.width * change.shape[1], wide.width * len(headings)])
        fall_is_harm = bool(effects.origin.get("higher_is_better", True))
        colours = {"colours": diverging() if fall_is_harm else diverging().reversed(), "limits": (-limit, limit)}
        heat(main, change, columns=effects.groups, rows=effects.sets, notes=notes, points=cell.points, **colours)
        side_notes = np.array([[signed(v, digits=digits) for v in row] for row in side], dtype=object)
        unit = "points" if effects.unit == "share" else effects.unit
        heat(
            beside, side, columns=headings, rows=None, notes=None if cell.detail == BARE else side_notes,
            points=wide.points, bar=f"change of {effects.metric} ({unit})", **colours,
        )  # fmt: skip
        main.set(xlabel="questions of group", ylabel="set kept alone" if effects.kind == "keep" else "set silenced")
    return figure


def _limit_and_digits(effects: Effects, change: np.ndarray) -> tuple[float, int]:
    """Where the colours end, and decimals: one for percentage points, else three digits of the largest change."""
    largest = float(np.nanmax(np.abs(change), initial=0.0))
    if effects.unit == "share":
        return max(1.0, largest), 1
    return largest or 1.0, int(np.clip(2 - np.floor(np.log10(largest or 1.0)), 0, 4))


def _beside(effects: Effects) -> tuple[np.ndarray, list[str]]:
    """The columns beside the effect matrix [set, column], in the metric's unit, and their headings."""
    change, control = (effects.scale * as_array(values) for values in (effects.effect, effects.control_effect))
    own = np.array([-1 if place is None else place for place in effects.own_group], dtype=int)
    if (own < 0).any():
        return np.stack([_mean(change.T), _mean(control.T)], axis=1), ["all groups", "all groups, controls"]
    rows = np.arange(len(own))
    others = change.copy()
    others[rows, own] = np.nan
    beside = np.stack([change[rows, own], _mean(others.T), control[rows, own]], axis=1)
    return beside, ["own group", "other groups", "own, by controls"]


def overlap_matrix(overlap: Overlap) -> Figure:
    """Heat map [group, group]: overlap of two sets against chance.

    The colour is log2(Jaccard / expected Jaccard of random sets of the same sizes); the cells say the Jaccard
    index and the ratio, with an asterisk where the corrected p is below 0.05. The diagonal holds the sizes. A pair that
    shares nothing has the colour of half a shared neuron: pale where chance expects few, dark where it expects many.
    """
    jaccard, expected = as_array(overlap.jaccard).astype(float), as_array(overlap.expected).astype(float)
    ratio = np.divide(jaccard, expected, out=np.full_like(jaccard, np.nan), where=expected > 0)
    np.fill_diagonal(ratio, np.nan)
    logs = np.log2(np.where(ratio > 0, ratio, _half_a_neuron(overlap, expected)))
    limit = float(np.clip(np.max(np.abs(logs), initial=1.0, where=np.isfinite(logs)), 1.0, _FARTHEST))
    cell = cell_size(len(overlap.groups))
    starred = as_array(overlap.p_corrected) < SIGNIFICANT
    notes = np.full(jaccard.shape, "", dtype=object)
    for place in np.ndindex(jaccard.shape):
        mark = "*" if starred[place] else ""
        times = f"×{_short(ratio[place])}{mark}" if np.isfinite(ratio[place]) else ""
        full = f"{jaccard[place]:.3f}\n{times}"
        notes[place] = {FULL: full, BARE: mark}.get(cell.detail, times) if place[0] != place[1] else ""
    with themed(overlap.groups):
        figure = new_figure(*frame(overlap.groups, overlap.groups, cell=cell))
        axes = figure.subplots()
        heat(
            axes, logs, columns=overlap.groups, rows=overlap.groups,
            notes=notes, points=cell.points, colours=diverging(), limits=(-limit, limit),
            bar="log2 (Jaccard / chance)", open_ended=True,
        )  # fmt: skip
        for place, size in enumerate(as_array(overlap.sizes)) if cell.detail != BARE else ():
            axes.text(
                place + 0.5, place + 0.5, f"{int(size)}", ha="center", va="center", size=cell.points, style="italic"
            )
    return figure


def _half_a_neuron(overlap: Overlap, expected: np.ndarray) -> np.ndarray:
    """The ratio to chance [group, group] of two sets of these sizes with half a neuron in common; NaN on the diagonal."""
    sizes = as_array(overlap.sizes).astype(float)
    ratio = np.full_like(expected, np.nan)
    known = (expected > 0) & ~np.eye(len(expected), dtype=bool)
    np.divide(0.5 / np.maximum(sizes[:, None] + sizes - 0.5, 0.5), expected, out=ratio, where=known)
    return ratio


def _short(ratio: Any) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def similarity_by_layer(similarity: Similarity) -> Figure:
    """Lines by layer: cosine of the parameters of two sets, mean over pairs, with and without the neurons they share.

    The bands hold the middle 90 % of the pairs; the grey band is the mean chance interval of random sets of the same
    sizes.
    """
    first, second = np.triu_indices(len(similarity.groups), k=1)
    if not len(first):
        raise FigureError(
            f"similarity needs at least two groups, found {len(similarity.groups)}: {', '.join(similarity.groups)}"
        )
    layers = np.arange(similarity.values.shape[-1])

    def pairs(values: Tensor) -> np.ndarray:
        return as_array(values)[first, second].astype(float)

    named = (("all neurons of both sets", similarity.values), ("without shared neurons", similarity.values_unshared))
    with themed():
        figure = new_figure(min(12.0, max(6.5, 3.5 + 0.2 * len(layers))), 3.6)
        axes = figure.subplots()
        low, high = (_mean(pairs(bound)) for bound in (similarity.chance_low, similarity.chance_high))
        axes.fill_between(layers, low, high, color="0.5", alpha=0.25, linewidth=0, label="chance, interval")
        axes.plot(layers, _mean(pairs(similarity.chance)), color="0.5", linestyle=":", label="chance, mean")
        for (label, values), colour, marker in zip(named, palette(2), "os", strict=True):
            chosen = pairs(values)
            axes.plot(layers, _mean(chosen), color=colour, marker=marker, label=label)
            if len(first) > 1:
                axes.fill_between(layers, *_middle(chosen), color=colour, alpha=0.18, linewidth=0)
        pairs_text = "one pair" if len(first) == 1 else f"mean of {len(first)} pairs"
        axes.set(xlabel="layer", ylabel=f"cosine of parameters ({pairs_text})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def _middle(pairs: np.ndarray) -> np.ndarray:
    """The 5th and 95th percentile over pairs [2, layer]; NaN in layers where no pair has a value."""
    bounds = np.full((2, pairs.shape[1]), np.nan)
    some = np.isfinite(pairs).any(axis=0)
    bounds[:, some] = np.nanquantile(pairs[:, some], [0.05, 0.95], axis=0)
    return bounds
