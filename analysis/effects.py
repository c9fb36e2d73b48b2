"""Effects: how accuracy on every group changes when a set is ablated, next to matched random sets.

Two questions are asked of a set that carries a group's name (its own group). Does it hurt that group more than random
sets of the same size in the same layers do? Does it hurt that group more than the other groups? Only a set of which
both hold is called specific: an intersection-union test, whose p-value is the larger of the two, corrected over the sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from .statistics import (
    benjamini_hochberg,
    bootstrap,
    cluster_sums,
    holm,
    label_test,
    sign_flip_test,
    standard_error,
)

LEVEL = 0.05
POWER = 0.8
Correction = Literal["holm", "benjamini_hochberg"]
_CORRECTIONS = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}


@dataclass(frozen=True, eq=False)
class Effects:
    """Right or wrong, question by question, with nothing ablated, with each set and with each of its controls ablated.

    `group_index` and `item_index` [question] say to which of `groups` a question belongs and what it is about
    (questions of one item are not independent). `base` [question], `ablated` [set, question] and `controls` [set,
    control, question] are true where the question was answered right. `sizes` [set] is the number of neurons of a set.
    `origin` holds what made them: corpus, split, seed, versions, digests of the sets.
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
            "item_index": (Q,), "base": (Q,), "ablated": (S, Q), "controls": (S, self.controls.shape[1], Q),
            "sizes": (S,),
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

    def interval(
        self, level: float = 0.95, seed: int = 0
    ) -> tuple[Float[Tensor, "set group"], Float[Tensor, "set group"]]:
        """(low, high) of `effect`: a percentile bootstrap over a group's items, not over its rows."""
        change = self.ablated.double() - self.base.double()
        ends = [bootstrap(*self._clusters(change, g), level=level, seed=seed) for g in range(len(self.groups))]
        return torch.stack([low for low, _ in ends], dim=1), torch.stack([high for _, high in ends], dim=1)

    @cached_property
    def p_vs_controls(self) -> Float[Tensor, "set group"]:
        """One-sided p-values, uncorrected, that a set hurts a group more than the mean of its controls does.

        A sign-flip test over items of the difference between the set's and its controls' mean right answers. It
        generalises over items, given these controls; NaN without controls.
        """
        difference = self.ablated.double() - self.controls.double().mean(dim=1)
        columns = [sign_flip_test(self._clusters(difference, g)[0]) for g in range(len(self.groups))]
        return torch.stack(columns, dim=1)

    @cached_property
    def p_vs_others(self) -> Float[Tensor, " set"]:
        """One-sided p-values, uncorrected, that a set hurts its own group more than the mean of the other groups.

        Where the groups ask about the same items (languages), a sign-flip test over items; else a permutation of which
        items are the group's own. NaN for a set without a group of its name, or with one group only.
        """
        change = self.ablated.double() - self.base.double()
        share = change / self.num_questions[self.group_index]  # summed over a group: its mean change
        weight = 1 / self.num_questions[self.group_index].double()
        present = int((self.num_questions > 0).sum())
        p = torch.full((len(self.sets),), torch.nan, dtype=torch.float64)
        tables = []
        for s, own in enumerate(self.own_group):
            if own is None or present < 2:
                continue
            mine = self.group_index == own
            items, here = torch.unique(self.item_index, return_inverse=True)
            inside = torch.zeros(len(items), dtype=torch.bool).index_fill_(0, here[mine], True)
            outside = torch.zeros(len(items), dtype=torch.bool).index_fill_(0, here[~mine], True)
            if torch.equal(inside, outside):
                sign = torch.where(mine, 1.0, -1.0 / (present - 1)).double()
                p[s] = sign_flip_test(cluster_sums((share[s] * sign)[None], here)[0])[0]
                continue
            piece = 2 * here + mine  # an item on both sides counts as two, which errs towards no difference
            _, first = torch.unique(piece, return_inverse=True)
            labels = torch.zeros(int(first.max()) + 1, dtype=torch.bool).index_fill_(0, first[mine], True)
            sums = cluster_sums(torch.stack([share[s], weight]), piece)[0]
            tables.append((s, sums[:, 0], sums[:, 1], labels))
        for length in {len(labels) for *_, labels in tables}:
            same = [table for table in tables if len(table[3]) == length]
            columns = [torch.stack([table[i] for table in same], dim=1) for i in (1, 2, 3)]
            p[[table[0] for table in same]] = label_test(*columns)
        return p

    @property
    def own_group(self) -> tuple[int | None, ...]:
        """For each set the position of the group that has its name."""
        return tuple(self.groups.index(name) if name in self.groups else None for name in self.sets)

    def corrected(
        self, *, correction: Correction = "holm", cells: Literal["own", "all"] = "own"
    ) -> tuple[Tensor, Float[Tensor, " set"]]:
        """`p_vs_controls` and `p_vs_others` corrected for the number of tests.

        `cells="own"`: the sets' own groups only, one test a set (the first result is then [set]); `"all"`: every set on
        every group ([set, group]).
        """
        correct = _CORRECTIONS[correction]
        against = self.p_vs_controls if cells == "all" else self._own(self.p_vs_controls)
        return correct(against), correct(self.p_vs_others)

    def summary(self, *, correction: Correction = "holm", seed: int = 0) -> list[dict[str, Any]]:
        """One row per set about its own group (NaN where no group has its name).

        Accuracies `base`, `ablated`, `controls` (mean over controls), `others` (mean of the other groups with the set
        ablated) and `others_base`; `effect` with its 95 % interval `low`, `high`; `p_controls` and `p_others` corrected
        over the sets' own groups; `p` the larger of the two uncorrected ones, corrected over the sets, and `specific`
        when that is below 0.05; `smallest_detectable`, see below.
        """
        low, high = (self._own(end) for end in self.interval(seed=seed))
        p_controls, p_others = self.corrected(correction=correction)
        others, others_base = (
            self._others(self.accuracy_ablated),
            self._others(self.accuracy_base.expand_as(self.effect)),
        )
        columns = {
            "base": self._own(self.accuracy_base.expand_as(self.effect)), "ablated": self._own(self.accuracy_ablated),
            "controls": self._own(self.accuracy_controls.mean(dim=1)), "others": others, "others_base": others_base,
            "effect": self._own(self.effect), "low": low, "high": high, "p_controls": p_controls, "p_others": p_others,
            "p": _CORRECTIONS[correction](torch.maximum(self._own(self.p_vs_controls), self.p_vs_others)),
            "smallest_detectable": self.smallest_detectable,
        }  # fmt: skip
        rows = []
        for s, name in enumerate(self.sets):
            own = self.own_group[s]
            row: dict[str, Any] = {
                "set": name,
                "group": None if own is None else self.groups[own],
                "size": int(self.sizes[s]),
            }
            row |= {key: float(column[s]) for key, column in columns.items()}
            row["specific"] = row["p"] < LEVEL
            rows.append(row)
        return rows

    @property
    def smallest_detectable(self) -> Float[Tensor, " set"]:
        """Approximately the smallest drop of the own group below the controls that would be found 4 times in 5.

        The larger of two figures: (z(1 - 0.05/S) + z(0.8)) times the cluster-robust standard error of the difference as
        observed (Bonferroni over S sets); and the drop when the fewest items that can reach 0.05/S in a sign-flip test,
        ceil(log2(S/0.05)), lose one question each. A guide for planning, not a test.
        """
        tests = max(1, sum(own is not None for own in self.own_group))
        reach = NormalDist().inv_cdf(1 - LEVEL / tests) + NormalDist().inv_cdf(POWER)
        difference = self.ablated.double() - self.controls.double().mean(dim=1)
        columns = []
        for g in range(len(self.groups)):
            sums, sizes = self._clusters(difference, g)
            fewest = math.ceil(math.log2(tests / LEVEL)) / sizes.sum()
            columns.append((reach * standard_error(sums, sizes)).clamp(min=float(fewest)))
        return self._own(torch.stack(columns, dim=1))

    def _clusters(self, values: Float[Tensor, "set question"], group: int) -> tuple[Tensor, Tensor]:
        inside = self.group_index == group
        return cluster_sums(values[:, inside], self.item_index[inside])

    def _own(self, values: Float[Tensor, "set group"]) -> Float[Tensor, " set"]:
        picked = [torch.nan if own is None else float(values[s, own]) for s, own in enumerate(self.own_group)]
        return torch.tensor(picked, dtype=torch.float64)

    def _others(self, values: Float[Tensor, "set group"]) -> Float[Tensor, " set"]:
        """Mean over the groups that are not the own one; NaN where there is no own or no other."""
        rest = [
            torch.nan if own is None else float(values[s, torch.arange(len(self.groups)) != own].nanmean())
            for s, own in enumerate(self.own_group)
        ]
        return torch.tensor(rest, dtype=torch.float64)

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
