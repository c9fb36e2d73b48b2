"""Effects: how accuracy on every group changes when a set is ablated, next to matched random sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError


@dataclass(frozen=True, eq=False)
class Effects:
    """Right or wrong, question by question, with nothing ablated, with each set and with each of its controls ablated.

    `group_index` and `item_index` [question] say to which of `groups` a question belongs and what it is about (questions
    of one item are not independent). `base` [question], `ablated` [set, question] and `controls` [set, control, question]
    are true where the question was answered right. `sizes` [set] is the number of neurons of a set. `origin` holds what
    made them: corpus, split, seed, versions, digests of the sets.
    """

    site: str
    subject: str
    kind: str
    metric: str
    sets: tuple[str, ...]
    groups: tuple[str, ...]
    group_index: Int[Tensor, " question"]
    item_index: Int[Tensor, " question"]
    base: Bool[Tensor, " question"]
    ablated: Bool[Tensor, "set question"]
    controls: Bool[Tensor, "set control question"]
    sizes: Int[Tensor, " set"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", tuple(self.sets))
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        S, Q = len(self.sets), len(self.group_index)
        shapes = {
            "item_index": (Q,), "base": (Q,), "ablated": (S, Q), "controls": (S, self.controls.shape[1], Q), "sizes": (S,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise SetError(f"effects: {name} has shape {list(getattr(self, name).shape)}, expected {list(shape)}")

    @property
    def num_questions(self) -> Int[Tensor, " group"]:
        """Questions of each group."""
        return torch.bincount(self.group_index, minlength=len(self.groups))

    @property
    def accuracy_base(self) -> Float[Tensor, " group"]:
        """Share of questions answered right with nothing ablated."""
        return self.by_group(self.base)

    @property
    def accuracy_ablated(self) -> Float[Tensor, "set group"]:
        """Share of questions answered right with a set ablated."""
        return self.by_group(self.ablated)

    @property
    def accuracy_controls(self) -> Float[Tensor, "set control group"]:
        """Share of questions answered right with each of a set's controls ablated."""
        return self.by_group(self.controls)

    @property
    def effect(self) -> Float[Tensor, "set group"]:
        """Accuracy with a set ablated less accuracy with nothing ablated; negative where ablation hurts."""
        return self.accuracy_ablated - self.accuracy_base

    @property
    def control_effect(self) -> Float[Tensor, "set group"]:
        """The same for the mean of a set's controls; NaN without controls."""
        return self.accuracy_controls.mean(dim=1) - self.accuracy_base

    def by_group(self, values: Tensor) -> Float[Tensor, "*any group"]:
        """Mean over each group's questions of values [..., question]; NaN for a group without questions."""
        member = torch.nn.functional.one_hot(self.group_index.long(), len(self.groups)).double()
        return (values.double() @ member) / member.sum(dim=0)

    def to_record(self, name: str = "effects") -> Record:
        """The effects as a record of the atlas."""
        tensors = ("group_index", "item_index", "base", "ablated", "controls", "sizes")
        arrays = {key: getattr(self, key).cpu().numpy() for key in tensors}
        meta = {key: getattr(self, key) for key in ("site", "subject", "kind", "metric")}
        meta |= {"sets": list(self.sets), "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("effects", name, arrays, meta)


@record_type("effects")
def effects_from_record(record: Record) -> Effects:
    """Effects back from an atlas."""
    return Effects(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})
