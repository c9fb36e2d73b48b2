from __future__ import annotations

from dataclasses import replace

import pytest
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.streams import ORDERS, Task, in_order, sampled, tasks_of


def named(*names: str) -> tuple[Task, ...]:
    one = Corpus((Example("1", "g", "p", "a"),))
    return tuple(Task(name, one, one) for name in names)


def test_groups_become_tasks(corpus: Corpus) -> None:
    tasks = tasks_of(corpus)
    assert [task.name for task in tasks] == ["aland", "borland", "dor"]
    for task in tasks:
        assert task.train.groups == task.test.groups == (task.name,)
        assert task.train.splits == ("train",)
        assert task.test.splits == ("test",)


def test_several_corpora_make_one_stream(corpus: Corpus) -> None:
    tasks = tasks_of([corpus.only("dor"), corpus.only(["aland", "borland"])])
    assert [task.name for task in tasks] == ["dor", "aland", "borland"]
    parts = [replace(corpus.only("dor"), name="one"), replace(corpus.only(["aland", "borland"]), name="two")]
    tasks = tasks_of(parts, each="corpus")
    assert [(task.name, len(task.train), len(task.test)) for task in tasks] == [("one", 2, 2), ("two", 4, 4)]


def test_questions_are_drawn_by_a_fixed_seed(corpus: Corpus) -> None:
    tasks = tasks_of(corpus, questions=1)
    assert [len(task.test) for task in tasks] == [1, 1, 1]
    assert tasks == tasks_of(corpus, questions=1)
    assert sampled(corpus, 99) == corpus
    assert sampled(corpus, 3).counts == {"aland": 3, "borland": 3, "dor": 3}


def test_a_task_without_rows_is_named(corpus: Corpus) -> None:
    rows = [e for e in corpus if e.group != "dor" or e.tags["split"] == "test"]
    with pytest.raises(CorpusError, match="no example with split='dev'"):
        tasks_of(corpus, test_split="dev")
    with pytest.raises(TuneError, match="task 'dor' of corpus 'gap' has no rows to train on"):
        tasks_of(Corpus((*[e for e in rows if e.group == "dor"], *[e for e in rows if e.group != "dor"]), "gap"))


def test_an_order_by_name_makes_only_its_tasks(corpus: Corpus) -> None:
    """So that a benchmark of which some tasks lack a file can be used for the others."""
    rows = tuple(e for e in corpus if e.group != "dor" or e.tags["split"] == "test")
    order = ["Borland", "aland"]
    tasks = tasks_of(Corpus(rows), order=order)
    assert [task.name for task in tasks] == ["aland", "borland"]
    assert in_order(tasks, order, seed=0) == (1, 0)
    assert len(tasks_of(corpus, order="seeded")) == 3
    with pytest.raises(TuneError, match="there is no task"):
        tasks_of(corpus, order="order-1")


def test_tasks_of_one_name_are_refused(corpus: Corpus) -> None:
    with pytest.raises(TuneError, match="two tasks are called 'aland'"):
        tasks_of([corpus, corpus])
    with pytest.raises(TuneError, match="unknown way 'row'"):
        tasks_of(corpus, each="row")


def test_orders() -> None:
    tasks = named("a", "b", "c", "d", "e")
    assert in_order(tasks, None, seed=3) == in_order(tasks, "given", seed=3) == (0, 1, 2, 3, 4)
    drawn = {in_order(tasks, "seeded", seed=seed) for seed in range(8)}
    assert len(drawn) > 4
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in drawn)
    assert in_order(tasks, "seeded", seed=3) == in_order(tasks, "seeded", seed=3)
    assert in_order(tasks, ["D", "a"], seed=0) == (3, 0)


def test_the_six_orders_of_the_paper() -> None:
    """Leng & Xiong, Table 14, written down a second time."""
    short = "Amazon AGNews Yahoo QQP RTE MNLI DBPedia SST-2"
    assert in_order(named(*short.split()), "order-5", seed=0) == tuple(range(8))
    assert [" > ".join(ORDERS[f"order-{n}"]) for n in (1, 4)] == [
        "dbpedia > amazon > yahoo > agnews", "mnli > qqp > rte > amazon > sst-2 > dbpedia > agnews > yahoo",
    ]  # fmt: skip
    assert {len(set(names)) for names in ORDERS.values()} == {4, 8}
    assert len({frozenset(names) for names in ORDERS.values()}) == 2


def test_an_order_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TuneError, match="the order needs task 'dbpedia', the stream has a, b"):
        in_order(named("a", "b"), "order-1", seed=0)
    with pytest.raises(TuneError, match="unknown order 'order-9'; orders are given, seeded, order-1"):
        in_order(named("a"), "order-9", seed=0)
    with pytest.raises(TuneError, match="names a task twice"):
        in_order(named("a", "b"), ["a", "a"], seed=0)
