"""Two studies side by side: which sets they have in common, how alike they rank neurons, and their effects beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from .agreement import Agreement, agreement
from .chance import levels
from .statistics import bootstrap, cluster_sums, holm

if TYPE_CHECKING:
    from .effects import Effects
    from .study import Study


@dataclass(frozen=True)
class SetPair:
    """A set that both studies have: its sizes, and how many neurons are the same, against chance.

    `expected`, `low` and `high` are the mean and the 95 % interval of the Jaccard index of two random sets with the same
    counts by layer; `p` is two-sided and Holm-corrected over the sets. All are NaN where the sets have different sites or
    shapes. `depth` is the mean layer of each set's neurons as a share of all layers, from 0 to 1.
    """

    name: str
    sizes: tuple[int, int]
    depth: tuple[float, float]
    shared: int | None
    jaccard: float
    expected: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class EffectPair:
    """What silencing a set does to a group in both studies, as changes of the metric with 95 % intervals (low, high).

    `difference` is the second less the first: paired over items where both asked the same questions (`paired`), else the
    half-widths of the two intervals add in squares.
    """

    set: str
    group: str
    change: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]
    difference: float
    difference_low: float
    difference_high: float
    paired: bool


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two studies side by side. `notes` say what could not be compared, and what to bear in mind.

    `metric` and `unit` are those of both studies' effects: see `Effects`.
    """

    names: tuple[str, str]
    subjects: tuple[str, str]
    sets: tuple[SetPair, ...]
    ranks: tuple[Agreement, ...]
    effects: tuple[EffectPair, ...]
    notes: tuple[str, ...]
    metric: str = "accuracy"
    unit: str = "share"

    @property
    def scale(self) -> float:
        """What to multiply effects by to show them: 100 for shares."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def own(self) -> tuple[EffectPair, ...]:
        """Effects of sets on the group of their name."""
        return tuple(pair for pair in self.effects if pair.set == pair.group)


def compare_studies(first: Study, second: Study) -> Comparison:
    """Set two studies side by side: two models, two methods, or one model before and after tuning.

    Sets and groups are matched by name, neurons by their place (site, layer, index): between subjects of one shape that
    means something where one was made from the other, and is noted. Scores are read group by group.

    Raises SetError when the studies have no set and no group in common.
    """
    names = _distinct(Path(first.path), Path(second.path))
    subjects = (str(first.subject.get("name") or "unnamed"), str(second.subject.get("name") or "unnamed"))
    notes = []
    if first.subject.get("fingerprint") != second.subject.get("fingerprint"):
        notes.append(
            "The studies are about different subjects. Neurons are matched by site, layer and index, which means something "
            "only where one subject was made from the other (before and after tuning)."
        )
    sets, missing = _set_pairs(first, second)
    ranks, unranked = _ranks(first, second)
    effects, unmatched, measure = _effect_pairs(first, second)
    if not (sets or ranks or effects):
        raise SetError(
            f"{first.path} has {_contents(first)}; {second.path} has {_contents(second)}; expected sets or groups of the "
            "same names in both"
        )
    return Comparison(
        names, subjects, tuple(sets), tuple(ranks), tuple(effects), (*notes, *missing, *unranked, *unmatched), *measure
    )


def _set_pairs(first: Study, second: Study) -> tuple[list[SetPair], list[str]]:
    mine, theirs = ({n: s.get("set", n) for n in s.names("set")} for s in (first, second))
    both = [name for name in mine if name in theirs]
    pairs = [_set_pair(name, mine[name], theirs[name]) for name in both]
    corrected = holm(torch.tensor([pair.p for pair in pairs], dtype=torch.float64)) if pairs else []
    pairs = [SetPair(**{**vars(pair), "p": float(p)}) for pair, p in zip(pairs, corrected, strict=True)]
    notes = []
    apart = [pair.name for pair in pairs if pair.shared is None]
    if apart:
        a, b = mine[apart[0]], theirs[apart[0]]
        notes.append(
            f"Neurons of {len(apart)} of {len(pairs)} sets cannot be matched: {apart[0]} is of site {a.site} "
            f"{list(a.mask.shape)} in the first study and {b.site} {list(b.mask.shape)} in the second [layer, neuron]."
        )
    for study, names, others in ((first, mine, theirs), (second, theirs, mine)):
        only = [name for name in names if name not in others]
        if only and both:
            notes.append(f"Only {Path(study.path).name} has the sets {_listed(only)}.")
    if (mine or theirs) and not both:
        notes.append("The studies have no set of the same name.")
    return pairs, notes


def _set_pair(name: str, a: NeuronSet, b: NeuronSet) -> SetPair:
    sizes, depth = (len(a), len(b)), (_depth(a), _depth(b))
    nothing = float("nan")
    if a.site != b.site or a.mask.shape != b.mask.shape:
        return SetPair(name, sizes, depth, None, nothing, nothing, nothing, nothing, nothing)
    both = (a.mask & b.mask).sum(dim=1)
    chance = levels(*(counts.numpy()[None] for counts in (a.per_layer, b.per_layer, both)), width=a.width)
    shared = int(both.sum())
    jaccard = shared / (sum(sizes) - shared) if sum(sizes) else nothing
    expected, low, high, p = (float(level[0]) for level in (chance.expected, chance.low, chance.high, chance.p))
    return SetPair(name, sizes, depth, shared, jaccard, expected, low, high, p)


def _depth(neurons: NeuronSet) -> float:
    layers = torch.arange(neurons.num_layers, dtype=torch.float64)
    mean = float((neurons.per_layer * layers).sum() / len(neurons)) if len(neurons) else float("nan")
    return mean / max(1, neurons.num_layers - 1)


def _ranks(first: Study, second: Study) -> tuple[list[Agreement], list[str]]:
    """Agreement of the scores of both: records of one name and site, else the only ones of a site."""
    mine, theirs = (_sites(study) for study in (first, second))
    found, notes = [], []
    for site, names in mine.items():
        others = theirs.get(site, [])
        same = [name for name in names if name in others]
        pairs = [(name, name) for name in same] or ([(names[0], others[0])] if len(names) == len(others) == 1 else [])
        for one, other in pairs:
            try:
                found.append(agreement(first, [one], second=second, others=[other]))
            except SetError as error:
                notes.append(f"Scores of site {site} cannot be compared: {error}.")
    if mine and theirs and not found and not notes:
        notes.append(
            "The studies have no scores to match: sites of the first are "
            f"{_listed(list(mine))}, of the second {_listed(list(theirs))}; scores are matched by site and record name."
        )
    return found, notes


def _sites(study: Study) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in study.names("scores"):
        with study.lazily("scores", name) as record:
            found.setdefault(record.meta["site"], []).append(name)
    return found


def _effect_pairs(first: Study, second: Study) -> tuple[list[EffectPair], list[str], tuple[str, str]]:
    """The pairs, notes, and the metric with its unit."""
    names, measure = [name for name in first.names("effects") if name in second.names("effects")], ("accuracy", "share")
    if not names:
        lacking = [Path(study.path).name for study in (first, second) if not study.has("effects")]
        made = "; make them with 'neuropolis ablate'" if lacking else " of the same name"
        return (
            [],
            [f"No effects to set side by side: {' and '.join(lacking) or 'the studies'} have none{made}."],
            measure,
        )
    name = "effects" if "effects" in names else names[0]
    a, b = first.get("effects", name), second.get("effects", name)
    sets, groups = ([one for one in getattr(a, part) if one in getattr(b, part)] for part in ("sets", "groups"))
    if not (sets and groups):
        return [], ["The effects have no set or no group in common."], measure
    notes = [f"The effects are of different {part}: {x} and {y}." for part, x, y in (
        ("kinds", a.kind, b.kind), ("metrics", a.metric, b.metric)) if x != y]  # fmt: skip
    if a.unit != b.unit:
        units = [{"share": "percentage points"}.get(one.unit, one.unit) for one in (a, b)]
        return [], [*notes, f"They are in {units[0]} and in {units[1]}, and are not set side by side."], measure
    metric = a.metric if a.metric == b.metric else f"{a.metric} and {b.metric}"
    return _pairs(a, b, sets, groups), notes, (metric, a.unit)


def _pairs(a: Effects, b: Effects, sets: Sequence[str], groups: Sequence[str]) -> list[EffectPair]:
    paired = _same_questions(a, b)
    low, high = zip(a.interval(), b.interval(), strict=True)
    difference = _paired_difference(a, b, sets) if paired else {}
    found = []
    for name in sets:
        rows = (a.sets.index(name), b.sets.index(name))
        for group in groups:
            columns = (a.groups.index(group), b.groups.index(group))
            at = [(row, column) for row, column in zip(rows, columns, strict=True)]
            change = tuple(float(one.effect[place]) for one, place in zip((a, b), at, strict=True))
            lows, highs = (tuple(float(t[place]) for t, place in zip(end, at, strict=True)) for end in (low, high))
            apart = change[1] - change[0]
            below = apart - ((change[1] - lows[1]) ** 2 + (highs[0] - change[0]) ** 2) ** 0.5
            above = apart + ((highs[1] - change[1]) ** 2 + (change[0] - lows[0]) ** 2) ** 0.5
            below, above = difference.get((name, group), (below, above))
            found.append(EffectPair(name, group, change, lows, highs, apart, below, above, paired))  # pyright: ignore
    return found


def _same_questions(a: Effects, b: Effects) -> bool:
    same = a.groups == b.groups and len(a.group_index) == len(b.group_index)
    keys = ("corpus_hash", "split", "num_examples")
    return (
        same
        and torch.equal(a.group_index, b.group_index)
        and torch.equal(a.item_index, b.item_index)
        and all(a.origin.get(key) == b.origin.get(key) for key in keys)
        and a.origin.get("corpus_hash") is not None
    )


def _paired_difference(a: Effects, b: Effects, sets: Sequence[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """95 % interval of the difference of changes by (set, group): a bootstrap over the items that both were asked about."""

    def change(one: Effects) -> Float[Tensor, "set question"]:
        rows = [one.sets.index(name) for name in sets]
        return one.ablated[rows].double() - one.base.double()

    values = change(b) - change(a)
    found = {}
    for place, group in enumerate(a.groups):
        inside = a.group_index == place
        low, high = bootstrap(*cluster_sums(values[:, inside], a.item_index[inside]))
        for row, name in enumerate(sets):
            found[name, group] = float(low[row]), float(high[row])
    return found


def _distinct(a: Path, b: Path) -> tuple[str, str]:
    """Short names of two files that differ."""
    return (a.name, b.name) if a.name != b.name else (str(a), str(b))


def _contents(study: Study) -> str:
    groups: list[Any] = [*study.names("set")]
    for name in study.names("scores"):
        with study.lazily("scores", name) as record:
            groups += [group for group in record.meta["groups"] if group not in groups]
    return f"sets and groups {_listed(groups)}" if groups else "no sets and no scores"


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
