"""Effects: how a metric changes on every group when a set is ablated, next to controls.

Two questions are asked of a set that carries a group's name (its own group). Does it hurt that group more than its controls
do? Does it hurt that group more than the other groups? Only a set of which both hold is called specific: an
intersection-union test, whose p-value is the larger of the two, corrected over the sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from .specificity import CORRECTIONS, LEVEL, Correction, against_others, summary_rows
from .statistics import bootstrap, cluster_sums, sign_flip_test, standard_error

POWER = 0.8
_SHARED = ("group_index", "item_index", "sizes")
_MEASURED = ("base", "ablated", "controls")


@dataclass(frozen=True, eq=False)
class Effects:
    """A metric, question by question, with nothing ablated, with each set and with each of its controls ablated.

    `group_index` and `item_index` [question] say to which of `groups` a question belongs and what it is about
    (questions of one item are not independent). `base` [question], `ablated` [set, question] and `controls` [set,
    control, question] are bool where the metric is right or wrong, else numbers. `sizes` [set] is the number of neurons of
    a set, over all its sites. `owners` [set] names the group that a set is held against, by default the group of its name
    ("japan", and of a study of several sites "japan/mlp"). `twins` holds the same for the questions' control twins, in the
    same order, where those were asked. `origin` holds what made them: corpus, split, seed, versions, digests of the sets,
    and of the metric `unit`, `higher_is_better` and what was `expect`ed: "worse", or "better" of sets that alone are kept.
    """

    site: str
    subject: str
    kind: str
    metric: str
    sets: tuple[str, ...]
    groups: tuple[str, ...]
    group_index: Int[Tensor, " question"]
    item_index: Int[Tensor, " question"]
    base: Float[Tensor, " question"] | Bool[Tensor, " question"]
    ablated: Float[Tensor, "set question"] | Bool[Tensor, "set question"]
    controls: Float[Tensor, "set control question"] | Bool[Tensor, "set control question"]
    sizes: Int[Tensor, " set"]
    origin: Mapping[str, Any] = field(default_factory=dict)
    owners: tuple[str | None, ...] | None = None
    twins: Effects | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", tuple(self.sets))
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        if self.owners is not None:
            object.__setattr__(self, "owners", tuple(self.owners))
            if len(self.owners) != len(self.sets):
                raise SetError(f"effects: {len(self.owners)} owners for {len(self.sets)} sets; expected one a set")
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
    def unit(self) -> str:
        """ "share" of a metric between 0 and 1 that is shown in per cent, else what its numbers are."""
        return str(self.origin.get("unit", "share"))

    @property
    def scale(self) -> float:
        """What to multiply by to show the metric: 100 for shares."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def expect(self) -> str:
        """What the tests look for in a set, next to its controls and to other groups: "worse" or "better"."""
        return str(self.origin.get("expect", "worse"))

    @property
    def sign(self) -> float:
        """1 where a lower metric is what the tests look for, -1 where a higher one is."""
        lower = bool(self.origin.get("higher_is_better", True)) == (self.expect == "worse")
        return 1.0 if lower else -1.0

    @property
    def mean_base(self) -> Float[Tensor, " group"]:
        """Mean of the metric over a group's questions with nothing ablated; of right and wrong, the share of right."""
        return self.by_group(self.base)

    @property
    def mean_ablated(self) -> Float[Tensor, "set group"]:
        """The same with a set ablated."""
        return self.by_group(self.ablated)

    @property
    def mean_controls(self) -> Float[Tensor, "set control group"]:
        """The same with each of a set's controls ablated."""
        return self.by_group(self.controls)

    accuracy_base, accuracy_ablated, accuracy_controls = mean_base, mean_ablated, mean_controls

    @property
    def effect(self) -> Float[Tensor, "set group"]:
        """The metric with a set ablated less the metric with nothing ablated; of accuracy negative where ablation hurts."""
        return self.mean_ablated - self.mean_base

    @property
    def control_effect(self) -> Float[Tensor, "set group"]:
        """The same for the mean of a set's controls; NaN without controls."""
        return self.mean_controls.mean(dim=1) - self.mean_base

    def by_group(self, values: Tensor) -> Float[Tensor, "*any group"]:
        """Mean over each group's questions of values [..., question]; NaN for a group without questions."""
        member = torch.nn.functional.one_hot(self.group_index.long(), len(self.groups)).double()
        return (values.double() @ member) / member.sum(dim=0)

    def interval(
        self, level: float = 0.95, seed: int = 0
    ) -> tuple[Float[Tensor, "set group"], Float[Tensor, "set group"]]:
        """(low, high) of `effect`: a percentile bootstrap over a group's items, not over its rows."""
        change = self.change
        ends = [bootstrap(*self._clusters(change, g), level=level, seed=seed) for g in range(len(self.groups))]
        return torch.stack([low for low, _ in ends], dim=1), torch.stack([high for _, high in ends], dim=1)

    @cached_property
    def p_vs_controls(self) -> Float[Tensor, "set group"]:
        """One-sided p-values, uncorrected, that a set hurts a group more than the mean of its controls does.

        A sign-flip test over items of the difference between the set's and its controls' mean right answers. It
        generalises over items, given these controls; NaN without controls.
        """
        difference = self.sign * self._against_controls
        columns = [sign_flip_test(self._clusters(difference, g)[0]) for g in range(len(self.groups))]
        return torch.stack(columns, dim=1)

    @property
    def p_among_controls(self) -> Float[Tensor, "set group"]:
        """(1 + controls that hurt a group at least as much as the set) / (1 + controls): over draws of controls, not items.

        With 20 controls the smallest is 0.048, which no correction over several sets survives: for the eye, or for many
        controls. NaN without controls.
        """
        change, control = self.sign * self.mean_ablated, self.sign * self.mean_controls
        count = control.shape[1]
        reached = (control <= change[:, None] + 1e-9).sum(dim=1).double()
        return (1 + reached) / (1 + count) if count else torch.full_like(change, torch.nan)

    @property
    def dominance(self) -> Float[Tensor, "set group"]:
        """The effect size: share of a group's items that the set hurts more than the mean of its controls does, less the
        share that it hurts less (paired dominance d_w, Cliff 1993). 1: every item; 0: as many as not; NaN without controls.
        """
        difference = self.sign * self._against_controls
        columns = []
        for g in range(len(self.groups)):
            sums = self._clusters(difference, g)[0]
            hurt = (sums < -1e-9).double() - (sums > 1e-9).double()
            columns.append(hurt.mean(dim=0).masked_fill(sums.isnan().any(dim=0), torch.nan))
        return torch.stack(columns, dim=1)

    @cached_property
    def p_vs_twins(self) -> Float[Tensor, "set group"]:
        """One-sided p-values, uncorrected, that a set hurts a group's questions more than their knowledge-free twins.

        A sign-flip test over items of the difference between the changes. NaN where no twins were asked.
        """
        if self.twins is None:
            return torch.full((len(self.sets), len(self.groups)), torch.nan, dtype=torch.float64)
        twins = self.twins
        difference = self.sign * (self.change - twins.change)
        columns = [sign_flip_test(self._clusters(difference, g)[0]) for g in range(len(self.groups))]
        return torch.stack(columns, dim=1)

    @cached_property
    def p_vs_others(self) -> Float[Tensor, " set"]:
        """One-sided p-values, uncorrected, that a set hurts its own group more than the mean of the other groups.

        Where the groups ask about the same items (languages), a sign-flip test over items; else a permutation of which
        items are the group's own. NaN for a set without a group of its name, or with one group only.
        """
        return against_others(self)

    @property
    def own_group(self) -> tuple[int | None, ...]:
        """For each set the position of the group that it is held against."""
        owners = self.sets if self.owners is None else self.owners
        named = [o if o in self.groups or o is None else o.rpartition("/")[0] for o in owners]
        return tuple(self.groups.index(name) if name in self.groups else None for name in named)

    def corrected(
        self, *, correction: Correction = "holm", cells: Literal["own", "all"] = "own"
    ) -> tuple[Tensor, Float[Tensor, " set"]]:
        """`p_vs_controls` and `p_vs_others` corrected for the number of tests.

        `cells="own"`: the sets' own groups only, one test a set (the first result is then [set]); `"all"`: every set on
        every group ([set, group]).
        """
        correct = CORRECTIONS[correction]
        against = self.p_vs_controls if cells == "all" else self.own(self.p_vs_controls)
        return correct(against), correct(self.p_vs_others)

    def summary(self, *, correction: Correction = "holm", seed: int = 0) -> list[dict[str, Any]]:
        """One row per set about its own group (NaN where no group has its name).

        The metric `base`, `ablated`, `controls` (mean over controls), `others` (mean of the other groups with the set
        ablated) and `others_base`; `effect` with its 95 % interval `low`, `high`; `dominance`, the effect size; `p_controls`
        and `p_others` corrected over the sets' own groups; `p` the larger of the two uncorrected ones, corrected over the
        sets, and `specific` when that is below 0.05; `p_among_controls`, uncorrected; `smallest_detectable`; `items` and
        `questions` of the own group. With twins `twin_base`, `twin_ablated`, `twin_effect` and `p_twins`, corrected.
        """
        return summary_rows(self, correction=correction, seed=seed)

    @property
    def num_items(self) -> Int[Tensor, " group"]:
        """Items of each group, over which the tests generalise."""
        items = [len(self.item_index[self.group_index == g].unique()) for g in range(len(self.groups))]
        return torch.tensor(items, dtype=torch.long)

    @property
    def smallest_detectable(self) -> Float[Tensor, " set"]:
        """`detectable` on the sets' own groups, corrected over those alone."""
        return self.own(self.detectable(sum(own is not None for own in self.own_group)))

    def detectable(self, tests: int | None = None) -> Float[Tensor, "set group"]:
        """Approximately the smallest change beyond the controls' that would be found 4 times in 5 among so many tests.

        By default among all cells. (z(1 - 0.05/tests) + z(0.8)) times the cluster-robust standard error of the difference
        as observed (Bonferroni). Of right and wrong at least the drop when the fewest items that can reach 0.05/tests in a
        sign-flip test, ceil(log2(tests/0.05)), lose one question each. Infinite where a group has fewer items than that:
        there nothing can be shown. A guide for planning, not a test.
        """
        tests = max(1, self.effect.numel() if tests is None else tests)
        reach = NormalDist().inv_cdf(1 - LEVEL / tests) + NormalDist().inv_cdf(POWER)
        fewest = math.ceil(math.log2(tests / LEVEL))
        columns = []
        for g in range(len(self.groups)):
            sums, sizes = self._clusters(self._against_controls, g)
            found = reach * standard_error(sums, sizes)
            if self.base.dtype == torch.bool:
                found = found.clamp(min=float(fewest / sizes.sum()))
            columns.append(found if len(sizes) >= fewest else torch.where(found.isnan(), found, torch.inf))
        return torch.stack(columns, dim=1)

    @property
    def change(self) -> Float[Tensor, "set question"]:
        """The metric with a set ablated less without, question by question."""
        return self.ablated.double() - self.base.double()

    @property
    def _against_controls(self) -> Float[Tensor, "set question"]:
        return self.ablated.double() - self.controls.double().mean(dim=1)

    def _clusters(self, values: Float[Tensor, "set question"], group: int) -> tuple[Tensor, Tensor]:
        inside = self.group_index == group
        return cluster_sums(values[:, inside], self.item_index[inside])

    def own(self, values: Float[Tensor, "set group"]) -> Float[Tensor, " set"]:
        """The cells of the sets with their own groups; NaN for a set without one."""
        picked = [torch.nan if own is None else float(values[s, own]) for s, own in enumerate(self.own_group)]
        return torch.tensor(picked, dtype=torch.float64)

    def others(self, values: Float[Tensor, "set group"]) -> Float[Tensor, " set"]:
        """Mean over the groups that are not the own one; NaN where there is no own or no other."""
        rest = [
            torch.nan if own is None else float(values[s, torch.arange(len(self.groups)) != own].nanmean())
            for s, own in enumerate(self.own_group)
        ]
        return torch.tensor(rest, dtype=torch.float64)

    def to_record(self, name: str = "effects") -> Record:
        """The effects as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in (*_SHARED, *_MEASURED)}
        if self.twins is not None:
            arrays |= {f"twin_{key}": getattr(self.twins, key).cpu().numpy() for key in _MEASURED}
        meta = {key: getattr(self, key) for key in ("site", "subject", "kind", "metric")}
        meta |= {"sets": list(self.sets), "groups": list(self.groups), "origin": dict(self.origin)}
        if self.owners is not None:
            meta["owners"] = list(self.owners)
        return Record("effects", name, arrays, meta)


@record_type("effects")
def effects_from_record(record: Record) -> Effects:
    """Effects back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    found = Effects(**{**record.meta, **{key: arrays[key] for key in (*_SHARED, *_MEASURED)}})
    if "twin_base" not in arrays:
        return found
    return replace(found, twins=replace(found, **{key: arrays[f"twin_{key}"] for key in _MEASURED}))
