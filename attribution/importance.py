"""Importance: the scores of a place summed, one number for each group, layer and component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from ..neurons.pickling import by_fields
from ..neurons.scores import Scores


@dataclass(frozen=True, eq=False)
class Importance:
    """Summed scores of every component (site) of every layer: FuxiTranyu (arXiv 2408.06273) Eq 3.

    `values` [group, layer, component]; `widths` [component] says over how many neurons each sum goes.
    """

    subject: str
    groups: tuple[str, ...]
    components: tuple[str, ...]
    values: Float[torch.Tensor, "group layer component"]
    widths: Int[torch.Tensor, " component"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "components", tuple(self.components))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        expected = (len(self.groups), len(self.components))
        if self.values.dim() != 3 or (self.values.shape[0], self.values.shape[2]) != expected:
            raise SetError(
                f"values must be [group, layer, component] for {expected[0]} groups and {expected[1]} components, "
                f"got {list(self.values.shape)}"
            )

    @property
    def of_layers(self) -> Float[torch.Tensor, "group layer"]:
        """Importance of whole layers."""
        return self.values.sum(dim=2)

    @property
    def of_components(self) -> Float[torch.Tensor, "group component"]:
        """Importance of components over all layers."""
        return self.values.sum(dim=1)

    def to_record(self, name: str = "importance") -> Record:
        """The table as a record of the atlas."""
        meta = {
            "subject": self.subject, "groups": list(self.groups), "components": list(self.components),
            "origin": dict(self.origin),
        }  # fmt: skip
        return Record("importance", name, {"values": self.values.numpy(), "widths": self.widths.numpy()}, meta)


@record_type("importance")
def importance_from_record(record: Record) -> Importance:
    """The table back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Importance(**{**record.meta, **arrays})


def summed(scores: Mapping[str, Scores]) -> Importance:
    """Phi(component of a layer) = sum of the scores (`values`) of its neurons, for scores of several sites of one pass."""
    parts = list(scores.values())
    return Importance(
        parts[0].subject, parts[0].groups, tuple(one.site for one in parts),
        torch.stack([one.values.sum(dim=2) for one in parts], dim=2), torch.tensor([one.width for one in parts]),
        {"method": parts[0].method, "objective": parts[0].objective, **parts[0].origin},
    )  # fmt: skip
