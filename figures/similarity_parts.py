"""Parts of the report about how groups relate: ranks, trees, distances, movement, transfer, states, redundancy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import similarity_plots, state_plots
from .cells import as_array
from .parts import Part, Picture
from .plots import SIGNIFICANT
from .tables import MISSING, Table, numbers, p_values, points, written
from .tables import words as column
from .words import _listed, _many

if TYPE_CHECKING:
    from ..analysis.movement import Movement
    from ..analysis.overlap import Overlap
    from ..analysis.ranks import RankAgreement
    from ..analysis.redundancy import Redundancy
    from ..analysis.representations import Representations
    from ..analysis.study import Study
    from ..analysis.transfer import Transfer
    from ..analysis.trees import Mantel, Tree


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


def trees(study: Study) -> Part:
    """The trees of a study, each beside the overlap that it is of, where the study holds that."""
    shared = [study.get("overlap", name) for name in study.names("overlap")]
    said, pictures, tables = [], [], []
    for name in study.names("tree"):
        found = study.get("tree", name)
        said.append(_tree_words(found))
        tables.append(_joins(found))
        beside = next((one for one in shared if one.groups == found.groups and _of_one(one, found)), None)
        if beside is not None:
            caption = (
                "Each row is a leaf of the tree on the left; two branches meet at the distance of the groups that they join. "
                "The map has the Jaccard index of every pair in the same order."
            )
            title = f"Groups by what their sets share ({name})" if len(study.names("tree")) > 1 else (
                "Groups by what their sets share"
            )  # fmt: skip
            pictures.append(Picture(similarity_plots.tree_beside_map(beside, found), title, caption))
    notes = [
        "A tree can be drawn from any distances, random ones too, and is no test: whether two sets share more than chance "
        "stands under the overlap, whether the tree follows a distance known before is for the Mantel test.",
    ]
    if len(pictures) < len(tables):
        notes.append("A tree whose overlap is no part of the study is given in numbers alone.")
    return Part(tuple(said), None, tuple(pictures), tuple(tables), tuple(notes))


def _of_one(overlap: Overlap, found: Tree) -> bool:
    """Whether the overlap's distances are those that the tree was made of (where its index can be compared)."""
    if found.origin.get("index", "jaccard") != "jaccard":
        return True
    own = (1 - overlap.jaccard.double()).fill_diagonal_(0.0)
    return own.shape == found.distance.shape and bool(torch.allclose(own, found.distance.double(), atol=1e-6))


def _tree_words(found: Tree) -> str:
    names = _clusters(found)
    a, b, height, _ = found.linkage[0].tolist()
    last = float(found.linkage[-1, 2])
    kept = "" if math.isnan(found.cophenetic) else (
        f" Distances and the heights of the tree correlate by {found.cophenetic:.2f}: so much of the table the tree keeps."
    )  # fmt: skip
    return (
        f"{_many(len(found.groups), 'group')}, joined by {found.origin.get('linkage', 'average')} linkage on 1 \u2212 "
        f"{found.origin.get('index', 'jaccard')}. The nearest are {names[int(a)]} and {names[int(b)]} (distance {height:.3f}); all "
        f"are joined at {last:.3f}.{kept}"
    )


def _clusters(found: Tree) -> list[str]:
    """What every cluster of the linkage holds, groups first."""
    members = [[name] for name in found.groups]
    for a, b, *_ in found.linkage.tolist():
        members.append([*members[int(a)], *members[int(b)]])
    return [_listed(each) for each in members]


def _joins(found: Tree) -> Table:
    names, steps = _clusters(found), found.linkage.tolist()
    columns = (
        numbers("step", np.arange(1, len(steps) + 1)), column("joins", [names[int(a)] for a, *_ in steps]),
        column("with", [names[int(b)] for _, b, *_ in steps]), numbers("at distance", found.linkage[:, 2], ".3f"),
        numbers("groups then", found.linkage[:, 3]),
    )  # fmt: skip
    return Table("tree", "How the groups are joined, the nearest first", columns)


def mantel(found: Mantel) -> Part:
    """Whether sets are nearer where a given distance is."""
    one, count = found.agreement, len(found.groups)
    source = f" ({found.origin['source']})" if found.origin.get("source") else ""
    result = (
        f"Distances between the sets of {_many(count, 'group')} and the distances given for them{source} correlate by "
        f"{written(one.r, '+.2f')} ({found.origin.get('method', 'spearman')}; 95 % interval {written(one.low, '+.2f')} to "
        f"{written(one.high, '+.2f')}, bootstrap over groups; Mantel test p {_p(one.p)})."
    )
    seen = f"By chance 95 % lie from {written(one.null_low, '+.2f')} to {written(one.null_high, '+.2f')}"
    verdict = "this is more than chance." if one.p < SIGNIFICANT else (
        "this cannot be told from chance, and a correlation inside that range could not have been."
    )  # fmt: skip
    said = (result, f"{seen}: {verdict}", *_few(count))
    caption = "One dot a pair of groups. Right: farther apart by what was given; up: sets that share less."
    picture = Picture(similarity_plots.distances_against_overlap(found), "Distances given, and of the sets", caption)
    first, second = np.triu_indices(count, 1)
    columns = (
        column("group", [found.groups[i] for i in first], filtered=True),
        column("other group", [found.groups[i] for i in second], filtered=True),
        numbers("distance given", as_array(found.given)[first, second], ".3g"),
        numbers("distance of the sets", as_array(found.distance)[first, second], ".4f"),
    )  # fmt: skip
    notes = (
        "A correlation with a given distance does not say that it is the cause: what else goes with it does as well.",
    )
    return Part(said, None, (picture,), (Table("mantel", "Every pair of groups", columns),), notes)


def _few(count: int) -> tuple[str, ...]:
    """What the number of groups allows a permutation test to show."""
    if count > 5:
        return ()
    orders = math.factorial(count)
    return (f"{count} groups have only {orders} orders, so that p does not go far below {1 / orders:.3f}.",)


def _p(value: float) -> str:
    return MISSING if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


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
        said.append(_against(change, random, found.groups, "moved farther", "moved less far"))
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


def _against(values: np.ndarray, random: np.ndarray, groups: tuple[str, ...], more: str, less: str) -> str:
    """How many sets lie beyond every random set of theirs, and how often chance does that."""
    draws = random.shape[1]
    above, below = (values[:, None] > random).all(axis=1), (values[:, None] < random).all(axis=1)
    named = [name for name, over in zip(groups, np.atleast_1d(above), strict=True) if over]
    return (
        f"{int(above.sum())} of {_many(len(groups), 'set')} {more} than each of {_many(draws, 'random set')} with the "
        "same counts by layer"
        + (f" ({_listed(named)})" if named else "")
        + f", {int(below.sum())} {less}; by chance a set does either with probability 1/{draws + 1} (not corrected)."
    )


def transfer(found: Transfer) -> Part:
    """Whether tasks with similar parameters help each other."""
    from ..analysis.statistics import holm

    said = [
        f"{name}: {written(r, '+.2f')} (95 % interval {written(low, '+.2f')} to {written(high, '+.2f')}, bootstrap over "
        f"tasks; p {_p(p)}; by chance {written(null_low, '+.2f')} to {written(null_high, '+.2f')})"
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
        points("change (points)", [float(found.gains[a, b]) for a, b in off]),
    )  # fmt: skip
    caption = (
        "Left: a dot for each ordered pair of tasks: similarity of their sets' parameters, and the change of accuracy on one "
        "after learning the other. Right: the correlation in each layer with its 95 % interval over tasks."
    )
    picture = Picture(
        similarity_plots.similarity_and_transfer(found), "Similarity of parameters, and transfer", caption
    )
    notes = ("Intervals and tests treat tasks as the unit: more pairs of the same tasks are no more evidence.",)
    return Part(
        (*text, *_few(count)), None, (picture,), (Table("transfer", "Every ordered pair of tasks", columns),), notes
    )


def representations(found: Representations) -> Part:
    """How alike the states of groups are, layer by layer."""
    from ..analysis.statistics import benjamini_hochberg

    first, second = torch.triu_indices(len(found.groups), len(found.groups), offset=1)
    cosine, low, high = (as_array(t[first, second]) for t in (found.cosine, found.cosine_low, found.cosine_high))
    cka, by_chance = (as_array(t[first, second]) for t in (found.cka, found.cka_high))
    mean = cosine.mean(axis=0)
    names = [_state(state) for state in range(len(mean))]
    said = [
        f"The mean last-token states of two groups have a cosine of {mean[0]:.3f} behind the embedding and {mean[-1]:.3f} "
        f"behind the last layer, mean over {_many(len(first), 'pair')}; it is lowest behind {names[int(mean.argmin())]} "
        f"({mean.min():.3f}) and highest behind {names[int(mean.argmax())]} ({mean.max():.3f}). The 95 % interval of a pair "
        f"(bootstrap over items) is {np.nanmean(high - low):.3f} wide on the mean."
    ]
    known = np.isfinite(cka)
    if known.any():
        sure = benjamini_hochberg(found.cka_p[first, second]) < SIGNIFICANT
        matched = found.matched[first, second]
        said.append(
            f"Over examples that say the same ({int(matched.min())} to {int(matched.max())} a pair), linear CKA is "
            f"{cka[known].mean():.3f} on the mean; in {int(sure.sum()):,} of {int(known.sum()):,} pairs and layers it is more than "
            f"with the matching undone (p < {SIGNIFICANT}, Benjamini-Hochberg)."
        )
    else:
        said.append(
            f"CKA could not be measured: fewer than four examples of two groups have one {found.origin.get('match', 'item')}."
        )
    notes = () if found.origin.get("center") else (
        "States of all groups have a large common part, which holds these cosines up in groups that have nothing to do with "
        "each other: compare layers and pairs, not a cosine with 0, or take the common part off (--center).",
    )  # fmt: skip
    return Part(tuple(said), None, _state_pictures(found), (_state_table(names, cosine, cka, by_chance),), notes)


def _state(state: int) -> str:
    return "the embedding" if state == 0 else f"layer {state - 1}"


def _state_pictures(found: Representations) -> tuple[Picture, ...]:
    lines = Picture(
        state_plots.states_by_layer(found), "Similarity of states, by layer",
        "Means over pairs of groups; bands reach from the lowest to the highest pair.",
    )  # fmt: skip
    last = found.cosine.shape[-1] - 1
    if len(found.groups) < 3:
        return (lines,)
    title = f"Cosine of mean states behind {_state(last)}"
    return lines, Picture(
        state_plots.state_matrix(found, state=last), title, "Colour and cells: the cosine of a pair of groups."
    )


def _state_table(names: list[str], cosine: np.ndarray, cka: np.ndarray, by_chance: np.ndarray) -> Table:
    columns = [
        column("behind", names), numbers("cosine, mean of pairs", cosine.mean(axis=0), ".3f"),
        numbers("lowest and highest pair", cosine.min(axis=0), ".3f", high=cosine.max(axis=0)),
    ]  # fmt: skip
    rows = np.isfinite(cka).all(axis=1)
    if rows.any():
        columns += [
            numbers("linear CKA", cka[rows].mean(axis=0), ".3f"),
            numbers("CKA, 95 % of chance", by_chance[rows].mean(axis=0), ".3f"),
        ]
    return Table("states", "Every layer, over pairs of groups", tuple(columns))


def redundancy(found: Redundancy) -> Part:
    """Which neurons others of their layer predict, in all and in each set."""
    r2, still = as_array(found.r2), int(torch.isnan(found.r2).sum())
    draws = found.control_shares.shape[1] if found.groups else 0
    tokens = found.origin.get("tokens")
    said = [
        f"Of {r2.size:,} neurons of site {found.site}, {100 * found.whole:.1f} % are redundant: "
        f"{found.origin.get('predictors', 'a few')} others of their layer predict {100 * found.threshold:g} % of "
        "their variance or more"
        + (f" on {tokens[1]:,} tokens of held-out items" if tokens else " on held-out tokens")
        + f". With every neuron's tokens shuffled, 97.5 % of neurons stay below {100 * float(found.chance.max()):.1f} %."
        + (f" {_many(still, 'neuron')} never varied and count as not redundant." if still else "")
    ]
    pictures = ()
    if found.groups:
        if draws:
            shares, random = as_array(found.shares), as_array(found.control_shares)
            said.append(_against(shares, random, found.groups, "hold a larger share", "a smaller one"))
        caption = "Bars: share of a set's neurons that others predict. Grey: matched random sets, mean and range."
        pictures = (Picture(state_plots.redundancy_by_set(found), "Redundant neurons in each set", caption),)
    notes = (
        f"The threshold ({found.threshold:g}) is a choice. Two neurons that predict each other are both redundant, though only one "
        "could go; and what is predicted need not be what the model reads.",
    )
    return Part(tuple(said), None, pictures, _redundancy_tables(found, draws), notes)


def _redundancy_tables(found: Redundancy, draws: int) -> tuple[Table, ...]:
    r2 = found.r2.double()
    columns = (
        numbers("layer", np.arange(len(r2))), numbers("redundant (%)", 100 * found.redundant.double().mean(dim=1), ".1f"),
        numbers("median share explained", r2.nanmedian(dim=1).values, ".3f"),
        numbers("97.5 % of shuffled", found.chance, ".3f"),
    )  # fmt: skip
    layers = Table("layers", "Every layer", columns)
    if not found.groups:
        return (layers,)
    nothing = torch.full(found.shares.shape, torch.nan)
    low, high = (found.control_shares.amin(dim=1), found.control_shares.amax(dim=1)) if draws else (nothing, nothing)
    own = (
        column("set", found.groups, form="set"), numbers("neurons", found.sizes),
        numbers("redundant (%)", 100 * found.shares, ".1f"),
        numbers("random sets, range (%)", 100 * low, ".1f", high=100 * high),
    )  # fmt: skip
    return Table("sets", "Every set", own), layers
