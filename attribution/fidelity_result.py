"""Fidelity: how far scores can be trusted on a subject, with what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields

Curve = Literal["deletion", "insertion"]
RESAMPLES = 1000
_TENSORS = (
    "shares", "neurons", "exact", "scored", "group_index", "item_index", "base", "deletion", "insertion",
    "control_deletion", "control_insertion",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fidelity:
    """How well methods' scores agree with what silencing neurons does.

    `neurons` [sampled, 2] are the (layer, index) of a random sample, `exact` their exact scores and `scored` those of each method,
    all signed and over the examples that were scored. The curves are over held-out examples: `base` is an example's objective
    with nothing silenced, and a curve's value says how much worse it is (in units of the objective, positive is worse) with
    the first `shares` of a group's neurons silenced (`deletion`) or with all others silenced (`insertion`); neurons stand in the
    order of the method's signed scores for that group. `control_deletion` and `control_insertion` are the same for random orders.
    `group_index` and `item_index` [example] number each held-out example's group and item.
    """

    site: str
    subject: str
    objective: str
    methods: tuple[str, ...]
    groups: tuple[str, ...]
    shares: Float[Tensor, " share"]
    neurons: Int[Tensor, "sampled 2"]
    exact: Float[Tensor, "group sampled"]
    scored: Float[Tensor, "method group sampled"]
    group_index: Int[Tensor, " example"]
    item_index: Int[Tensor, " example"]
    base: Float[Tensor, " example"]
    deletion: Float[Tensor, "method share example"]
    insertion: Float[Tensor, "method share example"]
    control_deletion: Float[Tensor, "control share example"]
    control_insertion: Float[Tensor, "control share example"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @property
    def correlation(self) -> Float[Tensor, "method group"]:
        """Spearman's rank correlation of each method's signed scores with the exact ones, over the sampled neurons."""
        return spearman(self.scored.double(), self.exact.double())

    @property
    def unresolved(self) -> float:
        """Share of exact scores that are zero: effects below what the subject's dtype resolves, which tie in rank."""
        return float((self.exact == 0).double().mean())

    def correlation_interval(
        self, *, level: float = 0.95, seed: int = 0
    ) -> tuple[Float[Tensor, "method column"], Float[Tensor, "method column"]]:
        """(low, high) of `correlation` for each group and, in the last column, of its mean over groups.

        A percentile bootstrap over neurons: it says how another sample of neurons could turn out, not other examples.
        """
        drawn = self._resampled if seed == 0 else self._drawn(seed)
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.quantile(drawn, ends, dim=0)
        return low, high

    @cached_property
    def _resampled(self) -> Float[Tensor, "resample method column"]:
        return self._drawn(0)

    def _drawn(self, seed: int) -> Float[Tensor, "resample method column"]:
        generator = torch.Generator().manual_seed(seed)
        count = self.exact.shape[1]
        found = []
        for _ in range(RESAMPLES):
            chosen = torch.randint(count, (count,), generator=generator)
            found.append(spearman(self.scored[..., chosen].double(), self.exact[..., chosen].double()))
        drawn = torch.stack(found)
        return torch.cat([drawn, drawn.mean(dim=2, keepdim=True)], dim=2)

    def by_group(self, values: Float[Tensor, "*any example"]) -> Float[Tensor, "*any group"]:
        """Mean over each group's held-out examples."""
        member = torch.nn.functional.one_hot(self.group_index.long(), len(self.groups)).double()
        return (values.double() @ member) / member.sum(dim=0)

    def area(self, curve: Curve) -> Float[Tensor, "method group"]:
        """Mean height of a curve over the logarithm of the share, in units of the objective.

        Of deletion a larger one is better (the first neurons are those that the group needs), of insertion a smaller one (they are
        those that it can live on). Every decade of shares counts the same.
        """
        return self.by_group(self._areas(self._curve(curve)))

    def control_area(self, curve: Curve) -> Float[Tensor, " group"]:
        """The same for random orders, their mean."""
        return self.by_group(self._areas(self._curve(curve, control=True))).mean(dim=0)

    def advantage(
        self, curve: Curve, *, level: float = 0.95, seed: int = 0
    ) -> tuple[Float[Tensor, " method"], Float[Tensor, " method"], Float[Tensor, " method"]]:
        """(value, low, high): how much better than random orders a method's area is, mean over groups; positive is better.

        The interval is a percentile bootstrap over each group's items, given the scores and the random orders.
        """
        sign = 1.0 if curve == "deletion" else -1.0
        control = self._areas(self._curve(curve, control=True)).mean(dim=0)
        better = sign * (self._areas(self._curve(curve)) - control)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.stack(
            [self._item_means(better, group, generator) for group in range(len(self.groups))], dim=2
        ).mean(dim=2)
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.quantile(drawn, ends, dim=1)
        return self.by_group(better).mean(dim=1), low, high

    def _item_means(
        self, values: Float[Tensor, "method example"], group: int, generator: torch.Generator
    ) -> Float[Tensor, "method resample"]:
        inside = self.group_index == group
        items, place = torch.unique(self.item_index[inside], return_inverse=True)
        member = torch.nn.functional.one_hot(place, len(items)).double()
        sums, sizes = values[:, inside].double() @ member, member.sum(dim=0)
        chosen = torch.randint(len(items), (RESAMPLES, len(items)), generator=generator)
        return sums[:, chosen].sum(dim=2) / sizes[chosen].sum(dim=1)

    def _curve(self, curve: str, *, control: bool = False) -> Float[Tensor, "order share example"]:
        if curve not in ("deletion", "insertion"):
            raise ValueError(f"unknown curve {curve!r}; curves are deletion, insertion")
        return getattr(self, f"control_{curve}" if control else curve)

    def _areas(self, values: Float[Tensor, "order share example"]) -> Float[Tensor, "order example"]:
        place = self.shares.double().log()
        if len(place) == 1:
            return values[:, 0].double()
        return torch.trapezoid(values.double(), place, dim=1) / (place[-1] - place[0])

    def summary(self) -> list[dict[str, Any]]:
        """One row a method: means over groups of correlation and areas, with intervals, then `random`."""
        low, high = self.correlation_interval()
        rows: list[dict[str, Any]] = []
        curves: tuple[Curve, ...] = get_args(Curve)
        better = {curve: self.advantage(curve) for curve in curves}
        for m, method in enumerate(self.methods):
            row: dict[str, Any] = {
                "method": method, "correlation": float(self.correlation[m].mean()), "low": float(low[m, -1]),
                "high": float(high[m, -1]),
            }  # fmt: skip
            for curve in curves:
                value, below, above = better[curve]
                row |= {curve: float(self.area(curve)[m].mean()), f"{curve}_better": float(value[m])}
                row |= {f"{curve}_low": float(below[m]), f"{curve}_high": float(above[m])}
            rows.append(row)
        none = dict.fromkeys([key for key in rows[0] if key != "method"], torch.nan) if rows else {}
        areas = {curve: float(self.control_area(curve).mean()) for curve in curves}
        rows.append({"method": "random", **none} | areas)
        return rows

    def to_record(self, name: str = "fidelity") -> Record:
        """The fidelity as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in _TENSORS}
        meta = {key: getattr(self, key) for key in ("site", "subject", "objective")}
        meta |= {"methods": list(self.methods), "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("fidelity", name, arrays, meta)


@record_type("fidelity")
def fidelity_from_record(record: Record) -> Fidelity:
    """A fidelity back from an atlas."""
    return Fidelity(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def spearman(a: Float[Tensor, "*any neuron"], b: Float[Tensor, "*any neuron"]) -> Float[Tensor, "*any"]:
    """Rank correlation along the last dimension, ties at their mean rank; NaN where all are tied."""
    first, second = (ranks - ranks.mean(dim=-1, keepdim=True) for ranks in (ranked(a), ranked(b)))
    scale = (first.square().sum(dim=-1) * second.square().sum(dim=-1)).sqrt()
    return torch.where(scale > 0, (first * second).sum(dim=-1) / scale, torch.nan)


def ranked(values: Float[Tensor, "*any neuron"]) -> Float[Tensor, "*any neuron"]:
    """Ranks from 0 along the last dimension, ties at their mean."""
    ordered = values.contiguous().sort(dim=-1).values
    below, upto = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (below + upto - 1).to(torch.float64) / 2
