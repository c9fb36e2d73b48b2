"""Streams: the tasks that are learned one after another, and the orders they come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..corpora.examples import Corpus
from .errors import TuneError

Order = str | Sequence[str] | None

# Leng & Xiong (arXiv 2407.06488), Table 14; the first three are the standard benchmark's, the others the large one's
ORDERS: dict[str, tuple[str, ...]] = {
    "order-1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "order-2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "order-3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "order-4": ("mnli", "qqp", "rte", "amazon", "sst-2", "dbpedia", "agnews", "yahoo"),
    "order-5": ("amazon", "agnews", "yahoo", "qqp", "rte", "mnli", "dbpedia", "sst-2"),
    "order-6": ("agnews", "yahoo", "sst-2", "rte", "qqp", "mnli", "dbpedia", "amazon"),
}


@dataclass(frozen=True)
class Task:
    """One step of a stream: what it is trained on and what it is asked."""

    name: str
    train: Corpus
    test: Corpus


def tasks_of(
    sources: Corpus | Sequence[Corpus],
    *,
    each: str = "group",
    train_split: str | None = "auto",
    test_split: str | None = "auto",
    questions: int | None = None,
    order: Order = None,
) -> tuple[Task, ...]:
    """The tasks of a corpus or of several, in the order in which they stand there.

    `each="group"` makes every group a task, `each="corpus"` every corpus. Splits are those of `Corpus.part`: "auto"
    takes the rows tagged "train" to train on and those tagged "test" to ask, and every row for both where a corpus has
    no splits. `questions` keeps at most so many rows of a task's test, drawn by a fixed seed. An `order` that names tasks
    (see `in_order`) makes only those.

    Raises TuneError for two tasks of one name, and for a task without rows to train on or to ask.
    """
    if each not in ("group", "corpus"):
        raise TuneError(f"unknown way {each!r} to make tasks; each is group or corpus")
    tasks: list[Task] = []
    wanted = _names_in(order)
    for corpus in (sources,) if isinstance(sources, Corpus) else sources:
        train, test = corpus.part(train_split, auto="train"), corpus.part(test_split, auto="test")
        for name in (corpus.name,) if each == "corpus" else corpus.groups:
            if wanted is not None and name.casefold() not in wanted:
                continue
            if each == "corpus":
                tasks.append(Task(name, train, sampled(test, questions, by_group=False)))
                continue
            for part, what, split in ((train, "train on", train_split), (test, "ask", test_split)):
                if name not in part.groups:
                    raise TuneError(
                        f"task {name!r} of corpus {corpus.name!r} has no rows to {what} (split {split!r}); add some, "
                        "or leave the task out"
                    )
            tasks.append(Task(name, train.only(name), sampled(test.only(name), questions)))
    names = [task.name for task in tasks]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not tasks:
        raise TuneError(f"two tasks are called {twice[0]!r}; give one another name" if twice else "there is no task")
    return tuple(tasks)


def _names_in(order: Order) -> set[str] | None:
    """The tasks that an order names, without case; None where it names none."""
    if order in (None, "given", "seeded"):
        return None
    return {name.casefold() for name in (ORDERS.get(order, ()) if isinstance(order, str) else order or ())}


def sampled(corpus: Corpus, count: int | None, *, by_group: bool = True) -> Corpus:
    """At most so many rows of every group, or in all, drawn by a fixed seed and kept in their order; None keeps all."""
    if count is None:
        return corpus
    if count < 1:
        raise TuneError(f"questions and samples are numbers of rows, expected 1 or more, got {count}")
    kept: set[int] = set()
    for group in corpus.groups if by_group else (None,):
        rows = [row for row, example in enumerate(corpus) if group in (None, example.group)]
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
        kept |= {rows[place] for place in drawn.tolist()}
    return replace(corpus, examples=tuple(example for row, example in enumerate(corpus) if row in kept))


def in_order(tasks: Sequence[Task], order: Order, *, seed: int) -> tuple[int, ...]:
    """Which task comes when, as places in `tasks`.

    None (or "given") leaves the tasks as they are, "seeded" draws an order from the seed, a name of `ORDERS` or a
    sequence of task names learns those, whatever their case, and no others. Raises TuneError for a name that no task has.
    """
    if order is None or order == "given":
        return tuple(range(len(tasks)))
    if order == "seeded":
        return tuple(torch.randperm(len(tasks), generator=torch.Generator().manual_seed(seed)).tolist())
    if isinstance(order, str) and order not in ORDERS:
        raise TuneError(f"unknown order {order!r}; orders are given, seeded, {', '.join(ORDERS)}, or names of tasks")
    wanted = ORDERS[order] if isinstance(order, str) else tuple(order)
    places = {task.name.casefold(): place for place, task in enumerate(tasks)}
    missing = [name for name in wanted if name.casefold() not in places]
    if missing or len(set(wanted)) < len(wanted):
        have = ", ".join(task.name for task in tasks)
        raise TuneError(
            f"the order needs task {missing[0]!r}, the stream has {have}" if missing else "the order names a task twice"
        )
    return tuple(places[name.casefold()] for name in wanted)
