"""The part of the report about the effects of ablation: matrix, words, and the tables of own groups and of all cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import plots
from .cells import as_array
from .effects_words import change_unit, effects_headline, effects_words
from .parts import Part, Picture
from .tables import Column, Table, numbers, p_values, words

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from .effects_words import Rows

_NOTES = (
    "The tests generalise over items, given these controls and this selection. The smallest detectable change is a "
    "guide to what so many items can show: a smaller one that was not found is not thereby absent.",
)


def effects(found: Effects) -> Part:
    """Effects of ablating every set, on every group, by whatever metric, in the metric's unit."""
    interval, rows = found.interval(), found.summary()
    done = "alone is kept" if found.kind == "keep" else "is silenced"
    unit = "percentage points" if found.unit == "share" else found.unit
    caption = (
        f"Change of {found.metric} in {unit} when a set {done} (kind {found.kind}), with its 95 % interval "
        f"(bootstrap over items). * marks changes that are {found.expect} than those by the matched controls (one-sided "
        "sign-flip test over items, p < 0.05 after Benjamini-Hochberg over all cells). Red is harm. Beside: the change on the "
        "set's own group, the mean over the other groups, and the mean change by controls. Many groups leave room for less: "
        "the table below has every number."
    )
    picture = Picture(plots.effect_matrix(found, interval), f"Change of {found.metric} when a set {done}", caption)
    own = [row for row in rows if row["group"] is not None]
    tables = (effects_table(found, own),) if own else ()
    return Part(
        effects_words(found, rows), effects_headline(found, rows), (picture,), (*tables, cells_table(found, interval)),
        _NOTES,
    )  # fmt: skip


def effects_table(effects: Effects, rows: Rows) -> Table:
    """What ablating every set does to its own group, to the others and to twins, and what its controls do."""
    unit, changed = _unit(effects), change_unit(effects)

    def column(key: str) -> np.ndarray:
        return np.array([row[key] for row in rows], dtype=float)

    columns = [
        words("set", [row["set"] for row in rows], form="set"), numbers("neurons", column("size")),
        _values(effects, f"own group before ({unit})", column("base")), _values(effects, f"after ({unit})", column("ablated")),
        _changes(effects, f"change ({changed})", column("effect")),
        _changes(effects, "95 % interval", column("low"), high=column("high")),
        _changes(effects, f"others' change ({changed})", column("others") - column("others_base")),
        _changes(effects, f"controls' change ({changed})", column("controls") - column("base")),
        p_values("p against others", column("p_others")), p_values("p against controls", column("p_controls")),
        words("specific", ["yes" if row["specific"] else "no" for row in rows], filtered=True),
    ]  # fmt: skip
    if effects.twins is not None:
        columns += [
            _changes(effects, f"twins' change ({changed})", column("twin_effect")),
            p_values("p against twins", column("p_twins")),
        ]
    least = numbers(
        f"smallest detectable ({changed})", effects.scale * column("smallest_detectable"),
        ".1f" if effects.unit == "share" else ".3f",
    )  # fmt: skip
    caption = "Each set on its own group (p one-sided, Holm-corrected over the sets)"
    return Table("effects", caption, (*columns, least))


def cells_table(effects: Effects, interval: tuple[Any, Any]) -> Table:
    """Every cell of the effect matrix."""
    shape, unit, changed = effects.effect.shape, _unit(effects), change_unit(effects)
    p, _ = effects.corrected(cells="all", correction=plots.CELLS)
    low, high = (as_array(end).ravel() for end in interval)
    columns = [
        words("set silenced" if effects.kind != "keep" else "set kept", np.repeat(effects.sets, shape[1]), form="set",
              filtered=True),
        words("questions of", np.tile(effects.groups, shape[0]), filtered=True),
        _values(effects, f"{effects.metric} before ({unit})", effects.mean_base.expand(shape).flatten()),
        _values(effects, f"{effects.metric} after ({unit})", effects.mean_ablated.flatten()),
        _changes(effects, f"change ({changed})", effects.effect.flatten()), _changes(effects, "95 % interval", low, high=high),
        _changes(effects, f"change by controls ({changed})", effects.control_effect.flatten()),
        p_values("p against controls", p.flatten()),
    ]  # fmt: skip
    if effects.twins is not None:
        twins = effects.twins.effect.flatten()
        columns.append(_changes(effects, f"change of twins ({changed})", twins))
    caption = "Every set on every group (p one-sided, Benjamini-Hochberg over all cells)"
    return Table("effect-cells", caption, tuple(columns))


def _unit(effects: Effects) -> str:
    return "%" if effects.unit == "share" else effects.unit


def _values(effects: Effects, name: str, values: Sequence[float] | np.ndarray | torch.Tensor) -> Column:
    return numbers(name, effects.scale * as_array(values), ".1f" if effects.unit == "share" else ".3f")


def _changes(effects: Effects, name: str, values: Any, *, high: Any = None) -> Column:
    form = "+.1f" if effects.unit == "share" else "+.3f"
    above = None if high is None else effects.scale * as_array(high)
    return numbers(name, effects.scale * as_array(values), form, high=above)
