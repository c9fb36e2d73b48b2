"""Parts of the report about tuning: one step, a stream of tasks, what is tuned, translation."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import plots, result_tables, words
from .cells import as_array
from .continual import continual as continual_figure
from .parts import Part, Picture
from .sweeps import sweep_lines
from .tables import Table, numbers, percent, points
from .tables import words as column
from .translations import translation_changes

_METRICS = {
    "average_accuracy": "accuracy at the end (%)", "forgetting": "forgotten (points)",
    "backward_transfer": "backward transfer (points)", "forward_transfer": "forward transfer (points)",
    "known_forgetting": "forgotten of what was known before (points)",
}  # fmt: skip


def retention(found: Any) -> Part:
    """What tuning learned and forgot."""
    caption = (
        "Dashed: before tuning. Large dots with 95 % intervals: after; the interval of a mean over groups combines "
        "theirs as independent. Small dots: the trained groups one by one."
    )
    picture = Picture(plots.forgetting(found), "Accuracy before and after tuning, by method", caption)
    return Part(tuple(words.retention_words(found)), None, (picture,), (result_tables.retention_table(found),))


def continual(found: Any) -> Part:
    """What methods kept of a stream of tasks."""
    caption = (
        "Accuracy in % after every stage (rows) on every task (columns, in the order of learning), mean over seeds. "
        "Bars: what was forgotten, mean over seeds with its 95 % t interval and a dot for every seed."
    )
    picture = Picture(continual_figure(found), "Accuracy after every stage, and what was forgotten", caption)
    columns = [column("method", found.methods), numbers("numbers trained", found.trainable)]
    for name, title in _METRICS.items():
        mean, low, high = (as_array(part) for part in found.interval(name))
        if np.isfinite(mean).any():
            make = percent if name == "average_accuracy" else points
            columns += [make(title, mean), make("95 % t interval", low, high=high)]
    caption = f"Metrics of every method, mean over {len(found.seeds)} seeds"
    return Part(words.continual_words(found), None, (picture,), (Table("continual", caption, tuple(columns)),))


def sweep(found: Any) -> Part:
    """Accuracy by what was tuned."""
    caption = (
        "Accuracy after tuning with sets of different shares of the neurons, mean over seeds with the 95 % t interval: on "
        "the groups that were trained on, and on those that were not. Dashed: before tuning."
    )
    picture = Picture(sweep_lines(found), "Accuracy by share of the neurons that are tuned", caption)
    columns = [
        numbers("share tuned (%)", [100 * one["share"] for one in found.settings], ".1f"),
        column("overlap", [_overlap(one.get("overlap", "natural")) for one in found.settings]),
        numbers("neurons", as_array(found.sizes).mean(axis=1)),
    ]
    for title, groups in (("trained on (%)", found.in_domain), ("not trained on (%)", found.out_of_domain)):
        mean, low, high = found.interval(groups)
        columns += [percent(title, mean), percent("95 % t interval", low, high=high)]
    columns += [numbers("Jaccard", found.jaccard.mean(dim=1), ".3f"), numbers("by chance", found.chance, ".3f")]
    table = Table("sweep", f"Every setting, mean over {len(found.seeds)} seeds", tuple(columns))
    return Part(words.sweep_words(found), None, (picture,), (table,))


def translations(found: Any) -> Part:
    """What tuning learned and lost in translation."""
    caption = (
        "Change of chrF after tuning, mean over seeds (dots: seeds): on what was new in the learned pairs, and on what was "
        "known in the pairs that were not trained on. chrF runs from 0 to 100."
    )
    picture = Picture(translation_changes(found), "Translation quality learned and lost, by method", caption)
    columns = [column("method", found.methods), numbers("numbers trained", found.trainable)]
    for title, values in (("chrF gained", found.gain()), ("chrF lost", found.forgetting())):
        columns.append(numbers(title, values.nanmean(dim=1), "+.1f"))
    table = Table("translations", f"chrF by method, mean over {len(found.seeds)} seeds", tuple(columns))
    return Part(words.translation_words(found), None, (picture,), (table,))


def _overlap(value: Any) -> str:
    return value if isinstance(value, str) else f"{100 * value:g} %"
