"""The report's summary: sentences computed from the artefacts, each saying no more than its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..neurons.atlas import Record
from ..neurons.sets import NeuronSet
from .forgetting import combine
from .plots import SIGNIFICANT
from .tables import written

if TYPE_CHECKING:
    from ..analysis.agreement import Agreement
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity
    from ..attribution.fidelity_result import Fidelity
    from ..attribution.importance import Importance
    from ..attribution.stability import Stability


def scores_words(scores: Record) -> str:
    """What was scored, over how many examples, by which method; from the record, whose values are not read."""
    meta, (_, layers, width) = scores.meta, scores.arrays["values"].shape
    return (
        f"{_many(len(meta['groups']), 'group')} ({_listed(meta['groups'])}) scored on {layers * width:,} neurons of site "
        f"{meta['site']} ({_many(layers, 'layer')} of {width:,}), by method {meta['method']} on objective "
        f"{meta['objective']}, over {_span(list(scores.arrays['counts'][:]))} examples a group."
    )


def sets_words(sets: Mapping[str, NeuronSet]) -> str:
    """How many neurons the sets hold, alone and together."""
    chosen = list(sets.values())
    shares = _span([100 * s.share for s in chosen], ".2f")
    words = f"{_many(len(chosen), 'set')} of {_span([len(s) for s in chosen])} neurons ({shares} % of the site)"
    if len({(s.site, s.subject, tuple(s.mask.shape)) for s in chosen}) == 1:
        union = reduce(lambda a, b: a | b, chosen)
        words += f"; together {len(union):,} different neurons ({100 * union.share:.2f} %)"
    return words + "."


def overlap_words(overlap: Overlap) -> str:
    """How many pairs of sets share more, or fewer, neurons than chance."""
    first, second = torch.triu_indices(len(overlap.groups), len(overlap.groups), offset=1)
    jaccard, expected, p = (t[first, second].double() for t in (overlap.jaccard, overlap.expected, overlap.p_corrected))
    known = torch.isfinite(jaccard) & torch.isfinite(expected)
    if not bool(known.any()):
        return "There is no pair of sets whose overlap could be compared with chance."
    sure = known & (p < SIGNIFICANT)
    more, fewer = int((sure & (jaccard > expected)).sum()), int((sure & (jaccard < expected)).sum())
    total = int(known.sum())
    return (
        f"Of {_many(total, 'pair')} of sets, {more:,} share more neurons than random sets of their sizes would and "
        f"{fewer} fewer (corrected p < {SIGNIFICANT}); the other {total - more - fewer:,} cannot be told from chance. "
        f"Mean Jaccard index {jaccard[known].mean():.3f}, by chance {expected[known].mean():.3f}."
    )


def similarity_words(similarity: Similarity) -> str:
    """How alike the parameters of two sets are, next to chance."""
    first, second = torch.triu_indices(len(similarity.groups), len(similarity.groups), offset=1)
    shared, unshared, chance, high = (
        t[first, second].double()
        for t in (similarity.values, similarity.values_unshared, similarity.chance, similarity.chance_high)
    )
    known = torch.isfinite(unshared) & torch.isfinite(high)
    if not bool(known.any()):
        return "There is no pair of sets whose parameters could be compared without their shared neurons."
    above = int((unshared > high)[known].sum())
    return (
        f"Mean cosine of the parameters of two sets, over pairs and layers: {shared.nanmean():.3f}; without the "
        f"neurons they share {unshared.nanmean():.3f}; random sets {chance.nanmean():.3f}. Without shared neurons, "
        f"{above:,} of {int(known.sum()):,} pairs in a layer lie above the 95 % interval of random sets (not "
        "corrected for their number)."
    )


def retention_words(retention: Any) -> list[str]:
    """What every method learned and forgot; one sentence a method."""
    new = retention.groups.index(retention.group)
    kept = [retention.groups.index(group) for group in retention.trained_groups]
    sentences = []
    for m, method in enumerate(retention.methods):
        before, after = float(retention.before[new]), float(retention.after[m, new])
        interval = f"{100 * float(retention.after_low[m, new]):.1f} to {100 * float(retention.after_high[m, new]):.1f}"
        words = (
            f"Tuning on {retention.group} by method {method} ({int(retention.trainable[m]):,} numbers trained) took "
            f"its accuracy from {100 * before:.1f} % to {100 * after:.1f} % (95 % interval {interval})"
        )
        if kept:
            was, now = retention.before[kept].double(), retention.after[m, kept].double()
            low, high = (
                100 * combine(bound[m, kept].double().numpy(), now.numpy(), sign)
                for bound, sign in ((retention.after_low, -1), (retention.after_high, 1))
            )
            words += (
                f", and the mean over {_many(len(kept), 'trained group')} from {100 * was.mean():.1f} % to "
                f"{100 * now.mean():.1f} % ({low:.1f} to {high:.1f}; {_points(now.mean() - was.mean())} points)"
            )
        sentences.append(words + ".")
    return sentences


def continual_words(result: Any) -> tuple[str, ...]:
    """What each method knew at the end of the stream, and forgot; one sentence a method."""
    sentences = []
    seeds = _many(len(result.seeds), "seed")
    parts = {name: result.interval(name) for name in ("average_accuracy", "forgetting", "known_forgetting")}
    for m, method in enumerate(result.methods):
        mean, low, high = (100 * float(part[m]) for part in parts["average_accuracy"])
        words = f"After {_many(len(result.tasks), 'task')}, {method} answers {mean:.1f} % right{_between(low, high)}"
        for name, what in (("forgetting", "of the stream"), ("known_forgetting", "of what was known before")):
            lost, low, high = (100 * float(part[m]) for part in parts[name])
            if math.isfinite(lost):
                words += f"; forgotten {what}: {written(lost, '+.1f')} points{_between(low, high)}"
        sentences.append(words + ".")
    spread = "95 % t interval over seeds" if len(result.seeds) > 1 else "one run, no interval"
    return (f"A stream of {_many(len(result.tasks), 'task')}, means over {seeds} ({spread}).", *sentences)


def sweep_words(sweep: Any) -> tuple[str, ...]:
    """The smallest and the largest share that was tuned, on both sides."""
    sentences = []
    for title, groups in (("trained on", sweep.in_domain), ("not trained on", sweep.out_of_domain)):
        mean, low, high = (100 * part.double() for part in sweep.interval(groups))
        if not len(groups):
            continue
        ends = sorted({0, len(mean) - 1})
        shown = " and ".join(
            f"{mean[i]:.1f} %{_between(float(low[i]), float(high[i]))} with {100 * sweep.settings[i]['share']:g} % of the "
            "neurons tuned" for i in ends
        )  # fmt: skip
        sentences.append(f"Accuracy on the {_many(len(groups), 'group')} {title}: {shown}.")
    return tuple(sentences)


def translation_words(table: Any) -> tuple[str, ...]:
    """What each method learned and lost."""
    gain, lost = table.gain().nanmean(dim=1), table.forgetting().nanmean(dim=1)
    seeds = _many(len(table.seeds), "seed")
    return tuple(
        f"Tuning on {_listed(table.learned)} by {method} raised chrF there by {written(float(gain[m]), '+.1f')} and cost "
        f"{written(float(lost[m]), '+.1f')} on what was known in the other pairs (means over {seeds})."
        for m, method in enumerate(table.methods)
    )


def fidelity_words(fidelity: Fidelity, summary: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """How well every method ranks neurons, with its interval."""
    best = [
        f"{row['method']} {row['correlation']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        for row in summary
        if row["method"] != "random"
    ]
    sure = [row["method"] for row in summary if row["method"] != "random" and row["deletion_low"] > 0]
    return (
        f"Rank correlation of scores with exact silencing, over {fidelity.exact.shape[1]} random neurons, mean over "
        f"{_many(len(fidelity.groups), 'group')} (95 % interval over neurons): {', '.join(best)}.",
        f"On held-out examples, silencing the first neurons does more harm than random orders for {len(sure)} of "
        f"{_many(len(fidelity.methods), 'method')} (interval over items above zero)"
        + (f": {_listed(sure)}." if sure else "."),
    )


def stability_words(stability: Stability) -> str:
    """How far a set moves with each thing that was changed."""
    said = []
    for axis in dict.fromkeys(stability.axes):
        rows = [row for row, name in enumerate(stability.axes) if name == axis]
        chance = float(stability.chance[rows].mean())
        mean, lowest = float(stability.jaccard[rows].mean()), float(stability.jaccard[rows].min())
        said.append(f"{axis} {mean:.2f} (lowest {lowest:.2f}, by chance {chance:.3f})")
    return (
        f"Selected again with one thing changed, a group's set agrees with the one of the settings given by a mean Jaccard "
        f"index of: {'; '.join(said)}."
    )


def importance_words(importance: Importance) -> str:
    """The layer and the component with the largest share of the scores."""
    values = importance.values.double().mean(dim=0)
    total = float(values.sum())
    if not total > 0:
        return "All scores are zero."
    layer, component = int(values.sum(dim=1).argmax()), int(values.sum(dim=0).argmax())
    return (
        f"Of the scores of all components, layer {layer} holds the most ({100 * float(values[layer].sum()) / total:.1f} % of "
        f"{_many(values.shape[0], 'layer')}), and component {importance.components[component]} "
        f"({100 * float(values[:, component].sum()) / total:.1f} %), mean over {_many(len(importance.groups), 'group')}."
    )


def agreement_words(agreement: Agreement) -> str:
    """The mean agreement over pairs of methods."""
    first, second = np.triu_indices(len(agreement.methods), k=1)
    rank, top = (values[:, first, second].mean(axis=0) for values in (agreement.correlation, agreement.jaccard))
    chance = agreement.top / (2 - agreement.top)
    return (
        f"{_many(len(agreement.methods), 'method')} on site {agreement.site} ({_listed(agreement.methods)}): rank "
        f"correlation of two methods' scores {_span(list(rank), '.2f')}; the top {100 * agreement.top:g} % agree by a "
        f"Jaccard index of {_span(list(top), '.2f')} (by chance {chance:.3f})."
    )


def _points(value: Any) -> str:
    return written(100 * float(value), "+.1f")


def _between(low: float, high: float) -> str:
    return f" ({low:.1f} to {high:.1f})" if math.isfinite(low) and math.isfinite(high) else ""


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _span(numbers: Sequence[float] | Tensor, form: str = ",") -> str:
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low} to {high}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
