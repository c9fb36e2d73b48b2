"""What the report says of effects: what was done, for how many sets the tests hold, the twins, and what could be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .plots import SIGNIFICANT
from .tables import written
from .words import _listed, _many, _span

if TYPE_CHECKING:
    from ..analysis.effects import Effects

Rows = Sequence[Mapping[str, Any]]
_VERBS = {"hurt": "hurts", "spare": "spares", "help": "helps"}
_DONE = {"keep": "Keeping a set alone and silencing all else of its site", "scale": "Scaling the activations of a set"}


def effects_words(effects: Effects, summary: Rows) -> tuple[str, ...]:
    """For how many sets ablation does to the own group what was looked for, beside others, controls and twins."""
    rows = [row for row in summary if row["group"] is not None]
    if not rows:
        missing = "No set bears the name of a group, so there is no own group to compare with the others."
        return _start_words(effects), missing
    said = [_start_words(effects), *_test_words(effects, rows)]
    if effects.twins is not None:
        said.append(_twin_words(effects, rows))
    return (*said, power_words(effects, of="set")) if effects.controls.shape[1] else tuple(said)


def effects_headline(effects: Effects, summary: Rows) -> tuple[str, str] | None:
    """The tile: for how many sets the tests hold, twins included; None where no control was asked."""
    rows = [row for row in summary if row["group"] is not None]
    if not (rows and effects.controls.shape[1]):
        return None
    found, than = shown(rows)
    text = f"sets {harm(effects)} their own group more than {than} (p < {SIGNIFICANT}, Holm)"
    if effects.twins is not None:
        text += f"; {len(beyond_twins(rows))} of {len(rows)} more than the questions' knowledge-free twins"
    return f"{len(found)} of {len(rows)}", text


def shown(rows: Rows) -> tuple[list[Any], str]:
    """The sets for which the tests hold, and beside what; where there are no other groups, beside controls alone."""
    if all(math.isnan(row["p_others"]) for row in rows):
        return [row["set"] for row in rows if row["p_controls"] < SIGNIFICANT], "matched controls"
    return [row["set"] for row in rows if row["specific"]], "the others and more than matched controls"


def beyond_twins(rows: Rows) -> list[str]:
    """The sets that do more to their group's questions than to the questions' twins."""
    return [row["set"] for row in rows if row["p_twins"] < SIGNIFICANT]


def doing(effects: Effects) -> str:
    """What was done to a set, as the subject of a sentence."""
    return _DONE.get(effects.kind, "Silencing")


def harm(effects: Effects, *, each: bool = False) -> str:
    """What the tests look for, as a verb: hurt, spare (what is kept), or help."""
    verb = "hurt" if effects.expect == "worse" else "spare" if effects.kind == "keep" else "help"
    return _VERBS[verb] if each else verb


def change(effects: Effects, value: float) -> str:
    """A change of the metric, with its sign and without its unit."""
    return written(effects.scale * value, "+.1f" if effects.unit == "share" else "+.3f")


def change_unit(effects: Effects) -> str:
    """The unit of a change."""
    return "points" if effects.unit == "share" else effects.unit


def power_words(effects: Effects, *, of: str) -> str:
    """How many items there were, and the smallest change that they could have shown, over sets or cells."""
    text = (
        f"Each group has {_span(effects.num_items.tolist())} items ({_span(effects.num_questions.tolist())} questions)"
    )
    least = effects.smallest_detectable
    known = effects.scale * least[least.isfinite()]
    if len(known):
        text += (
            f"; the smallest change beyond the controls' that would be found 4 times in 5 is {_span(known.tolist(), '.3g')} "
            f"{change_unit(effects)}"
        )
    if bool(least.isinf().any()):
        text += f"; in {_many(int(least.isinf().sum()), of)} nothing could be shown, for want of items"
    return text + "."


def _start_words(effects: Effects) -> str:
    base = effects.scale * effects.mean_base[torch.isfinite(effects.mean_base)]
    form, unit = (".1f", " %") if effects.unit == "share" else (".3f", f" {effects.unit}")
    return (
        f"With nothing silenced, {effects.metric} is {base.mean():{form}}{unit} on the mean of "
        f"{_many(len(base), 'group')} ({_span(base.tolist(), form)}{unit})."
    )


def _test_words(effects: Effects, rows: Rows) -> list[str]:
    """The sentences on controls and others."""
    controls = effects.controls.shape[1]
    if not controls:
        return ["The study has no controls, so it cannot be said whether random neurons would do the same."]
    found, _ = shown(rows)
    alone = all(math.isnan(row["p_others"]) for row in rows)
    means = [("own group", "ablated", "base"), ("other groups", "others", "others_base")][: 1 if alone else 2]
    means.append(("own group by controls", "controls", "base"))
    changes = ", ".join(f"{name} {change(effects, _mean(rows, now, was))}" for name, now, was in means)
    kind = f"kind {effects.kind}" + (f", factor {effects.origin.get('factor')}" if effects.kind == "scale" else "")
    others = "" if alone else "the mean of the others and more than "
    p = "p, Holm-corrected, below" if alone else "the larger of the two p-values, Holm-corrected, below"
    said = [
        f"{doing(effects)} ({kind}) {harm(effects, each=True)} the own group more than {others}the "
        f"mean of {_many(controls, 'matched random set')} for {len(found)} of {_many(len(rows), 'set')} ({p} {SIGNIFICANT}). "
        f"Mean change in {'percentage ' if effects.unit == 'share' else ''}{change_unit(effects)}: {changes}."
    ]
    left = [row["set"] for row in rows if row["set"] not in found]
    if left:
        said.append(f"Not shown for {_listed(left)}.")
    if alone:
        said.append("There is no other group, so it cannot be said whether the sets are specific to theirs.")
    return said


def _twin_words(effects: Effects, rows: Rows) -> str:
    """What the negative control says."""
    found = beyond_twins(rows)
    changes = [
        change(effects, _mean(rows, now, was)) for now, was in (("ablated", "base"), ("twin_ablated", "twin_base"))
    ]
    said = (
        f"Negative control: {len(found)} of {_many(len(rows), 'set')} {harm(effects)} their group's questions more than the "
        f"questions' knowledge-free twins (sign-flip test over items, Holm, p < {SIGNIFICANT})"
        + (f": {_listed(found)}" if found else "")
        + f". Mean change in {change_unit(effects)}: questions {changes[0]}, twins {changes[1]}."
    )
    if len(found) < len(rows):
        said += " Where twins change as much, the set may carry the wording or the answer's tokens instead of the knowledge."
    return said


def _mean(rows: Rows, now: str, was: str) -> float:
    return float(torch.tensor([row[now] - row[was] for row in rows], dtype=torch.float64).nanmean())
