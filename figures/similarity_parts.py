"""Parts of the report about what groups have in common: agreement of ranks, what training moved, transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from . import similarity_plots
from .cells import as_array
from .parts import Part, Picture
from .plots import SIGNIFICANT
from .state_parts import against_words
from .tables import Column, Table, numbers, p_values, points, written
from .tables import words as column
from .tree_parts import few_words, p_word
from .words import _many

if TYPE_CHECKING:
    from ..analysis.movement import Movement
    from ..analysis.ranks import RankAgreement
    from ..analysis.transfer import Transfer


def ranks(found: RankAgreement) -> Part:
    """Whether groups put the same neurons first."""
    first, second = torch.triu_indices(len(found.groups), len(found.groups), offset=1)
    rbo, spearman, p_rbo, p_spearman, layered = (
        table[first, second]
        for table in (
            found.rbo, found.spearman, found.rbo_p_corrected, found.spearman_p_corrected,
            found.layer_spearman.nanmean(dim=-1),
        )
    )  # fmt: skip
    mean, low, high = found.rbo_chance.tolist()
    more, fewer = (p_rbo < SIGNIFICANT) & (rbo > mean), (p_rbo < SIGNIFICANT) & (rbo < mean)
    said = (
        f"Of {_many(len(first), 'pair')} of groups, {int(more.sum())} agree on their first neurons more than two random orders "
        f"would and {int(fewer.sum())} less (rank-biased overlap, p < {SIGNIFICANT}, Holm over pairs): mean "
        f"{float(rbo.mean()):.3f}, by chance {mean:.3f} (95 % {low:.3f} to {high:.3f}).",
        f"Over all neurons of site {found.site} the mean rank correlation is {written(float(spearman.mean()), '+.2f')}, within a "
        f"layer {written(float(layered.nanmean()), '+.2f')}; by chance 95 % lie within \u00b1{found.spearman_reach:.3f}.",
    )
    notes = (
        "Neurons of one layer score alike in all groups, so that agreement over the site is high by itself: read the "
        "correlation within layers beside it. Agreement of ranks does not say that the sets coincide; see the overlap.",
    )
    columns = (
        column("group", [found.groups[i] for i in first], form="set", filtered=True),
        column("other group", [found.groups[i] for i in second], form="set", filtered=True),
        numbers("rank-biased overlap", rbo, ".3f"), p_values("its corrected p", p_rbo),
        numbers("Spearman", spearman, "+.3f"), p_values("p of that, corrected", p_spearman),
        numbers("Spearman within layers", layered, "+.3f"),
    )  # fmt: skip
    caption = (
        "Below the diagonal rank-biased overlap, which weighs the first ranks most; above it Spearman's correlation over "
        "all neurons. * marks corrected p < 0.05 against random orders."
    )
    picture = Picture(similarity_plots.rank_matrix(found), "Agreement of the orders of two groups", caption)
    table = Table("ranks", "Every pair of groups (p two-sided, Holm-corrected over the pairs)", columns)
    return Part(said, None, (picture,), (table,), notes)


def movement(found: Movement) -> Part:
    """How far training moved the parameters of each set, beside random sets."""
    change, random = (as_array(t.double().nanmean(dim=-1)) for t in (found.change, found.control_change))
    draws = random.shape[1]
    said = [
        f"Training changed the parameters of the {_many(len(found.groups), 'set')} by {100 * np.nanmean(change):.2f} % of "
        "their norm, mean over sets and layers"
        + (f"; those of matched random sets by {100 * np.nanmean(random):.2f} %." if draws else ".")
    ]
    if draws:
        said.append(against_words(change, random, found.groups, "moved farther", "moved less far"))
    ends = (random.min(axis=1), random.max(axis=1)) if draws else (np.full(len(change), np.nan),) * 2
    columns = (
        column("set", found.groups, form="set"), numbers("neurons", found.counts.sum(dim=1)),
        numbers("change (% of norm)", 100 * change, ".2f"),
        numbers("random sets, range", 100 * ends[0], ".2f", high=100 * ends[1]),
        numbers("cosine before and after", found.cosine.double().nanmean(dim=-1), ".4f"),
    )  # fmt: skip
    caption = (
        "In the cells the norm of the difference over the norm before; colour: how many times random sets' (log2). Empty "
        "where a set has no neurons."
    )
    picture = Picture(similarity_plots.movement_by_layer(found), "How far training moved each set, by layer", caption)
    notes = (
        f"Before and after ({found.origin.get('after_name', 'the trained checkpoint')}). Neurons that moved are not thereby those "
        "that learned: large weights and large gradients move too.",
    )
    table = Table("movement", "Every set, mean over layers", columns)
    return Part(tuple(said), None, (picture,), (table,), notes)


def transfer(found: Transfer) -> Part:
    """Whether tasks with similar parameters help each other."""
    from ..analysis.statistics import holm

    said = [
        f"{name}: {written(r, '+.2f')} (95 % interval {written(low, '+.2f')} to {written(high, '+.2f')}, bootstrap over "
        f"tasks; p {p_word(p)}; by chance {written(null_low, '+.2f')} to {written(null_high, '+.2f')})"
        for name, (r, low, high, p, null_low, null_high) in zip(
            ("Pearson", "Spearman"), found.overall.tolist(), strict=True
        )
    ]
    count = len(found.groups)
    sure = holm(found.by_layer[:, :, 3]) < SIGNIFICANT
    verdict = "Tasks with more similar parameters help each other otherwise than by chance" if bool(
        (found.overall[:, 3] < SIGNIFICANT).any()
    ) else "It cannot be told from chance whether tasks with more similar parameters help each other more"  # fmt: skip
    text = (
        f"{verdict}, over the {count * (count - 1)} ordered pairs of {_many(count, 'task')}. {'; '.join(said)}.",
        f"Layer by layer, {int(sure.sum())} of {sure.numel()} correlations pass (p < {SIGNIFICANT}, Holm over layers and both "
        "kinds).",
    )
    off = [(a, b) for a in range(count) for b in range(count) if a != b]
    similar = found.similar.nanmean(dim=-1)
    columns = (
        column("learned", [found.groups[a] for a, _ in off], filtered=True),
        column("asked", [found.groups[b] for _, b in off], filtered=True),
        numbers("similarity", [float(similar[a, b]) for a, b in off], ".3f"),
        _measured(found, [float(found.gains[a, b]) for a, b in off]),
    )  # fmt: skip
    what = "the performance given" if found.origin.get("given") else "the change of accuracy"
    caption = (
        f"Left: a dot for each ordered pair of tasks: similarity of their sets' parameters, and {what} on one "
        "after learning the other. Right: the correlation in each layer with its 95 % interval over tasks."
    )
    picture = Picture(
        similarity_plots.similarity_and_transfer(found), "Similarity of parameters, and transfer", caption
    )
    notes = ("Intervals and tests treat tasks as the unit: more pairs of the same tasks are no more evidence.",)
    return Part(
        (*text, *few_words(count)),
        None,
        (picture,),
        (Table("transfer", "Every ordered pair of tasks", columns),),
        notes,
    )


def _measured(found: Transfer, values: list[float]) -> Column:
    """What was measured of every pair, as changes of accuracy or as it was given."""
    return numbers("performance", values, ".3g") if found.origin.get("given") else points("change (points)", values)
