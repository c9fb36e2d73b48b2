"""The report's summary: sentences computed from the artefacts, each saying no more than its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from .forgetting import combine
from .plots import SIGNIFICANT
from .tables import points

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity


def scores_words(scores: Scores) -> str:
    """What was scored, over how many examples, by which method."""
    counts = scores.counts.tolist()
    return (
        f"{_many(len(scores.groups), 'group')} ({_listed(scores.groups)}) scored on "
        f"{scores.num_layers * scores.width:,} neurons of site {scores.site} "
        f"({_many(scores.num_layers, 'layer')} of {scores.width:,}), by method {scores.method} on objective "
        f"{scores.objective}, over {_span(counts)} examples a group."
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


def effects_words(effects: Effects) -> tuple[str, ...]:
    """For how many sets silencing hurts the own group more than the others and more than matched controls do."""
    base = 100 * effects.accuracy_base[torch.isfinite(effects.accuracy_base)]
    said = (
        f"With nothing silenced, {effects.metric} is {base.mean():.1f} % on the mean of "
        f"{_many(len(base), 'group')} ({_span(base.tolist(), '.1f')} %)."
    )
    rows = [row for row in effects.summary() if row["group"] is not None]
    controls = effects.controls.shape[1]
    if not rows:
        return said, "No set bears the name of a group, so there is no own group to compare with the others."
    if not controls:
        return said, "The study has no controls, so it cannot be said whether random neurons would do the same."
    specific = [row["set"] for row in rows if row["specific"]]
    change, others, random = (
        points(torch.tensor([row[now] - row[was] for row in rows]).nanmean()).text
        for now, was in (("ablated", "base"), ("others", "others_base"), ("controls", "base"))
    )
    found = (
        f"Silencing (kind {effects.kind}) hurts the own group more than the mean of the others and more than the mean "
        f"of {_many(controls, 'matched random set')} for {len(specific)} of {_many(len(rows), 'set')} (the larger of the "
        f"two p-values, Holm-corrected, below {SIGNIFICANT}). Mean change in percentage points: own group {change}, "
        f"other groups {others}, own group by controls {random}."
    )
    left = [row["set"] for row in rows if not row["specific"]]
    return (said, found, *((f"Not shown for {_listed(left)}.",) if left else ()))


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
        f"Of {_many(total, 'pair')} of sets, {more} share more neurons than random sets of their sizes would and "
        f"{fewer} fewer (corrected p < {SIGNIFICANT}); the other {total - more - fewer} cannot be told from chance. "
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
                f"{100 * now.mean():.1f} % ({low:.1f} to {high:.1f}; {points(now.mean() - was.mean()).text} points)"
            )
        sentences.append(words + ".")
    return sentences


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _span(numbers: Sequence[float] | Tensor, form: str = ",") -> str:
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low} to {high}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
