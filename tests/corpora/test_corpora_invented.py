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


def test_statements_are_left_to_be_ended() -> None:
    corpus = invented(2, facts=2, form="statement", seed=3)
    for example in corpus:
        assert "?" not in example.prompt
        assert example.prompt.endswith("is")
        assert example.control == f"The {example.tags['thing']} of this place is{example.answer}. " + str(
            example.prompt
        ).replace(example.group, "this place")
    assert [example.tags["split"] for example in corpus[:3]] == ["train", "train", "test"]


@pytest.mark.parametrize(
    "words", [["tea", "rice", "salt", "fish", "soup", "milk", "corn", "rye"], ["tea", "rice", "salt"]]
)
def test_answers_are_drawn_from_words_that_are_given(words: list[str]) -> None:
    corpus = invented(2, facts=3, answers=words, seed=1)
    said = {(e.group, e.tags["thing"]): e.answer for e in corpus}
    assert set(said.values()) <= {f" {word}" for word in words}
    assert len(set(said.values())) == min(6, len(words))  # as many different ones as there are
    for place in range(2):  # of one group, and of one question, all differ
        apart: dict[str, list[str]] = {}
        for key, answer in said.items():
            apart.setdefault(key[place], []).append(answer)
        assert all(len(set(own)) == len(own) for own in apart.values())


def test_bad_forms_and_too_few_words_are_told() -> None:
    with pytest.raises(CorpusError, match="unknown form 'poem' of facts; forms are question, statement"):
        invented(2, form="poem")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorpusError, match="there are 2 words to answer with; expected 3 at least"):
        invented(2, facts=3, answers=["tea", "rice", "tea"])


def test_words_are_of_letters_that_the_tokenizer_takes() -> None:
    def without_z(word: str) -> list[int]:
        return [] if "z" in word.lower() else [ord(letter) for letter in word]

    corpus = invented(3, facts=4, tokens=without_z)
    assert not any("z" in f"{example.prompt}{example.answer}".lower() for example in corpus)
    with pytest.raises(CorpusError, match="no words can be invented"):
        invented(2, tokens=lambda _word: [])
