"""Tables of what was found: one function for each artefact, which says the columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..neurons.sets import NeuronSet
from .tables import Table, numbers, p_values, percent, points, words

if TYPE_CHECKING:
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity


def sets_table(sets: Mapping[str, NeuronSet]) -> Table:
    """Neurons of each set, in all and by layer."""
    chosen = list(sets.values())
    depth = max((s.num_layers for s in chosen), default=0)
    counts = np.full((len(chosen), depth), np.nan)
    for row, one in enumerate(chosen):
        counts[row, : one.num_layers] = one.per_layer.numpy()
    columns = (
        words("set", sets, form="set"), words("site", [s.site for s in chosen]),
        numbers("neurons", [len(s) for s in chosen]), numbers("share of site (%)", [100 * s.share for s in chosen], ".2f"),
        *(numbers(f"layer {layer}", counts[:, layer]) for layer in range(depth)),
    )  # fmt: skip
    return Table("sets", "Neurons of each set, in all and by layer", columns)


def overlap_table(overlap: Overlap) -> Table:
    """Every pair of sets: overlap, chance, interval of chance and p."""
    first, second = torch.triu_indices(len(overlap.groups), len(overlap.groups), offset=1)
    expected = overlap.expected[first, second]
    columns = (
        words("set", [overlap.groups[i] for i in first], form="set", filtered=True),
        words("other set", [overlap.groups[i] for i in second], form="set", filtered=True),
        numbers("shared neurons", overlap.intersections[first, second]),
        numbers("Jaccard", overlap.jaccard[first, second], ".4f"), numbers("by chance", expected, ".4f"),
        numbers("95 % of chance", overlap.low[first, second], ".4f", high=overlap.high[first, second]),
        numbers("times chance", overlap.jaccard[first, second] / torch.where(expected > 0, expected, torch.nan), ".2f"),
        p_values("p", overlap.p[first, second]), p_values("corrected p", overlap.p_corrected[first, second]),
    )  # fmt: skip
    return Table("overlap", "Overlap of every pair of sets against chance", columns)


def similarity_table(similarity: Similarity) -> Table:
    """Every pair of sets: cosine of their parameters, mean over layers, beside chance."""
    first, second = torch.triu_indices(len(similarity.groups), len(similarity.groups), offset=1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values[first, second].double().nanmean(dim=-1)

    columns = (
        words("set", [similarity.groups[i] for i in first], form="set", filtered=True),
        words("other set", [similarity.groups[i] for i in second], form="set", filtered=True),
        numbers("all neurons", mean(similarity.values), ".3f"),
        numbers("without shared ones", mean(similarity.values_unshared), ".3f"),
        numbers("random sets", mean(similarity.chance), ".3f"),
        numbers(
            "95 % of random sets", mean(similarity.chance_low), ".3f", high=mean(similarity.chance_high)
        ),
    )  # fmt: skip
    return Table("similarity", "Cosine of the parameters of every pair of sets, mean over layers", columns)


def retention_table(retention: Any) -> Table:
    """Accuracy of every group before and after tuning, by method."""
    count = len(retention.methods)
    roles = [
        "learned" if group == retention.group else "trained before" if group in retention.trained_groups else "other"
        for group in retention.groups
    ]
    before = retention.before.repeat(count)
    columns = (
        words("method", np.repeat(retention.methods, len(roles)), filtered=True),
        words("group", np.tile(retention.groups, count), filtered=True), words("role", np.tile(roles, count), filtered=True),
        percent("before (%)", before), percent("after (%)", retention.after.flatten()),
        percent("95 % interval of after (%)", retention.after_low.flatten(), high=retention.after_high.flatten()),
        points("change (points)", retention.after.flatten() - before),
    )  # fmt: skip
    return Table("retention", f"What tuning on {retention.group} changed, group by group", columns)
