"""Calibration: how well every method and selection finds neurons whose role is known, over plants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.fidelity_result import spearman
from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields
from .calibration_scores import CORRECTIONS, METRICS
from .continual_metrics import t_interval
from .errors import TuneError

PLACES = ("shuffled labels", "random weights")
BASELINE, CHANCE = "random", "values"
_TENSORS = (
    "values", "by_layer", "counts", "found", "false_finds", "planted", "false_positives", "seconds", "forwards", "deletion",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Calibration:
    """What every method and ranking found of the neurons that were planted; NaN where a plant failed or a ranking is impossible.

    `subject` is the fingerprint of the untouched subject, `rankings` are those of `attribution.rankings`.
    `values` and `by_layer` are the three metrics: recall among the first K (K the number of true neurons), average precision and
    AUROC; over all layers for each group, and with a ranking of one layer's neurons alone, meaned over groups. `found` is the
    number of true neurons among the first `counts`, `false_finds` how many of a group's first K are others, by layer, both
    meaned over groups; `planted` counts the true neurons. `seconds` is what scoring took and `forwards` what it cost, in forwards
    of one example, a backward counted as two. `false_positives` is the share of neurons called specific at the 5 % level where
    nothing is (places: shuffled labels, random weights), corrected for their number (`family`) and not (`none`). `deletion` is
    each method's advantage over random orders in deletion curves on natural groups, NaN where that was not measured.
    `plants` says of each plant what it was and how it stood its proof.
    """

    subject: str
    site: str
    methods: tuple[str, ...]
    rankings: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Float[Tensor, "metric variant seed method ranking group"]
    by_layer: Float[Tensor, "metric variant seed method ranking layer"]
    counts: Int[Tensor, " k"]
    found: Float[Tensor, "variant seed method ranking k"]
    false_finds: Float[Tensor, "variant seed method ranking layer"]
    planted: Int[Tensor, "variant seed group"]
    false_positives: Float[Tensor, "place correction seed method"]
    seconds: Float[Tensor, "variant seed method"]
    forwards: Float[Tensor, " method"]
    deletion: Float[Tensor, " method"]
    plants: tuple[Mapping[str, Any], ...]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("methods", "rankings", "variants", "seeds", "plants"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        v, s, m, r = len(self.variants), len(self.seeds), len(self.methods), len(self.rankings)
        g, n, k = self.values.shape[-1], self.by_layer.shape[-1], len(self.counts)
        for name, shape in {
            "values": [len(METRICS), v, s, m, r, g], "by_layer": [len(METRICS), v, s, m, r, n], "found": [v, s, m, r, k],
            "false_finds": [v, s, m, r, n], "planted": [v, s, g], "seconds": [v, s, m], "forwards": [m], "deletion": [m],
            "false_positives": [len(PLACES), len(CORRECTIONS), s, m],
        }.items():  # fmt: skip
            if list(getattr(self, name).shape) != shape:
                raise TuneError(f"{name} must have shape {shape}, got {list(getattr(self, name).shape)}")

    def held(self, variant: str) -> int:
        """How many plants of a variant stood their proof."""
        return sum(plant["holds"] for plant in self.plants if plant["variant"] == variant)

    @property
    def first(self) -> str | None:
        """The variant that methods are chosen on: the first of which a plant held; None where none did."""
        return next((variant for variant in self.variants if self.held(variant)), None)

    def metric(self, name: str) -> Float[Tensor, "variant seed method ranking"]:
        """One metric (`recall`, `precision` or `auroc`), mean over groups."""
        return self.values[_metric(name)].nanmean(dim=-1)

    def interval(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, low, high) of a metric, each [variant, method, ranking]: mean over seeds that held, with its 95 % t interval.

        The bounds are NaN where one seed held.
        """
        return over_seeds(self.metric(name).movedim(1, -1))

    def layers(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The same by layer, each [variant, method, ranking, layer]."""
        return over_seeds(self.by_layer[_metric(name)].movedim(1, -1))

    def best_ranking(self, method: str, variant: str | None = None) -> str | None:
        """The ranking of a method with the highest mean recall (then average precision); None where nothing was scored."""
        rows = [row for row in self.summary(variant, every=True) if row["method"] == method]
        return rows[0]["ranking"] if rows else None

    @property
    def best(self) -> tuple[str, str] | None:
        """The method and ranking with the highest mean recall (then average precision) on `first`; random orders do not compete.

        Chosen on the figures that are reported, so its own figure is a little too good.
        """
        rows = [row for row in self.summary() if row["method"] != BASELINE]
        return (rows[0]["method"], rows[0]["ranking"]) if rows else None

    def summary(self, variant: str | None = None, *, every: bool = False) -> list[dict[str, Any]]:
        """A row a method on one variant (by default `first`), at its best ranking (or `every` one), the best first.

        Each metric has its value, `<metric>_low` and `<metric>_high`. Random orders have one ranking, or the best of them would
        be no chance. Empty where nothing was scored.
        """
        variant = self.first if variant is None else variant
        if variant is None:
            return []
        if variant not in self.variants:
            raise TuneError(f"there is no variant {variant!r}; variants are {', '.join(self.variants)}")
        place = self.variants.index(variant)
        found = {name: self.interval(name) for name in METRICS}
        rows = []
        for m, method in enumerate(self.methods):
            for r, ranking in enumerate(self.rankings):
                if method == BASELINE and ranking != CHANCE:
                    continue
                row: dict[str, Any] = {"method": method, "ranking": ranking, "seeds": self.held(variant)}
                for name in METRICS:
                    for end, values in zip(("", "_low", "_high"), found[name], strict=True):
                        row[name + end] = float(values[place, m, r])
                row["seconds"] = float(self.seconds[place, :, m].nanmean())
                row["forwards"] = float(self.forwards[m])
                rows.append(row)
        rows = [row for row in rows if row["recall"] == row["recall"]]
        rows.sort(key=lambda row: (-row["recall"], -row["precision"]))
        return rows if every else _one_each(rows)

    def curve(self, variant: str, method: str, ranking: str) -> tuple[Tensor, Tensor]:
        """(recall, precision) [k] among the first `counts`, pooled over groups and meaned over seeds."""
        v, m, r = self.variants.index(variant), self.methods.index(method), self.rankings.index(ranking)
        found, truth = self.found[v, :, m, r], self.planted[v].double().mean(dim=1)
        return (found / truth[:, None]).nanmean(dim=0), (found / self.counts).nanmean(dim=0)

    def agreement(self, ranking: str | None = "signed") -> tuple[float, int]:
        """(Spearman, number of methods): recall on the first variant against the advantage of deletion curves on natural groups.

        Deletion curves follow signed scores, so that is the ranking compared; None takes each method's best one. NaN for
        fewer than three methods that have both.
        """
        if self.first is None:
            return float("nan"), 0
        best = {row["method"]: row["recall"] for row in self.summary()}
        mean = self.interval("recall")[0][self.variants.index(self.first)]
        pairs = []
        for m, method in enumerate(self.methods):
            recall = best.get(method, torch.nan) if ranking is None else float(mean[m, self.rankings.index(ranking)])
            pairs.append((recall, float(self.deletion[m])))
        both = torch.tensor([pair for pair in pairs if pair[0] == pair[0] and pair[1] == pair[1]], dtype=torch.float64)
        if len(both) < 3:
            return float("nan"), len(both)
        return float(spearman(both[:, 0], both[:, 1])), len(both)

    def verdict(self) -> str:
        """One sentence or two: which method and selection to trust on this model, and how far."""
        from .calibration_words import verdict

        return verdict(self)

    def to_record(self, name: str = "calibration") -> Record:
        """The calibration as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in _TENSORS}
        meta: dict[str, Any] = {"subject": self.subject, "site": self.site}
        meta |= {key: list(getattr(self, key)) for key in ("methods", "rankings", "variants", "seeds")}
        return Record("calibration", name, arrays, meta | {"plants": list(self.plants), "origin": dict(self.origin)})


@record_type("calibration")
def calibration_from_record(record: Record) -> Calibration:
    """A calibration back from an atlas."""
    return Calibration(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def over_seeds(values: Float[Tensor, "*any seed"]) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, low, high) over the seeds that are not NaN, with the 95 % t interval; bounds are NaN where there is one seed."""
    flat = values.reshape(-1, values.shape[-1])
    ends = torch.full((3, len(flat)), torch.nan, dtype=torch.float64)
    there = ~flat.isnan()
    for pattern in there.unique(dim=0):
        if bool(pattern.any()):
            rows = (there == pattern).all(dim=1)
            ends[:, rows] = torch.stack(t_interval(flat[rows][:, pattern].double()))
    mean, low, high = ends.reshape(3, *values.shape[:-1])
    return mean, low, high


def _metric(name: str) -> int:
    if name not in METRICS:
        raise TuneError(f"unknown metric {name!r}; metrics are {', '.join(METRICS)}")
    return METRICS.index(name)


def _one_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every method."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["method"], row)
    return list(first.values())
