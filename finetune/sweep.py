"""Sweep: what groups know after tuning with each of several sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields
from .continual_metrics import t_interval
from .errors import TuneError


@dataclass(frozen=True, eq=False)
class Sweep:
    """Accuracy by group after tuning with each of several sets, over seeds.

    `settings` says what was varied, one mapping for each: `share` of the site's neurons in the set and, for the overlap
    ablation, `overlap`, the share of the set that belongs to the tested groups' set ("natural": as it comes).
    `accuracy` [setting, seed, group]; `untouched` [group] is before tuning; `sizes` [setting, seed] counts neurons.
    `jaccard` [setting, seed] is |N_x & N_y| / |N_x | N_y| of the tuned set and the tested groups' set (Leng & Xiong, Eq
    13), `chance` [setting] what two independent random sets with those sizes in every layer would have. `tested_sizes`
    [setting] counts the neurons of the tested groups' set; `by_layer` [setting, 2, layer] has Jaccard and chance in each
    layer, means over seeds, NaN where both sets are empty (both None in a study of an earlier version). In-domain groups
    were trained on.
    """

    subject: str
    kind: str
    settings: tuple[Mapping[str, Any], ...]
    groups: tuple[str, ...]
    in_domain: tuple[str, ...]
    out_of_domain: tuple[str, ...]
    seeds: tuple[int, ...]
    accuracy: Float[Tensor, "setting seed group"]
    untouched: Float[Tensor, " group"]
    sizes: Int[Tensor, "setting seed"]
    jaccard: Float[Tensor, "setting seed"]
    chance: Float[Tensor, " setting"]
    origin: Mapping[str, Any] = field(default_factory=dict)
    tested_sizes: Int[Tensor, " setting"] | None = None
    by_layer: Float[Tensor, "setting 2 layer"] | None = None

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("settings", "groups", "in_domain", "out_of_domain", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        shape = [len(self.settings), len(self.seeds), len(self.groups)]
        if list(self.accuracy.shape) != shape:
            raise TuneError(f"accuracy must be [setting, seed, group] {shape}, got {list(self.accuracy.shape)}")

    def mean(self, groups: Sequence[str]) -> Float[Tensor, "setting seed"]:
        """Mean accuracy over some groups."""
        return self.accuracy[..., [self.groups.index(group) for group in groups]].mean(dim=-1)

    def interval(self, groups: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over seeds of the mean over groups, and its 95 % t interval, each [setting]."""
        return t_interval(self.mean(groups))

    def to_record(self, name: str | None = None) -> Record:
        """The study as a record of the atlas."""
        meta = {
            "subject": self.subject, "kind": self.kind, "settings": [dict(one) for one in self.settings],
            "groups": list(self.groups), "in_domain": list(self.in_domain), "out_of_domain": list(self.out_of_domain),
            "seeds": list(self.seeds), "origin": dict(self.origin),
        }  # fmt: skip
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        there = {key: tensor.cpu().numpy() for key, tensor in arrays.items() if tensor is not None}
        return Record("sweep", name or self.kind, there, meta)


_ARRAYS = ("accuracy", "untouched", "sizes", "jaccard", "chance", "tested_sizes", "by_layer")


@record_type("sweep")
def sweep_from_record(record: Record) -> Sweep:
    """A study back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Sweep(**{**record.meta, **arrays})
