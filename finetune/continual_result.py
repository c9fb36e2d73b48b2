"""Continual: what every method knew of every task after every stage, over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields
from . import continual_metrics as formula
from .errors import TuneError

METRICS = (
    "average_accuracy", "backward_transfer", "forward_transfer", "forgetting", "retention_ratio", "known_forgetting",
)  # fmt: skip
ALONE = "per-task"


@dataclass(frozen=True, eq=False)
class Continual:
    """Accuracy over a stream of tasks, by method and seed.

    `matrix` [method, seed, stage, task] is the share of a task's questions answered right after a stage; `orders` [seed,
    stage] says which task a stage learned. `untouched` [task] is the accuracy before the stream. `known` [method, seed,
    stage] is the mean accuracy over the groups that the subject knew before the stream and `known_before` that of the
    untouched subject; NaN where none were asked. `trainable` [method] counts the numbers trained for a task. NaN in the
    matrix: not measured (joint training has a last stage only).
    """

    subject: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    orders: Int[Tensor, "seed stage"]
    matrix: Float[Tensor, "method seed stage task"]
    untouched: Float[Tensor, " task"]
    known: Float[Tensor, "method seed stage"]
    known_before: float
    trainable: Int[Tensor, " method"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("methods", "tasks", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        m, s, n = len(self.methods), len(self.seeds), len(self.tasks)
        for name, shape in {
            "orders": [s, n], "matrix": [m, s, n, n], "untouched": [n], "known": [m, s, n], "trainable": [m],
        }.items():  # fmt: skip
            if list(getattr(self, name).shape) != shape:
                raise TuneError(f"{name} must have shape {shape}, got {list(getattr(self, name).shape)}")

    @property
    def learned_order(self) -> Float[Tensor, "method seed stage task"]:
        """The matrix with each seed's tasks in the order of learning, as the metrics take it."""
        index = self.orders[None, :, None, :].expand_as(self.matrix)
        return self.matrix.gather(-1, index)

    @property
    def alone(self) -> Float[Tensor, "seed task"]:
        """Accuracy on each task after training on it alone, tasks in the order of learning; NaN without `per-task`."""
        if ALONE not in self.methods:
            return torch.full(self.orders.shape, torch.nan)
        return self.learned_order[self.methods.index(ALONE)].diagonal(dim1=-2, dim2=-1)

    def metric(self, name: str) -> Float[Tensor, "method seed"]:
        """One metric (of `METRICS`) for every method and seed; the formulas stand in `continual_metrics`.

        `per-task` is no sequence: its average accuracy is that of each task's own model, and the others are NaN, as is
        what joint training did not measure. `known_forgetting` is the accuracy on the groups known before the stream,
        before less after it.
        """
        a = self.learned_order
        if name == "average_accuracy":
            found = formula.average_accuracy(a)
        elif name == "backward_transfer":
            found = formula.backward_transfer(a)
        elif name == "forward_transfer":
            found = formula.forward_transfer(a, self.untouched[self.orders])
        elif name == "forgetting":
            found = formula.forgetting(a)
        elif name == "retention_ratio":
            found = formula.retention_ratio(a, self.alone)
        elif name == "known_forgetting":
            found = self.known_before - self.known[..., -1]
        else:
            raise TuneError(f"unknown metric {name!r}; metrics are {', '.join(METRICS)}")
        if ALONE not in self.methods:
            return found
        row = self.methods.index(ALONE)
        found = found.clone()
        found[row] = self.alone.mean(dim=-1) if name == "average_accuracy" else torch.nan
        if name == "known_forgetting":  # each task's model is another, so the mean over them
            found[row] = self.known_before - self.known[row].mean(dim=-1)
        return found

    def interval(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over seeds and its 95 % t interval, each [method]."""
        return formula.t_interval(self.metric(name))

    def difference(self, name: str, one: str, other: str, *, times: float = 1.0) -> tuple[float, float, float]:
        """`one` less `times` the `other`, paired by seed: mean and 95 % t interval."""
        rows = [self.methods.index(self._known_method(method)) for method in (one, other)]
        values = self.metric(name)
        mean, low, high = formula.t_interval(values[rows[0]] - times * values[rows[1]])
        return float(mean), float(low), float(high)

    def _known_method(self, name: str) -> str:
        if name not in self.methods:
            raise TuneError(f"no method {name!r} in this result; it has {', '.join(self.methods)}")
        return name

    def to_record(self, name: str = "continual") -> Record:
        """The result as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in _ARRAYS}
        meta = {
            "subject": self.subject, "methods": list(self.methods), "tasks": list(self.tasks), "seeds": list(self.seeds),
            "known_before": None if self.known_before != self.known_before else self.known_before,
            "origin": dict(self.origin),
        }  # fmt: skip
        return Record("continual", name, arrays, meta)


_ARRAYS = ("orders", "matrix", "untouched", "known", "trainable")


@record_type("continual")
def continual_from_record(record: Record) -> Continual:
    """A result back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    meta = dict(record.meta)
    if meta["known_before"] is None:
        meta["known_before"] = float("nan")
    return Continual(**{**meta, **arrays})
