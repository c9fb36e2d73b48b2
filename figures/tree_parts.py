"""Parts of the report about which groups are near one another: trees, and the Mantel test against distances known before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import similarity_plots
from .cells import as_array
from .parts import Part, Picture
from .plots import SIGNIFICANT
from .tables import MISSING, Table, numbers, written
from .tables import words as column
from .words import _listed, _many

if TYPE_CHECKING:
    from ..analysis.overlap import Overlap
    from ..analysis.study import Study
    from ..analysis.trees import Mantel, Tree


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
        f"{written(one.high, '+.2f')}, bootstrap over groups; Mantel test p {p_word(one.p)})."
    )
    seen = f"By chance 95 % lie from {written(one.null_low, '+.2f')} to {written(one.null_high, '+.2f')}"
    verdict = "this is more than chance." if one.p < SIGNIFICANT else (
        "this cannot be told from chance, and a correlation inside that range could not have been."
    )  # fmt: skip
    said = (result, f"{seen}: {verdict}", *few_words(count))
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


def few_words(count: int) -> tuple[str, ...]:
    """What the number of groups allows a permutation test to show."""
    if count > 5:
        return ()
    orders = math.factorial(count)
    return (f"{count} groups have only {orders} orders, so that p does not go far below {1 / orders:.3f}.",)


def p_word(value: float) -> str:
    return MISSING if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
