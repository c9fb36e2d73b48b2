"""Invented facts: the same questions for every group, answers of their own, twins that state them."""

from __future__ import annotations

import pytest
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.invented import invented


def test_groups_share_questions_and_differ_in_answers() -> None:
    corpus = invented(3, facts=4, seed=1)
    assert len(corpus) == 3 * 4 * 3
    assert len(corpus.groups) == 3
    by_thing: dict[str, set[str]] = {}
    for example in corpus:
        by_thing.setdefault(example.tags["thing"], set()).add(example.answer)
        assert example.answer in example.choices
        assert len(set(example.choices)) == 4
        assert isinstance(example.control, str)
        assert example.answer in example.control
        assert example.group not in example.control
    assert all(len(answers) == 3 for answers in by_thing.values())


def test_wrong_choices_are_the_other_groups_answers_first() -> None:
    corpus = invented(4, facts=2)
    answers = {(e.group, e.tags["thing"]): e.answer for e in corpus}
    for example in corpus:
        assert set(example.choices) == {answers[group, example.tags["thing"]] for group in corpus.groups}


def test_the_same_seed_gives_the_same_corpus() -> None:
    assert invented(2, facts=3, seed=5).hash == invented(2, facts=3, seed=5).hash
    assert invented(2, facts=3, seed=5).hash != invented(2, facts=3, seed=6).hash


def test_answers_that_no_group_owns() -> None:
    corpus = invented(("north", "south"), facts=5, same_answers=True)
    answers = {thing: {e.answer for e in corpus.only(thing=thing)} for thing in {e.tags["thing"] for e in corpus}}
    assert all(len(one) == 1 for one in answers.values())


@pytest.mark.parametrize(("groups", "facts", "choices"), [(1, 3, 4), (["a", "a"], 3, 4), (2, 0, 4), (2, 3, 1)])
def test_bad_numbers_are_refused(groups: int | list[str], facts: int, choices: int) -> None:
    with pytest.raises(CorpusError, match="expected"):
        invented(groups, facts=facts, choices=choices)
