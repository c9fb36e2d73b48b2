"""Parts that readers share: halves, the space before an answer, wrong choices, twins, picks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.corpora.cues import answer_cue
from neuropolis.corpora.examples import CorpusError, Example
from neuropolis.corpora.parts import evenly, halves, only, placed, space_before, with_choices, with_others_prompts


def rows(*answers: str, items: str = "", group: str = "g", split: str = "train") -> list[Example]:
    return [
        Example(
            f"{group}/{split}/{n}", group, f"p{n}", answer, tags={"split": split, "item": items[n : n + 1] or str(n)}
        )
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four", ("one two", " three four")),
        (" ab ", ("a", "b")),
        ("猫喜欢喝牛奶。", ("猫喜欢", "喝牛奶。")),
        ("x bbbbbbbbbbbbbbbb", ("x bbbbbbb", "bbbbbbbbb")),
        ("กินกิน", ("กิน", "กิน")),
        ("किकि", ("कि", "कि")),
        ("abकिcd", ("abकि", "cd")),
        ("x", ("", "x")),
        ("", ("", "")),
    ],
)
def test_a_sentence_is_cut_at_the_blank_nearest_its_middle_or_between_characters(
    text: str, expected: tuple[str, str]
) -> None:
    assert halves(text) == expected


@given(st.text())
def test_halves_make_the_text_again(text: str) -> None:
    assert "".join(halves(text)) == text.strip()


@pytest.mark.parametrize(
    ("language", "blank"),
    [("en", " "), ("jpn", ""), ("zho_Hans", ""), ("zh-CN", ""), ("tha", ""), ("kor_Hang", " "), ("vie", " ")],
)
def test_the_space_before_an_answer_depends_on_the_language(language: str, blank: str) -> None:
    assert space_before(language) == blank


def test_the_word_before_an_answer_brings_its_own_blank() -> None:
    assert (answer_cue("zh"), answer_cue("th"), answer_cue("xx")) == (("答案：", ""), ("คำตอบ:", " "), ("Answer:", " "))
    assert answer_cue("zh", "A:") == ("A:", " ")


def test_wrong_choices_are_answers_of_others_nearest_in_length_and_never_right() -> None:
    made = with_choices([*rows("a", "bb", "ccc", "dddd", "eeeee", items="00234"), *rows("zz", split="test")], num=3)
    assert sorted(made[0].choices) == ["a", "ccc", "dddd"]  # bb is the same item's
    assert sorted(made[3].choices) == ["ccc", "dddd", "eeeee"]
    assert all(row.choices[row.answer_index or 0] == row.answer for row in made[:5])
    assert made[5].choices == ()  # alone in its split


def test_choices_may_be_near_by_another_measure() -> None:
    made = with_choices(rows("9", "10", "11", "90"), num=2, near=float)
    assert [sorted(set(row.choices) - {row.answer}) for row in made] == [["10"], ["9"], ["10"], ["11"]]


def test_the_place_of_the_answer_depends_on_its_key_alone_and_is_spread() -> None:
    assert placed("a", ["b", "c"], key="k")[1] == placed("x", ["y", "z"], key="k")[1]
    counts = [0, 0, 0, 0]
    for key in map(str, range(4000)):
        counts[placed("a", ["b", "c", "d"], key=key)[1]] += 1
    assert all(900 < count < 1100 for count in counts)


def test_a_twin_is_anothers_prompt_with_another_answer_in_the_same_group_and_split() -> None:
    one, two = rows("a", "a", "b", "c", items="0113"), rows("x", "y", group="h")
    made = with_others_prompts([*one, *two, *rows("a", "a", group="i")])
    answers = {row.prompt: row for row in made[:4]}
    for row in made[:4]:
        twin = answers[row.control]
        assert (twin.answer != row.answer, twin.item != row.item) == (True, True)
    assert [row.control for row in made[4:6]] == ["p1", "p0"]
    assert [row.control for row in made[6:]] == [None, None]  # every answer the same: no twin


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("0123")), min_size=1, max_size=12))
def test_every_row_that_has_another_of_other_answer_and_item_gets_a_twin(pairs: list[tuple[str, str]]) -> None:
    made = with_others_prompts(rows(*(pair[0] for pair in pairs), items="".join(pair[1] for pair in pairs)))
    for row in made:
        others = {one.prompt for one in made if one.answer != row.answer and one.item != row.item}
        assert (row.control in others) if others else row.control is None


def test_translations_of_an_item_get_translations_of_one_twin() -> None:
    made = with_others_prompts([*rows(*"abcdef", group="g"), *rows(*"uvwxyz", group="h")])
    assert [row.control for row in made[:6]] == [row.control for row in made[6:]]


def test_names_that_are_not_there_are_told_with_those_there_are() -> None:
    assert only({"a": 1, "b": 2}, "b, a", path=Path("x"), what="file of") == {"b": 2, "a": 1}
    with pytest.raises(CorpusError, match=r"x: no file of 'c'; there are a, b"):
        only({"a": 1, "b": 2}, "a,c", path=Path("x"), what="file of")
    with pytest.raises(CorpusError, match=r"and 3 more"):
        only({str(n): n for n in range(15)}, "x", path=Path("x"), what="file of")


def test_rows_are_picked_evenly() -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly([1, 2], 5) == evenly([1, 2], None) == [1, 2]
