"""Parts of the report about effects along an axis (layers, doses) and about what the evaluation harness measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cells import as_array
from .effects_plots import MOST_PANELS, dose_response, harness_changes, layer_sweep
from .effects_words import change, change_unit, doing, harm, power_words
from .parts import Part, Picture
from .plots import SIGNIFICANT
from .tables import Table, numbers, p_values, written
from .tables import words as column
from .words import _listed, _many, _span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ..analysis.curves import Curve
    from ..analysis.evaluation import Evaluation

_ALONE = (
    "A curve says where and from what size on silencing matters; whether a whole set matters more to its own group than "
    "to others is the question of the effects of silencing."
)


def curve(found: Curve) -> Part:
    """What one layer's share of each set does, or larger and larger sets; the axis says which."""
    own = found.own()
    of = "when the share of the set that lies in one layer is silenced" if found.axis == "layer" else (
        "when a growing share of the neurons is silenced, those of the highest scores first"
    )  # fmt: skip
    caption = (
        f"Change on the set's own group {of} (kind {found.effects.kind}), with its 95 % interval (bootstrap over items). "
        "Grey: the range and the mean of matched random sets; dotted: the mean of the other groups."
    )
    if len(found.names) > MOST_PANELS:
        caption += f" The first {MOST_PANELS} of {len(found.names)} sets; the table has all."
    draw = layer_sweep if found.axis == "layer" else dose_response
    title = "Change by layer" if found.axis == "layer" else "Change by the share that is silenced"
    headline = None
    if found.effects.controls.shape[1]:
        sure = (own["p_controls"] < SIGNIFICANT).any(dim=1)
        headline = (
            f"{int(sure.sum())} of {len(sure)}",
            f"sets {harm(found.effects)} their own group beyond matched controls at some {_step(found)} (p < {SIGNIFICANT}, Holm)",
        )
    table = _curve_table(found, own)
    return Part(curve_words(found, own), headline, (Picture(draw(found), title, caption),), (table,), (_ALONE,))


def curve_words(found: Curve, own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """In which cells a step goes beyond its controls, where the mean is largest, and what could have been seen."""
    effects = found.effects
    known, total = torch.isfinite(own["effect"]), len(found.names) * len(found.steps)
    if not bool(known.any()):
        return ("No set bears the name of a group, so there is no own group to look at.",)
    said = [_mean_words(found)]
    if not effects.controls.shape[1]:
        said.append("There are no controls, so it cannot be said whether random neurons would do the same.")
    else:
        sure = own["p_controls"] < SIGNIFICANT
        shown = [
            f"{name} ({_listed([_place(found, t) for t in np.flatnonzero(as_array(sure[s])).tolist()])})"
            for s, name in enumerate(found.names)
            if bool(sure[s].any())
        ]
        said.append(
            f"{doing(effects)} {harm(effects, each=True)} the own group more than the mean of "
            f"{_many(effects.controls.shape[1], 'matched random set')} does in {int(sure.sum())} of "
            f"{_many(total, 'cell')} (sets by {_step(found)}s; one-sided sign-flip test over items, Holm over all cells, "
            f"p < {SIGNIFICANT})" + (f": {_listed(shown)}." if shown else ".")
        )
    return (*said, power_words(effects, of="cell"))


def _mean_words(found: Curve) -> str:
    effects, mean = found.effects, found.averaged()
    base = effects.scale * effects.mean_base[torch.isfinite(effects.mean_base)]
    per = "\u00a0%" if effects.unit == "share" else f" {effects.unit}"
    most = int((effects.sign * mean["effect"]).nan_to_num(nan=torch.inf).argmin())
    parts = [
        f"{name} {change(effects, float(mean[key][most]))}"
        for key, name in (("control", "controls"), ("others", "other groups"), ("twin", "own group's twins"))
        if key in mean and math.isfinite(float(mean[key][most]))
    ]
    return (
        f"With nothing silenced, {effects.metric} is {base.mean():.3g}{per} on the mean of {_many(len(base), 'group')}. "
        f"On the mean of {_many(len(found.names), 'set')}, the own group changes most at {_place(found, most)}: "
        f"{change(effects, float(mean['effect'][most]))} {change_unit(effects)}"
        + (f" ({', '.join(parts)})." if parts else ".")
    )


def _curve_table(found: Curve, own: Mapping[str, Tensor]) -> Table:
    scale, form = found.effects.scale, "+.1f" if found.effects.unit == "share" else "+.3f"
    flat = {key: as_array(values).ravel() * (1.0 if key == "p_controls" else scale) for key, values in own.items()}
    places = [100 * step if found.axis == "dose" else step for step in found.steps]
    of = change_unit(found.effects)
    columns = [
        column("set", np.repeat(found.names, len(places)), form="set", filtered=True),
        numbers("share (%)" if found.axis == "dose" else "layer", np.tile(places, len(found.names)), ".3g"),
        numbers("neurons", found.sizes.flatten()),
        numbers(f"own group ({of})", flat["effect"], form), numbers("95 % interval", flat["low"], form, high=flat["high"]),
        numbers("controls, mean", flat["control"], form),
        numbers("controls, range", flat["control_low"], form, high=flat["control_high"]),
        numbers("other groups", flat["others"], form),
    ]  # fmt: skip
    if "twin" in flat:
        columns.append(numbers("own group's twins", flat["twin"], form))
    columns.append(p_values("p against controls", flat["p_controls"]))
    caption = f"Change of {found.effects.metric} on the set's own group (p one-sided, Holm-corrected over all rows)"
    return Table("curve", caption, tuple(columns))


def evaluation(found: Evaluation) -> Part:
    """What the harness's tasks say with sets switched off, or after tuning."""
    rows = found.summary()
    columns = (
        column("task", [row["task"] for row in rows], filtered=True),
        column("metric", [_metric(row) for row in rows], filtered=True),
        column("run", [row["run"] for row in rows], filtered=True), numbers("documents", [row["samples"] for row in rows]),
        numbers("shots", [row["fewshot"] for row in rows]), numbers("value", [row["value"] for row in rows], ".4f"),
        numbers("standard error", [row["stderr"] for row in rows], ".4f"),
        numbers("change", [row["change"] for row in rows], "+.3f"),
        numbers("95 % interval", [row["low"] for row in rows], "+.3f", high=[row["high"] for row in rows]),
        numbers("controls, mean", [row["controls"] for row in rows], ".4f"),
        numbers("controls, range", [row["controls_low"] for row in rows], ".4f", high=[row["controls_high"] for row in rows]),
        p_values("p against controls", [row["p_controls"] for row in rows]),
    )  # fmt: skip
    notes = (
        "Values and standard errors are the harness's own. Change is against the intact run, with a paired bootstrap over "
        "documents; p is one-sided against the mean of the controls, Holm-corrected over the table.",
        "A drop on a task says nothing of where knowledge lies unless random sets leave the task alone: read it beside "
        "the controls.",
    )
    pictures = ()
    if found.changed and bool(found.change[found.changed].isfinite().any()):
        caption = (
            "Dots: change of a metric against the intact run, with its 95 % interval (paired bootstrap over documents). "
            "Grey crosses: the matched random sets, one each."
        )
        pictures = (Picture(harness_changes(found), "Change on the harness's tasks", caption),)
    table = Table("evaluation", "Every task, metric and run, without the controls' own rows", columns)
    return Part(evaluation_words(found, rows), None, pictures, (table,), notes)


def evaluation_words(found: Evaluation, rows: list[dict]) -> tuple[str, ...]:
    """For every run, on how many numbers it is beyond its controls, or beside zero where there are none."""
    tasks = list(dict.fromkeys(cell.task for cell in found.cells))
    documents = _span([cell.num_samples for cell in found.cells])
    said = [f"{_many(len(tasks), 'task')} of lm-evaluation-harness ({_listed(tasks)}), {documents} documents each."]
    if found.intact is None:
        return (*said, "There is no intact run, so nothing can be said of changes.")
    for place in found.changed:
        own = [row for row in rows if row["run"] == found.runs[place]]
        tested = [row for row in own if math.isfinite(row["p_controls"])]
        if tested:
            worse = [f"{row['task']} {_metric(row)}" for row in tested if row["p_controls"] < SIGNIFICANT]
            said.append(
                f"{found.runs[place]}: worse than {_many(tested[0]['num_controls'], 'matched random set')} on {len(worse)} of "
                f"{_many(len(tested), 'number')} (p < {SIGNIFICANT}, Holm)" + (f": {_listed(worse)}." if worse else ".")
            )
            continue
        known = [row for row in own if math.isfinite(row["low"])]
        moved = [
            f"{row['task']} {_metric(row)} {written(row['change'], '+.3f')}"
            for row in known
            if row["low"] * row["high"] > 0
        ]
        said.append(
            f"{found.runs[place]}: the 95 % interval of the change excludes zero on {len(moved)} of "
            f"{_many(len(known), 'number')} (not corrected; no controls)" + (f": {_listed(moved)}." if moved else ".")
        )
    tests = int(torch.isfinite(found.p_vs_controls).sum())
    if tests:
        fewest = math.ceil(math.log2(tests / SIGNIFICANT))
        said.append(f"With {_many(tests, 'test')}, no task of fewer than {fewest} documents could have shown anything.")
    return tuple(said)


def _metric(row: Mapping) -> str:
    return row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"


def _step(found: Curve) -> str:
    return "layer" if found.axis == "layer" else "dose"


def _place(found: Curve, step: int) -> str:
    value = found.steps[step]
    return f"layer {value:g}" if found.axis == "layer" else f"{100 * value:g} %"
