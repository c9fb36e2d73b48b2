"""Parts of the report about sets, overlap and similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import plots, result_tables, words
from .parts import Part, Picture

if TYPE_CHECKING:
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
