"""Retention: what a subject learned of a new group and what it forgot of the others, by way of tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .errors import TuneError
from .training import finetune, finetune_full

METHODS = ("neurons", "full", "random")
Accuracy = Callable[[Subject, Corpus], Tensor]
Outcomes = dict[str, tuple[Float[Tensor, " item"], Float[Tensor, " item"]]]


@dataclass(frozen=True, eq=False)
class Retention:
    """Accuracy before and after tuning on one new group, by method.

    `group` was learned; `groups` are the trained groups, then the new one. `before` [group] and `after` [method, group]
    are shares of questions answered right; `after_low` and `after_high` bound 95 % of a bootstrap over items.
    `trainable` [method] counts the numbers that were trained.
    """

    subject: str
    group: str
    methods: tuple[str, ...]
    groups: tuple[str, ...]
    trained_groups: tuple[str, ...]
    before: Float[Tensor, " group"]
    after: Float[Tensor, "method group"]
    after_low: Float[Tensor, "method group"]
    after_high: Float[Tensor, "method group"]
    trainable: Int[Tensor, " method"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("methods", "groups", "trained_groups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        if self.group not in self.groups or not set(self.trained_groups) < set(self.groups):
            raise TuneError(f"the new group {self.group!r} and the trained ones must be among the groups {self.groups}")
        shape = [len(self.methods), len(self.groups)]
        for name in ("after", "after_low", "after_high"):
            if list(getattr(self, name).shape) != shape:
                raise TuneError(f"{name} must be [method, group] {shape}, got {list(getattr(self, name).shape)}")
        if list(self.before.shape) != shape[1:] or list(self.trainable.shape) != shape[:1]:
            raise TuneError(
                f"before must be [group] {shape[1:]} and trainable [method] {shape[:1]}, "
                f"got {list(self.before.shape)} and {list(self.trainable.shape)}"
            )

    @property
    def gain(self) -> Float[Tensor, " method"]:
        """What was learned: accuracy on the new group after tuning, less before."""
        place = self.groups.index(self.group)
        return self.after[:, place] - self.before[place]

    @property
    def forgetting(self) -> Float[Tensor, " method"]:
        """What was lost: accuracy before less after, meaned over the trained groups; negative where tuning helped them.

        The drop of Chaudhry et al. 2018 (arXiv 1801.10112, eq. 3) for a single step from a fixed model, where the best
        accuracy before is the only one.
        """
        places = [self.groups.index(group) for group in self.trained_groups]
        return (self.before[places] - self.after[:, places]).mean(dim=1)

    def to_record(self, name: str = "retention") -> Record:
        """The table as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in _ARRAYS}
        meta = {
            "subject": self.subject, "group": self.group, "methods": list(self.methods), "groups": list(self.groups),
            "trained_groups": list(self.trained_groups), "origin": dict(self.origin),
        }  # fmt: skip
        return Record("retention", name, arrays, meta)


_ARRAYS = ("before", "after", "after_low", "after_high", "trainable")


@record_type("retention")
def retention_from_record(record: Record) -> Retention:
    """A retention table back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Retention(**{**record.meta, **arrays})


def compare_tuning(
    subject: Subject,
    new_corpus: Corpus,
    old_corpus: Corpus,
    neurons: NeuronSet,
    *,
    group: str,
    accuracy: Accuracy,
    methods: Sequence[str] = ("neurons", "full"),
    lr: float = 3e-4,
    full_lr: float = 3e-5,
    test_split: str | None = "auto",
    resamples: int = 2000,
    seed: int = 0,
    trained: Mapping[str, Delta] | None = None,
    **training: Any,
) -> Retention:
    """Learn one group by several methods, each from the untouched subject, and measure every group before and after.

    `neurons` trains the set's slice, `random` that of a random set with as many neurons in each layer, `full` every
    parameter; `lr` is the first two's rate, `full_lr` the last one's, and `training` holds further arguments of
    `finetune`, the same for all. `new_corpus` must hold `group`, the groups of `old_corpus` are the trained ones.
    `accuracy(subject, corpus)` says which examples are answered right (bool, one per example). Questions are those
    tagged `test_split`; "auto" takes split "test" where a corpus has splits and everything otherwise. `trained` gives the
    delta of a method that was trained already, by the same arguments.

    Raises TuneError for an unknown method or when `group` is among the old ones, and what `finetune` raises.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise TuneError(f"unknown method {(unknown or ['(none)'])[0]!r}; methods are {', '.join(METHODS)}")
    if group in old_corpus.groups:
        raise TuneError(f"group {group!r} is among the trained groups; the new group must be one that they lack")
    lesson = new_corpus.only(group)
    exams = (old_corpus.part(test_split, auto="test"), lesson.part(test_split, auto="test"))

    def measure() -> Outcomes:
        return _outcomes(subject, exams[0], accuracy) | _outcomes(subject, exams[1], accuracy)

    before = measure()
    groups = tuple(before)
    after, low, high, trainable = [], [], [], []
    for method in methods:
        delta = (trained or {}).get(method)
        if delta is None:
            delta = _tuned(method, subject, lesson, neurons, lr, full_lr, {"seed": seed, **training})
        with delta.applied(subject):
            found = measure()
        bounds = [_interval(found[g], resamples=resamples, seed=seed) for g in groups]
        after.append([_share(found[g]) for g in groups])
        low.append([lower for lower, _ in bounds])
        high.append([upper for _, upper in bounds])
        trainable.append(delta.num_parameters)
    return Retention(
        subject.fingerprint, group, tuple(methods), groups, exams[0].groups,
        torch.tensor([_share(before[g]) for g in groups]), torch.tensor(after), torch.tensor(low), torch.tensor(high),
        torch.tensor(trainable),
        {
            "new_corpus": lesson.hash, "old_corpus": old_corpus.hash, "neurons": neurons.digest,
            "lr": lr, "full_lr": full_lr, "resamples": resamples, "seed": seed, "test_split": test_split,
            "num_questions": {g: int(before[g][1].sum()) for g in groups},
            "training": {key: value for key, value in training.items() if key != "progress"},
        },
    )  # fmt: skip


def _tuned(
    method: str,
    subject: Subject,
    lesson: Corpus,
    neurons: NeuronSet,
    lr: float,
    full_lr: float,
    training: Mapping[str, Any],
) -> Delta:
    if method == "full":
        return finetune_full(subject, lesson, lr=full_lr, **training)
    chosen = neurons if method == "neurons" else NeuronSet.random(neurons, seed=training["seed"])
    return finetune(subject, lesson, chosen, lr=lr, **training)


def _outcomes(subject: Subject, corpus: Corpus, accuracy: Accuracy) -> Outcomes:
    """For each group, right answers and questions of every item."""
    right: Bool[Tensor, " example"] = accuracy(subject, corpus).cpu()
    if list(right.shape) != [len(corpus)] or right.dtype != torch.bool:
        raise TuneError(
            f"accuracy must give bool [{len(corpus)}] for the examples, got {right.dtype} {list(right.shape)}"
        )
    outcomes: Outcomes = {}
    for group in corpus.groups:
        rows = [row for row, example in enumerate(corpus) if example.group == group]
        numbers: dict[str, int] = {}
        item = torch.tensor([numbers.setdefault(corpus[row].item, len(numbers)) for row in rows])
        zeros = torch.zeros(len(numbers))
        outcomes[group] = (
            zeros.index_add(0, item, right[rows].float()), zeros.index_add(0, item, torch.ones(len(rows)))
        )  # fmt: skip
    return outcomes


def _share(outcome: tuple[Tensor, Tensor]) -> float:
    return float(outcome[0].sum() / outcome[1].sum())


def _interval(outcome: tuple[Tensor, Tensor], *, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap (95 %) of the share of right answers; items are drawn with all of their questions."""
    right, asked = outcome
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(right), (resamples, len(right)), generator=generator)
    shares = right[drawn].sum(dim=1) / asked[drawn].sum(dim=1)
    low, high = shares.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
