"""Learners: what a continual-learning method is given, what it gives back, and the register of methods by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .entries import whole_entries
from .errors import TuneError
from .location import Location
from .options import made_options
from .slices import parts_of, slice_entries
from .streams import Task
from .training import Progress, Recipe


@dataclass(frozen=True, eq=False)
class Learned:
    """What a method holds after a task.

    `delta` leads from the untouched subject to what it has become, `trained` counts the numbers that were trained for
    the last task, `memory` is what the method carries to later ones.
    """

    delta: Delta
    trained: int
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Lesson:
    """One task of a stream, for a method to learn.

    `stream` are the tasks in the order of learning and `place` is the one to learn now; a method may look at later ones
    only where it is a bound. `subject` is untouched, `before` what the method gave back for the task before. `recipe`
    has the method's rate and this task's seed, `options` the method's own.
    """

    subject: Subject
    stream: tuple[Task, ...]
    place: int
    recipe: Recipe
    location: Location
    options: Any = None
    before: Learned | None = None
    reference: Corpus | None = None
    reference_scores: Callable[[], Scores | None] = lambda: None
    progress: Progress | None = None

    @property
    def task(self) -> Task:
        return self.stream[self.place]

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """While the block runs the subject is what the task before left."""
        with ExitStack() as stack:
            if self.before is not None:
                stack.enter_context(self.before.delta.applied(self.subject))
            yield

    def kept(self, name: str) -> Tensor | None:
        """A tensor of the memory; None before the first task."""
        return None if self.before is None else self.before.memory[name]


Learn = Callable[[Lesson], Learned | None]
L = TypeVar("L", bound=Callable[[Lesson], Learned | None])
View = Callable[[Lesson, Learned, int | None], AbstractContextManager[None]]


@dataclass(frozen=True)
class Learner:
    """A method: how it learns a task, and what the subject is when it is asked about one.

    `learn` gives None where there is nothing to measure yet. `view(lesson, learned, place)` holds for the questions of
    the task at that place of the stream; None stands for questions of no task of it.
    """

    name: str
    learn: Learn
    options: type
    view: View
    lr: float


LEARNERS: dict[str, Learner] = {}


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


def plain_view(lesson: Lesson, learned: Learned, place: int | None) -> AbstractContextManager[None]:
    """The subject as it was left, whatever is asked."""
    return learned.delta.applied(lesson.subject)


def learner(name: str, *, lr: float, options: type = NoOptions, view: View = plain_view) -> Callable[[L], L]:
    """Register a method under a name, with the learning rate that it has by default and its options' dataclass."""

    def register(learn: L) -> L:
        LEARNERS[name] = Learner(name, learn, options, view, lr)
        return learn

    return register


def learner_named(name: str) -> Learner:
    """Raises TuneError with the names there are."""
    if name not in LEARNERS:
        raise TuneError(f"unknown method {name!r}; methods are {', '.join(LEARNERS)}")
    return LEARNERS[name]


def options_of(method: Learner, given: Mapping[str, Any]) -> Any:
    """A method's options. Raises TuneError for one that it does not have, and for a value of another type or range."""
    return made_options(method.options, given, method=method.name)


def entries_now(subject: Subject, neurons: NeuronSet | None) -> dict[str, Tensor]:
    """The entries of a set's slice as they are now, on the CPU; every parameter where the set is None."""
    entries = whole_entries(subject) if neurons is None else slice_entries(parts_of(subject, neurons))
    return {entry.key: entry.read().cpu() for entry in entries}


def rebased(lesson: Lesson, step: Delta) -> Delta:
    """One delta from the untouched subject for what the tasks before and this one changed together.

    `step` was trained on top of what the task before left; its entries count where both have some.
    """
    before = None if lesson.before is None else lesson.before.delta
    neurons = step.neurons
    if before is not None and neurons is not None and before.neurons is not None:
        neurons = neurons | before.neurons
    base = entries_now(lesson.subject, neurons)
    with lesson.resumed(), replace(step, subject=lesson.subject.fingerprint).applied(lesson.subject):
        values = entries_now(lesson.subject, neurons)
    return Delta(lesson.subject.fingerprint, neurons, values, base, step.history, dict(step.origin))
