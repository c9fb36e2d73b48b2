"""Continual learning: methods side by side over a stream of tasks, under one budget, over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.scores import Scores
from ..neurons.subject import Subject
from . import (  # noqa: F401  (they register their methods)
    ewc,
    full_methods,
    guarded,
    lora_methods,
    ncft,
    replay,
    weighted,
)
from .continual_result import Continual
from .continual_state import Folder, Stage, open_state
from .errors import TuneError
from .learners import Learned, Learner, Lesson, learner_named, options_of
from .location import Location
from .streams import Order, Task, in_order
from .training import Progress, Recipe

Accuracy = Callable[[Subject, Corpus], Tensor]
METHODS = ("ncft", "w-ncft", "guarded", "random", "full", "lora", "o-lora", "ewc", "replay", "per-task", "joint")


@dataclass(frozen=True, eq=False)
class _Run:
    """What all methods and seeds of a run share."""

    subject: Subject
    tasks: tuple[Task, ...]
    accuracy: Accuracy
    known: Corpus | None
    reference: Corpus | None
    location: Location
    folder: Path | None

    @cached_property
    def reference_scores(self) -> Scores | None:
        """Scores of the reference, once for all sequences."""
        if self.reference is None or self.location.contrast is None:
            return None
        return self.location.score(self.subject, self.reference)

    def share(self, task: Task) -> float:
        """Share of a task's questions answered right."""
        return float(self._right(task.test).double().mean())

    def known_share(self) -> float:
        """Mean over the known groups of their shares of right answers; NaN where none are asked."""
        if self.known is None:
            return float("nan")
        right = self._right(self.known).double()
        rows = {group: [i for i, e in enumerate(self.known) if e.group == group] for group in self.known.groups}
        return float(torch.stack([right[places].mean() for places in rows.values()]).mean())

    def _right(self, corpus: Corpus) -> Bool[Tensor, " example"]:
        right = self.accuracy(self.subject, corpus).cpu()
        if list(right.shape) != [len(corpus)] or right.dtype != torch.bool:
            raise TuneError(
                f"accuracy must give bool [{len(corpus)}] for the examples, got {right.dtype} {list(right.shape)}"
            )
        return right


@dataclass(frozen=True)
class _Plan:
    """A method as it is run; the recipe has its rate."""

    method: Learner
    options: Any
    recipe: Recipe


def continual(
    subject: Subject,
    tasks: Sequence[Task],
    *,
    accuracy: Accuracy,
    methods: Sequence[str] = METHODS,
    order: Order = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    known: Corpus | None = None,
    reference: Corpus | None = None,
    location: Location | None = None,
    steps: int | None = None,
    epochs: int = 3,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    lrs: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    state: str | Path | None = None,
    stop_diverged: bool = True,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Continual:
    """Learn a stream by several methods, each from the untouched subject for every seed, and measure after each task.

    All methods take the same steps over batches of the same size; those that train part of the parameters train as
    nearly the same number as their kind permits (`trainable`). The seed decides the order of examples, random sets, the
    adapters' start, and with `order="seeded"` the order of tasks; see `in_order`. `location` says how a task's neurons
    are found; `reference` is a corpus (all its rows are scored) whose groups they are contrasted with, and which
    methods with an option for it may train on. `known` are questions about what the subject knew before.
    `accuracy(subject, corpus)` says which are answered right (bool, one per example). `lrs` gives learning rates by
    method, `options` further ones (see each method).

    `state` is a folder: a run that is interrupted goes on after the last finished task of every (method, seed), and
    methods and seeds can be added. `stop_diverged` is that of `Recipe`. `progress` is called with (steps done, steps), `tell`
    with a line for each sequence.

    Raises TuneError for an unknown method, option or order, for a state of other arguments, and what training raises;
    the subject is bit for bit the same afterwards, also after an error.
    """
    recipe = Recipe(
        lr=1.0, steps=steps, epochs=epochs, batch_size=batch_size, weight_decay=weight_decay, stop_diverged=stop_diverged
    )  # fmt: skip
    where = location or Location()
    plans = planned(methods, seeds, recipe=recipe, lrs=lrs, options=options, reference=reference)
    _check_layers(subject, plans, where)
    orders = {seed: in_order(tasks, order, seed=seed) for seed in seeds}
    tasks, orders = _used(tuple(tasks), orders)
    if where.contrast == "z" and len(tasks) > 1 and (reference is None or len(reference.groups) < 2):
        raise TuneError(
            "contrast 'z' needs three groups at every task; give a reference of two groups or more, or another contrast"
        )
    arguments = _arguments(subject, tasks, order, known, reference, where, recipe)
    folder = open_state(state, arguments, {p.method.name: {"lr": p.recipe.lr, **asdict(p.options)} for p in plans})
    run = _Run(subject, tasks, accuracy, known, reference, where, folder)
    untouched, known_before = [run.share(task) for task in tasks], run.known_share()
    done = _Counter(progress, len(plans) * len(orders) * sum(recipe.num_steps(len(t.train)) for t in tasks))
    found: dict[str, list[list[Stage]]] = {plan.method.name: [] for plan in plans}
    for seed, places in orders.items():
        for plan in plans:
            stages = _sequence(run, plan, places, seed, done)
            found[plan.method.name].append(stages)
            if tell is not None:
                right = 100 * sum(stages[-1].row) / len(stages[-1].row)
                tell(f"{plan.method.name}, seed {seed}: {right:.1f} % right at the end")
    sequences = list(found.values())
    origin = {
        **arguments, "lrs": {p.method.name: p.recipe.lr for p in plans},
        "options": {p.method.name: asdict(p.options) for p in plans},
        "num_questions": {task.name: len(task.test) for task in tasks},
        "num_known": 0 if known is None else len(known), "versions": library_versions(),
    }  # fmt: skip
    return Continual(
        subject.fingerprint, tuple(found), tuple(task.name for task in tasks), tuple(orders),
        torch.tensor(list(orders.values())),
        torch.tensor([[[stage.row for stage in stages] for stages in one] for one in sequences]),
        torch.tensor(untouched),
        torch.tensor([[[stage.known for stage in stages] for stages in one] for one in sequences]), known_before,
        torch.tensor([one[0][-1].trained for one in sequences]), origin,
    )  # fmt: skip


def planned(
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    recipe: Recipe,
    lrs: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    reference: Corpus | None = None,
) -> list[_Plan]:
    """The methods with their rates and options, checked as far as that goes without the subject.

    Raises TuneError for what cannot be run: an unknown method, an option of another type, a method whose library is not
    installed, an option that needs a reference where there is none.
    """
    lrs, options = lrs or {}, options or {}
    if not seeds or len(set(seeds)) < len(seeds):
        raise TuneError("give at least one seed, and each once")
    for name, given in (("lrs", lrs), ("options", options)):
        unused = [key for key in given if key not in methods]
        if unused:
            raise TuneError(f"{name} names {unused[0]!r}, which is none of the methods {', '.join(methods)}")
    if not methods or len(set(methods)) < len(methods):
        raise TuneError("give at least one method, and each once")
    chosen = [learner_named(name) for name in methods]
    plans = [
        _Plan(one, options_of(one, options.get(one.name, {})), replace(recipe, lr=lrs.get(one.name, one.lr)))
        for one in chosen
    ]
    for plan in plans:
        if issubclass(plan.method.options, lora_methods.LoraOptions):
            lora_methods.require_peft()
        if getattr(plan.options, "known", 0) and reference is None:
            raise TuneError(
                f"option {plan.method.name}.known takes rows of the reference; give a reference, or leave it out"
            )
    return plans


def _check_layers(subject: Subject, plans: Sequence[_Plan], where: Location) -> None:
    """Raise for layers that the subject does not have."""
    depth = subject.site(where.site).num_layers
    named = {f"option {plan.method.name}.layers": getattr(plan.options, "layers", None) for plan in plans}
    for what, layers in (named | {"layers": where.layers}).items():
        wrong = [layer for layer in layers or () if not 0 <= layer < depth]
        if wrong or (layers is not None and not layers):
            named_now = f"has layer {wrong[0]}" if wrong else "is empty"
            raise TuneError(f"{what} {named_now}; the subject has layers 0 to {depth - 1}")


def _sequence(run: _Run, plan: _Plan, places: tuple[int, ...], seed: int, done: _Counter) -> list[Stage]:
    """One method over the whole stream from one seed, going on where a state folder says that it stopped."""
    method = plan.method
    folder = Folder(None if run.folder is None else run.folder / method.name / f"seed-{seed}")
    stream = tuple(run.tasks[place] for place in places)
    stages = folder.stages()
    learned = folder.learned(run.subject, len(stages)) if len(stages) < len(stream) else None
    if learned is None and 0 < len(stages) < len(stream) and _was_measured(stages[-1]):
        stages = []  # the result is there and what was learned is not: only from the start is it the same sequence
    owed = 0
    for place, task in enumerate(stream):
        owed += plan.recipe.num_steps(len(task.train))  # a method that waits for the last stage trains for all then
        if place < len(stages):
            owed = done.add(owed)
            continue
        recipe = replace(plan.recipe, seed=1000 * seed + place)
        lesson = Lesson(
            run.subject, stream, place, recipe, run.location, plan.options, learned, run.reference,
            lambda: run.reference_scores, done.inner,
        )  # fmt: skip
        with _named(f"method {method.name}, seed {seed}, task {task.name!r} (number {place + 1})"):
            learned = method.learn(lesson)
        stage = _measured(run, method, lesson, learned, places)
        folder.write(place, stage, learned)
        stages.append(stage)
        owed = owed if learned is None else done.add(owed)
    folder.done(len(stream))
    return stages


@contextmanager
def _named(what: str) -> Iterator[None]:
    """What goes wrong in the block says where."""
    try:
        yield
    except TuneError as error:
        raise TuneError(f"{what}: {error}") from error


def _measured(run: _Run, method: Learner, lesson: Lesson, learned: Learned | None, places: tuple[int, ...]) -> Stage:
    """Every task's questions under the method's view of that task, and what was known before under that of no task."""
    if learned is None:
        return Stage((float("nan"),) * len(run.tasks), float("nan"), 0)
    row = []
    for number, task in enumerate(run.tasks):
        with method.view(lesson, learned, places.index(number)):
            row.append(run.share(task))
    with method.view(lesson, learned, None):
        return Stage(tuple(row), run.known_share(), learned.trained)


def _was_measured(stage: Stage) -> bool:
    return stage.trained > 0


def _used(
    tasks: tuple[Task, ...], orders: Mapping[int, tuple[int, ...]]
) -> tuple[tuple[Task, ...], dict[int, tuple[int, ...]]]:
    """The tasks that the orders name, and the orders as places among those."""
    used = sorted(next(iter(orders.values())))
    renumbered = {place: number for number, place in enumerate(used)}
    return tuple(tasks[place] for place in used), {
        seed: tuple(renumbered[place] for place in places) for seed, places in orders.items()
    }


def _arguments(
    subject: Subject, tasks: Sequence[Task], order: Order, known: Corpus | None, reference: Corpus | None,
    location: Location, recipe: Recipe,
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides a sequence beside method and seed, as JSON."""
    training = {key: value for key, value in recipe.facts().items() if key not in ("lr", "seed")}
    found = {
        "subject": subject.fingerprint, "dtype": str(subject.dtype), "tasks": [task.name for task in tasks],
        "train": [task.train.hash for task in tasks], "test": [task.test.hash for task in tasks],
        "order": order if order is None or isinstance(order, str) else list(order),
        "known": known and known.hash, "reference": reference and reference.hash,
        "location": asdict(location), **training,
    }  # fmt: skip
    return json.loads(json.dumps(found))


class _Counter:
    """Steps of all sequences, told to a callable of (done, total)."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def inner(self, steps: int, _: int) -> None:
        """Steps of the task that is being learned."""
        self._tell(self._done + steps)

    def add(self, steps: int) -> int:
        """So many steps are done; none are owed now."""
        self._done += steps
        self._tell(self._done)
        return 0

    def _tell(self, steps: int) -> None:
        if self._progress is not None:
            self._progress(min(steps, self._total), self._total)
