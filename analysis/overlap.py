"""Overlap: how many neurons two sets share, next to how many two random sets of these sizes would share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type


@dataclass(frozen=True, eq=False)
class Overlap:
    """Jaccard overlap of every pair of sets against chance.

    `jaccard` [group, group] is |A & B| / |A | B| (Leng & Xiong, eq. 13), NaN where both sets are empty. `expected`, `low`
    and `high` are its mean and its 95 % interval when the two sets are drawn independently at random with their actual
    sizes; `p` is two-sided (twice the smaller tail), `p_corrected` is `p` after Holm over the pairs. All five are NaN on
    the diagonal. `layer_jaccard` and `layer_expected` [group, group, layer] are the same within one layer.
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
