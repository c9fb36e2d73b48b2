"""Stability: which neurons are selected again when the examples change, and how far a set moves with every other choice."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from ..neurons.pickling import by_fields
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .attribute import attribute
from .bounds import check_seed, check_whole
from .selection import select

_NO_ROWS: dict[str, Any] = dict.fromkeys(
    ("rows", "row_groups", "row_items", "control_rows", "control_groups", "control_items")
)
AXES = ("items", "seed", "template", "dtype", "threshold")


@dataclass(frozen=True, eq=False)
class Frequencies:
    """How often each neuron was among a group's selected ones over resamples of the examples [group, layer, neuron].

    `size` is the number of neurons that each resample selected.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    frequency: Float[Tensor, "group layer neuron"]
    size: int
    resamples: int

    def sets(self, threshold: float = 0.6) -> dict[str, NeuronSet]:
        """Each group's neurons that were selected in at least this share of the resamples.

        Where half of the items were drawn and neurons that say nothing are exchangeable, at most
        size^2 / ((2 threshold - 1) * neurons) of them are expected in a set (Meinshausen & Buehlmann 2010, Theorem 1); the
        bound stands in the sets' origin as `false_at_most`. Raises SetError for a threshold outside (0.5, 1].
        """
        if not 0.5 < threshold <= 1:
            raise SetError(f"threshold is {threshold}; expected more than 0.5, up to 1: a share of the resamples")
        bound = self.size**2 / ((2 * threshold - 1) * self.frequency[0].numel())
        origin = {
            "made": "stability", "threshold": threshold, "resamples": self.resamples, "size": self.size,
            "false_at_most": bound,
        }  # fmt: skip
        return {
            group: NeuronSet(self.site, self.subject, chosen >= threshold, origin | {"group": group})
            for group, chosen in zip(self.groups, self.frequency, strict=True)
        }


def stable(
    scores: Scores,
    *,
    top: float | int = 0.01,
    contrast: str | None = None,
    by: str = "values",
    resamples: int = 100,
    share: float = 0.5,
    seed: int = 0,
) -> Frequencies:
    """Select the top neurons again on random parts of every group's items, drawn without replacement.

    An item is drawn with all of its rows and their control twins. `share` is the part that is drawn. Raises SetError when the
    scores have no rows (`attribute(..., keep_rows=True)`) or a group has fewer than two items.
    """
    total = torch.zeros_like(scores.values)
    for part in _resampled(scores, resamples, share, seed):
        chosen = select(part, top=top, contrast=contrast, by=by)
        total += torch.stack([chosen[group].mask for group in scores.groups]).float()
    size = len(next(iter(select(scores, top=top, contrast=contrast, by=by).values())))
    return Frequencies(scores.site, scores.subject, scores.groups, total / resamples, size, resamples)


def _resampled(scores: Scores, resamples: int, share: float, seed: int) -> Iterator[Scores]:
    """The scores over random parts of every group's items."""
    rows, groups, items = scores.rows, scores.row_groups, scores.row_items
    if rows is None or groups is None or items is None:
        raise SetError(
            "resampling needs every example's score; score with attribute(..., keep_rows=True) (locate --rows)"
        )
    check_whole("resamples", resamples, least=1, of="how many random parts to draw")
    check_seed(seed)
    if not 0 < share < 1:
        raise SetError(f"share is {share}; expected the part of the items that is drawn, between 0 and 1")
    number = len(scores.groups)
    own = [items[groups == g].unique() for g in range(number)]
    for group, mine in zip(scores.groups, own, strict=True):
        if len(mine) < 2:
            raise SetError(
                f"group {group!r} has {len(mine)} item, resampling needs 2 at least; add items or leave it out"
            )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(resamples):
        drawn = [
            mine[torch.randperm(len(mine), generator=generator)[: max(1, round(share * len(mine)))]] for mine in own
        ]
        values, signed, counts = _over(scores, rows, groups, items, drawn)
        changed: dict[str, Any] = {"control_values": None, "control_signed": None}
        if scores.control_rows is not None:
            assert scores.control_groups is not None
            assert scores.control_items is not None
            twins = _over(scores, scores.control_rows, scores.control_groups, scores.control_items, drawn)
            changed = {"control_values": twins[0], "control_signed": twins[1]}
        yield replace(
            scores, values=values, signed=signed, squares=values.square(), counts=counts.long(), **_NO_ROWS, **changed
        )


def _over(scores: Scores, rows: Tensor, groups: Tensor, items: Tensor, drawn: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Mean |score|, mean score [group, layer, neuron] and number of the rows of each group's drawn items.

    Raises SetError for a group that has none of them.
    """
    inside = torch.stack([(torch.isin(items, kept) & (groups == g)).float() for g, kept in enumerate(drawn)])
    counts = inside.sum(dim=1)
    if bool((counts == 0).any()):
        raise SetError(
            f"no control twin of the items drawn of group {scores.groups[int(counts.argmin())]!r} has a score: too many were "
            "skipped; add examples or leave the contrast out"
        )
    weights = inside / counts[:, None]
    means = [(weights @ one.reshape(len(rows), -1)).reshape(scores.values.shape) for one in (rows.abs(), rows)]
    return (*means, counts)


@dataclass(frozen=True, eq=False)
class Stability:
    """How far a selection moves when one thing about it is changed.

    `axis` [variant] is what was changed, `variant` [variant] to what; `jaccard` [variant, group] compares each group's set with
    the one of the `reference` settings, and `chance` [variant, group] is what two random sets of their sizes would have.
    """

    subject: str
    site: str
    groups: tuple[str, ...]
    axes: tuple[str, ...]
    variants: tuple[str, ...]
    jaccard: Float[Tensor, "variant group"]
    chance: Float[Tensor, "variant group"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("groups", "axes", "variants"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        shape = [len(self.variants), len(self.groups)]
        if list(self.jaccard.shape) != shape or list(self.chance.shape) != shape or len(self.axes) != shape[0]:
            raise SetError(f"jaccard and chance must be [variant, group] {shape}, got {list(self.jaccard.shape)}")

    def of(self, axis: str) -> Float[Tensor, " variant"]:
        """Mean over groups of the variants of one axis."""
        rows = [row for row, name in enumerate(self.axes) if name == axis]
        if not rows:
            raise SetError(f"no axis {axis!r} was tried; there are {', '.join(dict.fromkeys(self.axes))}")
        return self.jaccard[rows].mean(dim=1)

    def to_record(self, name: str = "stability") -> Record:
        """The table as a record of the atlas."""
        arrays = {"jaccard": self.jaccard.numpy(), "chance": self.chance.numpy()}
        meta = {
            "subject": self.subject, "site": self.site, "groups": list(self.groups), "axes": list(self.axes),
            "variants": list(self.variants), "origin": dict(self.origin),
        }  # fmt: skip
        return Record("stability", name, arrays, meta)


@record_type("stability")
def stability_from_record(record: Record) -> Stability:
    """A stability table back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Stability(**{**record.meta, **arrays})


def stability(
    subject: Subject,
    corpus: Corpus,
    *,
    axes: Sequence[str] = ("items", "dtype", "threshold"),
    top: float | int = 0.01,
    contrast: str | None = None,
    by: str = "values",
    template: str | None = None,
    thresholds: Sequence[float] = (0.5, 2.0),
    resamples: int = 10,
    seed: int = 0,
    **settings: Any,
) -> Stability:
    """Select with the settings given, then again with one of them changed at a time, and compare the sets.

    - `items`: on random halves of every group's items (`resamples` of them).
    - `seed`: with other seeds of a method that draws (its option `seed`).
    - `template`: on the examples of each value of the tag `template` alone.
    - `dtype`: with the model in bfloat16 and in float64 (a copy of it in memory).
    - `threshold`: with `top` times each of `thresholds`.

    `settings` are further arguments of `attribute`; the contrast `controls` scores the control twins.

    Raises SetError for an unknown axis or the axis `dtype` of an offloaded subject, CorpusError when no example has the tag, or
    fewer than two values of it are there.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise SetError(f"unknown axis {(unknown or ['(none)'])[0]!r}; axes are {', '.join(AXES)}")
    if "dtype" in axes and subject.offloaded:
        raise SetError(
            f"axis 'dtype' takes a copy of the model in memory, and {subject.name} is offloaded; leave the axis out"
        )
    check_whole("resamples", resamples, least=1, of="how many halves and seeds to try")
    check_seed(seed)
    chosen: dict[str, Any] = {"contrast": contrast, "by": by}
    if contrast == "controls":
        settings["controls"] = True
    scores = attribute(subject, corpus, keep_rows="items" in axes, **settings)
    if not isinstance(scores, Scores):
        raise SetError("stability compares one method on one site; give `method` and `site` as single names")
    reference = select(scores, top=top, **chosen)
    found: list[tuple[str, str, dict[str, NeuronSet]]] = []
    if "items" in axes:
        for number, part in enumerate(_resampled(scores, resamples, 0.5, seed)):
            found.append(("items", f"half {number + 1}", select(part, top=top, **chosen)))
    if "threshold" in axes:
        found += [("threshold", f"top x {m:g}", select(scores, top=_scaled(top, m), **chosen)) for m in thresholds]
    for axis, name, one, part, changed in _variants(subject, corpus, axes, template, resamples, seed):
        again = attribute(one, part, **_merged(settings, changed))
        assert isinstance(again, Scores)
        found.append((axis, name, select(again, top=top, **chosen)))
    jaccard = torch.tensor([[_jaccard(reference[g], sets[g]) for g in scores.groups] for _, _, sets in found])
    chance = torch.tensor([[_by_chance(reference[g], sets[g]) for g in scores.groups] for _, _, sets in found])
    origin = {
        "top": top, "contrast": contrast, "by": by, "template": template, "resamples": resamples, "seed": seed,
        "corpus": corpus.hash, "method": scores.method, "objective": scores.objective,
    }  # fmt: skip
    return Stability(
        subject.fingerprint, scores.site, scores.groups, tuple(a for a, _, _ in found), tuple(v for _, v, _ in found),
        jaccard, chance, origin,
    )  # fmt: skip


def _variants(
    subject: Subject, corpus: Corpus, axes: Sequence[str], template: str | None, resamples: int, seed: int
) -> Iterator[tuple[str, str, Subject, Corpus, dict[str, Any]]]:
    """(axis, variant, subject, corpus, changed settings) of every variant that must be scored again."""
    if "seed" in axes:
        for number in range(1, resamples + 1):
            yield "seed", f"seed {seed + number}", subject, corpus, {"options": {"seed": seed + number}}
    if "template" in axes:
        if template is None:
            raise CorpusError("axis 'template' needs the tag that names an example's template; give template='...'")
        known = sorted({e.tags[template] for e in corpus if template in e.tags})
        if len(known) < 2:
            raise CorpusError(
                f"tag {template!r} has {len(known)} values in this corpus; a comparison needs two at least"
            )
        for value in known:
            yield "template", value, subject, corpus.only(**{template: value}), {}
    if "dtype" in axes:
        for dtype in (torch.bfloat16, torch.float64):
            if dtype != subject.dtype:
                model = copy.deepcopy(subject.model).to(dtype)
                cast = Subject(model, subject.tokenizer, subject.name, subject.fingerprint)
                yield "dtype", str(dtype).removeprefix("torch."), cast, corpus, {}


def _merged(settings: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    options = {**(settings.get("options") or {}), **changed.get("options", {})}
    return {**settings, **({"options": options} if options else {})}


def _scaled(top: float | int, factor: float) -> float | int:
    return max(1, round(top * factor)) if isinstance(top, int) else min(top * factor, 1 - 1e-9)


def _jaccard(a: NeuronSet, b: NeuronSet) -> float:
    return len(a & b) / max(1, len(a | b))


def _by_chance(a: NeuronSet, b: NeuronSet) -> float:
    """Jaccard of independent random sets of these sizes, at their expected intersection."""
    shared = len(a) * len(b) / a.mask.numel()
    return shared / max(1e-9, len(a) + len(b) - shared)
