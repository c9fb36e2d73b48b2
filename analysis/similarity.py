"""Similarity: how alike the parameters of two sets' neurons are, layer by layer, next to matched random sets."""

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
class Similarity:
    """Cosine of the mean parameter vectors of every pair of sets.

    `values` [group, group, layer] is over all members, `values_unshared` over the members that the other set lacks (shared
    neurons raise a cosine by themselves). `chance`, `chance_low` and `chance_high` are the mean and the central 95 % over
    pairs of controls, random sets with the same counts per layer. `counts` [group, layer] is the number of members. NaN
    where a set has no members left in a layer; unshared and chance are NaN on the diagonal.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    counts: Int[Tensor, "group layer"]
    values: Float[Tensor, "group group layer"]
    values_unshared: Float[Tensor, "group group layer"]
    chance: Float[Tensor, "group group layer"]
    chance_low: Float[Tensor, "group group layer"]
    chance_high: Float[Tensor, "group group layer"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "similarity") -> Record:
        """The similarity as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"site": self.site, "subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("similarity", name, arrays, meta)


@record_type("similarity")
def similarity_from_record(record: Record) -> Similarity:
    """Similarity back from an atlas."""
    return Similarity(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})
