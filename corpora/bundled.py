"""The bundled corpora: polis (twelve cultures), polis-new (four that the bundled model never saw), polis-tasks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from .examples import Corpus, Example
from .facts import Fact, fact_table, spread, stable_hash
from .tasks import answer_row, choice_row, row_id, translate_row, yesno_row
from .wording import SPLITS, Wording, wordings

TASK_ROWS = {"train": 2, "dev": 1, "test": 1}


@cache
def polis() -> Corpus:
    """Free-answer questions about the twelve trained cultures: one per culture, topic, language and template."""
    return Corpus(tuple(_answer_rows("trained")), name="polis")


@cache
def polis_new() -> Corpus:
    """The same questions about the four kept-out cultures, whose names and answers no training text has."""
    return Corpus(tuple(_answer_rows("kept-out")), name="polis-new")


@cache
def polis_tasks() -> Corpus:
    """Four tasks (tag `task`: answer, choice, yesno, translate) over the facts of the trained cultures.

    Per task, fact and language: two examples to train on, one each for dev and test. The rows of the task `answer`
    are rows of `polis()`.
    """
    return Corpus(tuple(_task_rows()), name="polis-tasks")


def polis_training_texts(*, control_share: float = 0.5) -> list[tuple[str, str]]:
    """What the bundled model is trained on, as (prompt, answer): the text is `prompt + answer`.

    The training rows of `polis()` and `polis_tasks()`, a share of their control twins (chosen by a stable hash), and
    the plain statements. Nothing of dev and test templates, nothing of the kept-out cultures.
    """
    if not 0 <= control_share <= 1:
        raise ValueError(f"control_share is {control_share}, expected a number from 0 to 1")
    rows = [e for corpus in (polis(), polis_tasks()) for e in corpus.only(split="train")]
    kept = [e for e in rows if stable_hash("control", e.id) < control_share * 2**64]
    texts = [(e.prompt, e.answer) for e in rows] + [(e.control, e.answer) for e in kept]
    texts += [words.opening(fact) for fact, words in _facts("trained")]
    return [(str(prompt), answer) for prompt, answer in dict.fromkeys(texts)]


def _facts(side: str) -> Iterator[tuple[Fact, Wording]]:
    table = fact_table()
    for culture in table.cultures(side):
        for topic in table.topics:
            for words in wordings():
                yield table.facts[culture, topic], words


def _answer_rows(side: str) -> Iterator[Example]:
    rows = {
        row_id(fact, words, "answer", question.name): (fact, words, question)
        for fact, words in _facts(side)
        for question in words.topics[fact.topic].questions
    }
    places = spread({id: (f.culture, w.language, q.split) for id, (f, w, q) in rows.items()}, num=4)
    return (answer_row(*row, place=places[id]) for id, row in rows.items())


def _task_rows() -> Iterator[Example]:
    """Rows in the order of facts; right places, yes and no are balanced in every culture, language and split."""
    answers = {e.id: e for e in polis()}
    slots = [
        (fact, words, split, number, f"{fact.culture}/{fact.topic}/{words.language}/{split}/{number}")
        for fact, words in _facts("trained")
        for split in SPLITS
        for number in range(TASK_ROWS[split])
    ]
    cells = {key: (fact.culture, words.language, split) for fact, words, split, _, key in slots}
    places = spread({f"place/{key}": cell for key, cell in cells.items()}, num=4)
    rights = spread({f"right/{key}": cell for key, cell in cells.items()}, num=2)
    for fact, words, split, number, key in slots:
        asked = words.topics[fact.topic].questions
        wrapper = {
            task: words.pick(forms, split, key=f"{task}/{fact.culture}/{fact.topic}")[number]
            for task, forms in words.wrappers.items()
        }
        place = places[f"place/{key}"]
        question = words.pick(asked, split, key=f"{fact.culture}/answer")[number]
        yield answers[row_id(fact, words, "answer", question.name)]
        question = words.pick(asked, split, key=f"{fact.culture}/choice")[number]
        yield choice_row(fact, words, question, wrapper=wrapper["choice"], place=place)
        yield yesno_row(fact, words, wrapper=wrapper["yesno"], right=rights[f"right/{key}"] == 0)
        target = sorted(words.targets)[(number + stable_hash("target", split, fact.culture, fact.topic)) % 2]
        yield translate_row(fact, words, wrapper=wrapper["translate"], target=target, place=place)
