"""Trees of groups by what their sets share, and whether they follow a distance that was known before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from .overlap import Overlap
from .tables import Agreement, Correlation, correlate

Index = Literal["jaccard", "coefficient", "above chance"]
Linkage = Literal["average", "complete", "single"]


@dataclass(frozen=True, eq=False)
class Tree:
    """Groups joined step by step, the nearest first.

    `linkage` [step, 4] is scipy's: the two clusters joined, their distance, the number of groups in the new one.
    `order` [group] is the order of the leaves, `distance` [group, group] what was joined by. `cophenetic` is the
    correlation of the heights at which groups meet with their distances: how much of the table the tree keeps.
    """

    subject: str
    groups: tuple[str, ...]
    linkage: Float[Tensor, "step 4"]
    order: Int[Tensor, " group"]
    distance: Float[Tensor, "group group"]
    cophenetic: float
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "tree") -> Record:
        """The tree as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {
            "subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin),
            "cophenetic": None if np.isnan(self.cophenetic) else self.cophenetic,
        }  # fmt: skip
        return Record("tree", name, arrays, meta)


@record_type("tree")
def tree_from_record(record: Record) -> Tree:
    """A tree back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    height = record.meta["cophenetic"]
    return Tree(**{**record.meta, "cophenetic": float("nan") if height is None else height, **arrays})


@dataclass(frozen=True, eq=False)
class Mantel:
    """The Mantel test of the sets' distances against distances that were given: see `tables.correlate`.

    `distance` and `given` [group, group] are the two tables; `r` their correlation over pairs of groups.
    """

    subject: str
    groups: tuple[str, ...]
    distance: Float[Tensor, "group group"]
    given: Float[Tensor, "group group"]
    agreement: Agreement
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "mantel") -> Record:
        """The test as a record of the atlas."""
        arrays = {"distance": self.distance.cpu().numpy(), "given": self.given.cpu().numpy()}
        numbers = {k: None if np.isnan(v) else v for k, v in vars(self.agreement).items()}
        meta = {
            "subject": self.subject, "groups": list(self.groups), "agreement": numbers, "origin": dict(self.origin),
        }  # fmt: skip
        return Record("mantel", name, arrays, meta)


@record_type("mantel")
def mantel_from_record(record: Record) -> Mantel:
    """A Mantel test back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    numbers = {k: float("nan") if v is None else v for k, v in record.meta["agreement"].items()}
    return Mantel(**{**record.meta, "agreement": Agreement(**numbers), **arrays})


def overlap_distance(overlap: Overlap, *, index: Index = "jaccard") -> Float[Tensor, "group group"]:
    """How far sets are apart: 1 less the Jaccard index or the overlap coefficient, 0 on the diagonal.

    `above chance` is 1 - (J - E) / (1 - E) with E the Jaccard index expected by chance, so that sets of unlike sizes
    compare; sets that share less than by chance are farther than 1.

    Raises SetError for an unknown index, or when a set is empty; the text names it.
    """
    if index not in get_args(Index):
        raise SetError(f"unknown index {index!r}; expected {', '.join(get_args(Index))}")
    empty = [name for name, size in zip(overlap.groups, overlap.sizes.tolist(), strict=True) if not size]
    if empty:
        raise SetError(f"the set of {', '.join(empty)} is empty and lies at no distance; select more, or leave it out")
    if index == "coefficient":
        if overlap.coefficient is None:
            raise SetError("this overlap holds no overlap coefficient; make it again with 'neuropolis overlap'")
        near = overlap.coefficient
    elif index == "jaccard":
        near = overlap.jaccard
    else:
        near = (overlap.jaccard - overlap.expected) / (1 - overlap.expected)
    return (1 - near.double()).fill_diagonal_(0.0)


def tree(overlap: Overlap, *, linkage: Linkage = "average", index: Index = "jaccard") -> Tree:
    """Hierarchical clustering of groups by their overlap, leaves ordered so that neighbours are near.

    Raises SetError for fewer than two groups, an unknown option, or an empty set.
    """
    from scipy.cluster.hierarchy import cophenet, leaves_list, optimal_leaf_ordering
    from scipy.cluster.hierarchy import linkage as joined
    from scipy.spatial.distance import squareform

    if linkage not in get_args(Linkage):
        raise SetError(f"unknown linkage {linkage!r}; expected {', '.join(get_args(Linkage))}")
    if len(overlap.groups) < 2:
        raise SetError(f"a tree needs two groups or more, the overlap has {', '.join(overlap.groups)} alone")
    distance = overlap_distance(overlap, index=index)
    flat = squareform(distance.numpy(), checks=False)
    steps = optimal_leaf_ordering(joined(flat, linkage), flat)
    kept = float(np.corrcoef(cophenet(steps), flat)[0, 1]) if len(flat) > 1 and flat.std() > 0 else float("nan")
    return Tree(
        overlap.subject, overlap.groups, torch.from_numpy(steps), torch.from_numpy(leaves_list(steps)).long(), distance,
        kept, {"linkage": linkage, "index": index, **dict(overlap.origin)},
    )  # fmt: skip


def mantel(
    overlap: Overlap,
    given: Float[Tensor, "group group"],
    *,
    method: Correlation = "spearman",
    index: Index = "jaccard",
    draws: int = 9999,
    seed: int = 0,
    source: str = "",
) -> Mantel:
    """Whether groups whose sets overlap more are nearer by a distance given for them, in the overlap's order of groups.

    `source` says where the distances are from. Raises SetError for fewer than three groups, when the table is not
    [group, group], and when one of the tables has no number for a pair or one number for all.
    """
    if given.shape != overlap.jaccard.shape:
        raise SetError(
            f"the given distances are {list(given.shape)}, the overlap has {len(overlap.groups)} groups; "
            "read them with npl.load_distances(path, overlap.groups)"
        )
    if len(overlap.groups) < 3:
        raise SetError(f"a Mantel test needs three groups or more, the overlap has {', '.join(overlap.groups)}")
    distance = overlap_distance(overlap, index=index)
    for table, what in (
        (given, f"the given distances{f' ({source})' if source else ''}"),
        (distance, "the distances of the sets"),
    ):
        _check_varies(table, what)
    agreement = correlate(distance, given, method=method, draws=draws, seed=seed)
    origin = {
        "method": method, "index": index, "draws": draws, "seed": seed, "source": source,
        "sets": overlap.origin.get("sets"),
    }  # fmt: skip
    return Mantel(overlap.subject, overlap.groups, distance, given.double(), agreement, origin)


def _check_varies(table: Float[Tensor, "group group"], what: str) -> None:
    """Raise SetError for a table that nothing can be correlated with."""
    pairs = table[~torch.eye(len(table), dtype=torch.bool)].double()
    if not bool(pairs.isfinite().all()):
        raise SetError(f"{what} lack a number for some pair of groups; expected one for every pair")
    low, high = float(pairs.min()), float(pairs.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        raise SetError(
            f"{what} do not vary: they are {low:g} for every pair of groups; expected distances that differ, so that there is "
            "something to correlate"
        )
