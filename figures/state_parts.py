"""Parts of the report about activations: similarity of states, and redundant neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from . import state_plots
from .cells import as_array
from .parts import Part, Picture
from .plots import SIGNIFICANT
from .tables import Table, numbers
from .tables import words as column
from .words import _listed, _many

if TYPE_CHECKING:
    from ..analysis.redundancy import Redundancy
    from ..analysis.representations import Representations


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
            said.append(against_words(shares, random, found.groups, "hold a larger share", "a smaller one"))
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


def against_words(values: np.ndarray, random: np.ndarray, groups: tuple[str, ...], more: str, less: str) -> str:
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
