"""Parts of the report about sets, effects, overlap and similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import plots, result_tables, words
from .parts import Part, Picture

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity
    from ..analysis.study import Study


def sets(study: Study) -> Part:
    found = study.sets
    by_site: dict[str, dict] = {}
    for name, one in found.items():
        by_site.setdefault(one.site, {})[name] = one
    caption = "Each cell is the share of a set's neurons that lie in a layer, in per cent; in brackets its neurons."
    pictures = tuple(
        Picture(
            plots.neurons_by_layer(chosen),
            "Where the neurons of each set lie, by layer" + (f" (site {site})" if len(by_site) > 1 else ""), caption,
        )
        for site, chosen in by_site.items()
    )  # fmt: skip
    sizes = sorted(len(one) for one in found.values())
    span = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    headline = (f"{len(found):,}", f"{'set' if len(found) == 1 else 'sets'} of {span} neurons")
    return Part((words.sets_words(found),), headline, pictures, (result_tables.sets_table(found),))


def effects(found: Effects) -> Part:
    """Effects of silencing every set, on every group."""
    interval, rows = found.interval(), found.summary()
    if found.base.dtype != torch.bool:  # not right or wrong
        return _of_another_metric(found, interval)
    caption = (
        f"Change of accuracy in percentage points when a set is silenced (kind {found.kind}), with its 95 % interval "
        "(bootstrap over items). * marks changes that are worse than those by the matched controls (one-sided sign-flip "
        "test over items, p < 0.05 after Benjamini-Hochberg over all cells). Beside: the change on the set's own group, "
        "the mean over the other groups, and the mean change by controls. Many groups leave room for less: "
        "the table below has every number."
    )
    picture = Picture(plots.effect_matrix(found, interval), "Change of accuracy when a set is silenced", caption)
    own = [row for row in rows if row["group"] is not None]
    tables = (result_tables.effects_table(rows),) if own else ()
    notes = (
        "The tests generalise over items, given these controls and this selection. The smallest detectable drop is a "
        "guide to what so many items can show: a smaller one that was not found is not thereby absent.",
    )
    headline = None
    if own and found.controls.shape[1]:
        count = sum(row["specific"] for row in own)
        headline = (
            f"{count} of {len(own)}",
            "sets hurt their own group more than the others and more than matched controls (p < 0.05, Holm)",
        )
    cells = result_tables.effect_cells_table(found, interval)
    return Part(words.effects_words(found, rows), headline, (picture,), (*tables, cells), notes)


def _of_another_metric(found: Effects, interval: tuple[Any, Any]) -> Part:
    """What another metric than accuracy says, in its own unit."""
    unit = "percentage points" if found.unit == "share" else found.unit
    own = [(s, g) for s, g in enumerate(found.own_group) if g is not None]
    lines = [
        f"Measured by {found.metric} (in {unit}) under kind {found.kind}: the change of each group's mean by each set, with its "
        "95 % interval (bootstrap over items) and the mean change by matched controls."
    ]
    if own and found.controls.shape[1]:
        p = found.corrected(cells="own")[0]
        sure = sum(bool(float(p[s]) < plots.SIGNIFICANT) for s, _ in own)
        lines.append(
            f"{sure} of {len(own)} sets make their own group {found.expect} than matched controls do (one-sided, p < 0.05 after "
            "Holm)."
        )
    return Part(tuple(lines), tables=(result_tables.metric_cells_table(found, interval),))


def overlap(found: Overlap) -> Part:
    """Overlap of every pair against chance."""
    if len(found.groups) < 2:
        return Part(("There is one set only, and no pair to compare.",))
    caption = (
        "Colour: log2 of the Jaccard index over its mean by chance. In the cells the Jaccard index and how many times "
        "chance it is; * marks corrected p < 0.05; on the diagonal the neurons of the set. Many groups leave room for "
        "less: the table below has every number."
    )
    picture = Picture(plots.overlap_matrix(found), "Overlap of sets against chance", caption)
    null = found.origin.get("null")
    notes = (f"By chance: two sets drawn independently at random, {null}.",) if null else ()
    first, second = torch.triu_indices(len(found.groups), len(found.groups), offset=1)
    sure = int((found.p_corrected[first, second] < plots.SIGNIFICANT).sum())
    headline = (f"{sure:,} of {len(first):,}", "pairs of sets overlap otherwise than by chance (corrected p < 0.05)")
    return Part((words.overlap_words(found),), headline, (picture,), (result_tables.overlap_table(found),), notes)


def similarity(found: Similarity) -> Part:
    """Parameter similarity by layer."""
    if len(found.groups) < 2:
        return Part(("There is one set only, and nothing to compare its parameters with.",))
    caption = (
        "Lines: mean over pairs of sets of the cosine of their mean parameter vectors; bands: the middle 90 % of the "
        "pairs. Grey: random sets with the same counts by layer, mean and mean 95 % interval. Shared neurons raise a "
        "cosine by themselves."
    )
    name = "Similarity of the parameters of two sets, by layer"
    picture = Picture(plots.similarity_by_layer(found), name, caption)
    return Part((words.similarity_words(found),), None, (picture,), (result_tables.similarity_table(found),))
