"""Scores: how much each group depends on each neuron, with everything that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .atlas import Record, record_type
from .errors import SetError
from .pickling import by_fields

_TENSORS = (
    "values",
    "signed",
    "squares",
    "counts",
    "control_values",
    "control_signed",
    "rows",
    "row_groups",
    "row_items",
    "control_rows",
    "control_groups",
    "control_items",
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one site of one subject.

    `values` [group, layer, neuron] is what selection ranks. `signed` keeps the sign: positive where the neuron helps the
    group (silencing it makes the objective worse). `squares` is the mean of the squared score of an example. `counts`
    [group] says over how many examples. `control_values` and `control_signed` are the same over the control twins, where
    those were scored. `rows` [example, layer, neuron] are every example's signed scores, with the numbers of their groups in
    `row_groups` [example] and of what they are about in `row_items` [example], where rows were kept; `control_rows` and the like
    are the control twins', of the groups and items of their examples. `origin` holds what made them: corpus hash, example ids,
    method, objective, reductions, dtype, versions, seed.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    values: Float[Tensor, "group layer neuron"]
    signed: Float[Tensor, "group layer neuron"]
    squares: Float[Tensor, "group layer neuron"]
    counts: Int[Tensor, " group"]
    method: str = "taylor"
    objective: str = "loss"
    origin: Mapping[str, Any] = field(default_factory=dict)
    control_values: Float[Tensor, "group layer neuron"] | None = None
    control_signed: Float[Tensor, "group layer neuron"] | None = None
    rows: Float[Tensor, "example layer neuron"] | None = None
    row_groups: Int[Tensor, " example"] | None = None
    row_items: Int[Tensor, " example"] | None = None
    control_rows: Float[Tensor, "twin layer neuron"] | None = None
    control_groups: Int[Tensor, " twin"] | None = None
    control_items: Int[Tensor, " twin"] | None = None

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        for name in ("signed", "squares"):
            if getattr(self, name).shape != self.values.shape:
                raise SetError(f"{name} has shape {list(getattr(self, name).shape)}, values {list(self.values.shape)}")
        if self.values.dim() != 3 or self.values.shape[0] != len(self.groups) or len(self.counts) != len(self.groups):
            raise SetError(
                f"values must be [group, layer, neuron] for {len(self.groups)} groups, got {list(self.values.shape)} "
                f"and {len(self.counts)} counts"
            )

    @property
    def num_layers(self) -> int:
        return self.values.shape[1]

    @property
    def width(self) -> int:
        """Neurons per layer."""
        return self.values.shape[2]

    @property
    def error(self) -> Float[Tensor, "group layer neuron"]:
        """Standard error of `values` over a group's examples; NaN for a group of one example."""
        counts = self.counts.to(self.values.dtype)[:, None, None]
        variance = (self.squares - self.values.square()).clamp(min=0) * counts / (counts - 1)
        return torch.where(counts > 1, (variance / counts).sqrt(), torch.nan)

    def index(self, group: str) -> int:
        """Position of a group. Raises SetError with the names there are."""
        if group not in self.groups:
            raise SetError(f"no group {group!r} in these scores; they have {', '.join(self.groups)}")
        return self.groups.index(group)

    def of(self, group: str) -> Float[Tensor, "layer neuron"]:
        """One group's values."""
        return self.values[self.index(group)]

    def to_record(self, name: str = "scores") -> Record:
        """The scores as a record of the atlas."""
        tensors = {key: getattr(self, key) for key in _TENSORS}
        arrays = {key: tensor.cpu().numpy() for key, tensor in tensors.items() if tensor is not None}
        meta = {
            "site": self.site, "subject": self.subject, "groups": list(self.groups), "method": self.method,
            "objective": self.objective, "origin": dict(self.origin),
        }  # fmt: skip
        return Record("scores", name, arrays, meta)


@record_type("scores")
def scores_from_record(record: Record) -> Scores:
    """Scores back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Scores(**{**record.meta, **arrays})
