"""Overlap: how many neurons two sets share, next to how many two random sets of these sizes would share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from .chance import Chance, by_layer, over_site
from .statistics import holm


@dataclass(frozen=True, eq=False)
class Overlap:
    """Jaccard overlap of every pair of sets against chance.

    `jaccard` [group, group] is |A & B| / |A | B| (Leng & Xiong, eq. 13), NaN where both sets are empty. `expected`,
    `low` and `high` are its mean and its 95 % interval when the two sets are drawn independently at random with their
    actual sizes; `p` is two-sided (twice the smaller tail), `p_corrected` is `p` after Holm over the pairs. All five
    are NaN on the diagonal. `layer_jaccard` and `layer_expected` [group, group, layer] are the same within one layer.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    sizes: Int[Tensor, " group"]
    intersections: Int[Tensor, "group group"]
    jaccard: Float[Tensor, "group group"]
    expected: Float[Tensor, "group group"]
    low: Float[Tensor, "group group"]
    high: Float[Tensor, "group group"]
    p: Float[Tensor, "group group"]
    p_corrected: Float[Tensor, "group group"]
    layer_jaccard: Float[Tensor, "group group layer"]
    layer_expected: Float[Tensor, "group group layer"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "overlap") -> Record:
        """The overlap as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"site": self.site, "subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("overlap", name, arrays, meta)


@record_type("overlap")
def overlap_from_record(record: Record) -> Overlap:
    """Overlap back from an atlas."""
    return Overlap(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def overlap(sets: Mapping[str, NeuronSet], *, uniform: bool = False) -> Overlap:
    """Jaccard overlap of every pair of sets, over the site and layer by layer, against chance.

    By chance means: two sets drawn independently, each with its actual number of neurons in every layer, or with
    `uniform` its actual number over the whole site. Against the first, sets do not overlap merely because both live in
    the same layers. Two sets with k of N neurons share k/(2N - k) of their union in expectation (N large).

    Raises SetError when there is no set or when sets differ in site, subject or shape.
    """
    if not sets:
        raise SetError("no sets to compare; give {name: NeuronSet}, for example from npl.select")
    chosen = list(sets.values())
    for other in chosen[1:]:
        _ = chosen[0] & other  # raises where the two cannot be compared
    masks = torch.stack([neurons.mask for neurons in chosen]).double()
    shared = torch.einsum("iln,jln->ijl", masks, masks)
    per_layer = masks.sum(dim=2)
    union = per_layer[:, None] + per_layer[None] - shared
    total = shared.sum(dim=2)
    nothing = torch.full(total.shape, torch.nan, dtype=torch.float64)
    expected, low, high, p = (nothing.clone() for _ in range(4))
    layer_expected = torch.full(shared.shape, torch.nan, dtype=torch.float64)
    known: dict[Any, Chance] = {}
    for i in range(len(chosen)):
        for j in range(i):
            found = _chance(known, per_layer[i], per_layer[j], masks.shape[2], uniform)
            chance = (found.expected, found.low, found.high, found.p(int(total[i, j])))
            for table, value in zip((expected, low, high, p), chance, strict=True):
                table[i, j] = table[j, i] = value
            layer_expected[i, j] = layer_expected[j, i] = torch.from_numpy(found.layer_expected)
    return Overlap(
        chosen[0].site, chosen[0].subject, tuple(sets), per_layer.sum(dim=1).long(), total.long(),
        total / union.sum(dim=2), expected, low, high, p, _holm_over_pairs(p), shared / union, layer_expected,
        origin={
            "null": "uniform over the site" if uniform else "same counts by layer",
            "interval": 0.95, "p": "two-sided, Holm over the pairs",
            "sets": {name: neurons.digest for name, neurons in sets.items()},
        },
    )  # fmt: skip


def _chance(known: dict[Any, Chance], a: Tensor, b: Tensor, width: int, uniform: bool) -> Chance:
    """The chance distribution of two size profiles, worked out once for each pair of profiles in either order."""
    first, second = sorted((tuple(a.long().tolist()), tuple(b.long().tolist())))
    key: tuple[Sequence[int], Sequence[int]] = ((sum(first),), (sum(second),)) if uniform else (first, second)
    if key not in known:
        known[key] = (
            over_site(sum(first), sum(second), len(first), width) if uniform else by_layer(first, second, width)
        )
    return known[key]


def _holm_over_pairs(p: Float[Tensor, "group group"]) -> Float[Tensor, "group group"]:
    """Each pair counts once, though it stands in the table twice."""
    below = torch.tril_indices(len(p), len(p), offset=-1).unbind()
    corrected = torch.full_like(p, torch.nan)
    corrected[below] = holm(p[below])
    return torch.where(corrected.isnan(), corrected.T, corrected)
