"""The tables of the report: rows from artefacts, with what is shown and what it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from .cells import signed
from .plots import CELLS

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..analysis.overlap import Overlap

MISSING = "\u2013"


@dataclass(frozen=True)
class Cell:
    """What a cell shows; `order` is what its column is sorted by where it is a number."""

    text: str
    order: float | None = None

    @property
    def is_number(self) -> bool:
        return self.order is not None


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first column heads its rows."""

    key: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return any(row[column].is_number for row in self.rows)


def text(value: object) -> Cell:
    """A cell of words."""
    return Cell(str(value))


def number(value: Any, form: str = ",.0f") -> Cell:
    """A cell with a number, in this format; a dash, sorted last, where there is none."""
    value = float(value)
    return Cell(format(value, form).replace("-", "\u2212"), value) if math.isfinite(value) else Cell(MISSING, -math.inf)


def percent(value: Any) -> Cell:
    """A share as per cent."""
    return number(100 * float(value), ".1f")


def points(value: Any) -> Cell:
    """A difference of shares in percentage points, with its sign."""
    value = 100 * float(value)
    return Cell(signed(value), value) if math.isfinite(value) else Cell(MISSING, -math.inf)


def p_value(value: Any) -> Cell:
    """A p value; those below 0.0001 say so."""
    value = float(value)
    return Cell("< 0.0001", value) if value < 1e-4 else number(value, ".4f")


def range_of(low: Any, high: Any) -> Cell:
    """An interval of a difference of shares, in percentage points; sorted by its lower end."""
    low, high = 100 * float(low), 100 * float(high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Cell(MISSING, -math.inf)
    return Cell(f"{signed(low)} to {signed(high)}", low)


def sets_table(sets: Mapping[str, NeuronSet]) -> Table:
    """Neurons of each set, in all and by layer."""
    depth = max((s.num_layers for s in sets.values()), default=0)
    columns = ("set", "site", "neurons", "share of site (%)", *(f"layer {layer}" for layer in range(depth)))
    rows = tuple(
        (text(name), text(s.site), number(len(s)), number(100 * s.share, ".2f"), *map(number, s.per_layer.tolist()))
        for name, s in sets.items()
    )
    return Table("sets", "Neurons of each set, in all and by layer", columns, rows)


def top_neurons_table(scores: Scores, sets: Mapping[str, NeuronSet], *, count: int = 10) -> Table:
    """The neurons of each group with the highest scores, and whether its set holds them."""
    columns = ("group", "rank", "layer", "neuron", "score", "signed score", "standard error", "in the group's set")
    error, rows = scores.error, []
    for place, group in enumerate(scores.groups):
        best = torch.topk(scores.values[place].flatten(), min(count, scores.values[place].numel())).indices.tolist()
        for rank, flat in enumerate(best, start=1):
            layer, neuron = divmod(flat, scores.width)
            measured = (tensor[place, layer, neuron] for tensor in (scores.values, scores.signed, error))
            held = (
                MISSING
                if group not in sets or sets[group].site != scores.site
                else "yes"
                if (layer, neuron) in sets[group]
                else "no"
            )
            rows.append((
                text(group), number(rank), number(layer), number(neuron), *(number(x,
                ".4g") for x in measured), text(held),
            ))  # fmt: skip
    caption = (
        f"The {count} neurons of each group with the highest scores (site {scores.site}). A positive signed score says "
        "that the neuron helps the group; the standard error is that of the score over examples"
    )
    return Table("top-neurons", caption, columns, tuple(rows))


def effects_table(effects: Effects) -> Table:
    """What silencing every set does to its own group, to the others, and what its controls do."""
    columns = (
        "set", "neurons", "own group before (%)", "after (%)", "change (points)", "95 % interval",
        "others' change (points)",
        "controls' change (points)", "p against others", "p against controls", "specific",
        "smallest detectable (points)",
    )  # fmt: skip
    rows = tuple(
        (
            text(row["set"]), number(row["size"]), percent(row["base"]), percent(row["ablated"]), points(row["effect"]),
            range_of(row["low"], row["high"]), points(row["others"] - row["others_base"]),
            points(row["controls"] - row["base"]),
            p_value(row["p_others"]), p_value(row["p_controls"]), text("yes" if row["specific"] else "no"),
            number(100 * row["smallest_detectable"], ".1f"),
        )
        for row in effects.summary()
        if row["group"] is not None
    )  # fmt: skip
    caption = "Each set on its own group (p one-sided, Holm-corrected over the sets)"
    return Table("effects", caption, columns, rows)


def effect_cells_table(effects: Effects) -> Table:
    """Every cell of the effect matrix."""
    columns = (
        "set silenced", "questions of", "accuracy before (%)", "accuracy after (%)", "change (points)", "95 % interval",
        "change by controls (points)", "p against controls",
    )  # fmt: skip
    low, high = effects.interval()
    p, _ = effects.corrected(cells="all", correction=CELLS)
    rows = tuple(
        (
            text(name), text(group), percent(effects.accuracy_base[g]), percent(effects.accuracy_ablated[s, g]),
            points(effects.effect[s, g]), range_of(low[s, g], high[s, g]), points(effects.control_effect[s,
            g]), p_value(p[s, g]),
        )
        for s, name in enumerate(effects.sets)
        for g, group in enumerate(effects.groups)
    )  # fmt: skip
    return Table(
        "effect-cells", "Every set on every group (p one-sided, Benjamini-Hochberg over all cells)", columns, rows
    )


def overlap_table(overlap: Overlap) -> Table:
    """Every pair of sets: overlap, chance, interval of chance and p."""
    columns = (
        "set", "other set", "shared neurons", "Jaccard", "by chance", "95 % of chance", "times chance", "p",
        "corrected p",
    )  # fmt: skip
    rows = []
    for a, b in _pairs(overlap.groups):
        expected, low, high = (float(t[a, b]) for t in (overlap.expected, overlap.low, overlap.high))
        ratio = float(overlap.jaccard[a, b]) / expected if expected > 0 else math.nan
        chance = (
            Cell(f"{low:.4f} to {high:.4f}", low)
            if math.isfinite(low) and math.isfinite(high)
            else Cell(MISSING, -math.inf)
        )
        rows.append((
            text(overlap.groups[a]), text(overlap.groups[b]), number(overlap.intersections[a, b]),
            number(overlap.jaccard[a, b], ".4f"), number(expected, ".4f"), chance, number(ratio, ".2f"),
            p_value(overlap.p[a, b]), p_value(overlap.p_corrected[a, b]),
        ))  # fmt: skip
    return Table("overlap", "Overlap of every pair of sets against chance", columns, tuple(rows))


def retention_table(retention: Any) -> Table:
    """Accuracy of every group before and after tuning, by method."""
    columns = ("method", "group", "role", "before (%)", "after (%)", "95 % interval of after (%)", "change (points)")
    rows = []
    for m, method in enumerate(retention.methods):
        for g, group in enumerate(retention.groups):
            before, after = float(retention.before[g]), float(retention.after[m, g])
            low, high = 100 * float(retention.after_low[m, g]), 100 * float(retention.after_high[m, g])
            role = (
                "learned"
                if group == retention.group
                else "trained before"
                if group in retention.trained_groups
                else "other"
            )
            rows.append((
                text(method), text(group), text(role), percent(before), percent(after),
                Cell(f"{low:.1f} to {high:.1f}", low), points(after - before),
            ))  # fmt: skip
    return Table("retention", f"What tuning on {retention.group} changed, group by group", columns, tuple(rows))


def _pairs(groups: Sequence[str]) -> list[tuple[int, int]]:
    return [(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups))]
