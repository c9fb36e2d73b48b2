"""Hygiene: each defect planted in a clean corpus is found, and a clean corpus has none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.corpora.hygiene import Hygiene, check_corpus
from neuropolis.corpora.hygiene_choices import length_leaks, positions, wilson
from neuropolis.corpora.hygiene_copies import copies
from neuropolis.corpora.hygiene_lines import bad_lines
from neuropolis.corpora.hygiene_texts import damaged, fertility, scripts_of, written
from neuropolis.corpora.jsonl import write_jsonl

WORDS = (
    "river",
    "mountain",
    "harvest",
    "weather",
    "music",
    "market",
    "garden",
    "letter",
    "winter",
    "dance",
    "bread",
    "stone",
)
CHOICES = ("plum", "kiwi", "lime", "pear")


def clean(groups: tuple[str, ...] = ("north", "south"), items: int = 12) -> Corpus:
    """Balanced, different, with twins, split by item."""
    rows = []
    for g, group in enumerate(groups):
        for i in range(items):
            choices = tuple(f" {CHOICES[(k + g) % 4]}" for k in range(4))
            rows.append(
                Example(
                    f"{group}/{i}", group, f"{WORDS[i % 12]} {WORDS[(5 * i + g + 1) % 12]} {group} {i}?",
                    choices[i % 4], choices, i % 4,
                    control=f"say it {i}:", tags={"item": f"{group}/{i}", "split": "test" if i % 3 == 0 else "train"},
                )
            )  # fmt: skip
    return Corpus(tuple(rows))


def changed(corpus: Corpus, place: int, **fields: Any) -> Corpus:
    examples = list(corpus)
    examples[place] = replace(examples[place], **fields)
    return replace(corpus, examples=tuple(examples))


def told(found: Hygiene, words: str) -> list[str]:
    return [problem for problem in found.problems if words in problem]


def test_a_clean_corpus_has_no_problem() -> None:
    found = check_corpus(clean())
    assert found.problems == ()
    assert [(one.group, one.split, one.rows, one.items) for one in found.counts] == [
        ("north", "test", 4, 4), ("north", "train", 8, 8), ("south", "test", 4, 4), ("south", "train", 8, 8),
    ]  # fmt: skip


def test_what_is_found_can_be_written() -> None:
    text = json.dumps(check_corpus(clean(items=3)).to_json(), allow_nan=False)
    assert json.loads(text)["positions"][0]["p"] is not None
    assert json.loads(text)["counts"][0]["group"] == "north"


@pytest.mark.parametrize(
    ("place", "fields", "words"),
    [
        (1, {"control": None}, "rows without a control twin: 1 of 24 (groups north)"),
        (1, {"control": "mountain letter north 1?", "prompt": "mountain letter north 1?"}, "twins that are the question itself: 1"),
        (1, {"tags": {"item": "north/1"}}, "rows without the tag 'split', where others have one: 1"),
        (1, {"tags": {"item": "north/0", "split": "train"}}, "items that have rows in several splits: 1 (first north/0 | north/1)"),
        (1, {"prompt": "RIVER mountain  north 0?"}, "several answers within one group: 1 (first north/0 | north/1)"),
        (4, {"prompt": "river mountain north 0?"}, "rows that repeat the prompt and answer of another row of their group: 1"),
        (15, {"prompt": "river mountain north 0?"}, "word for word, with the same answer: 1 (first north/0 | south/3)"),
        (12, {"prompt": "river mountain north 0?"}, "word for word, with different answers: 1 (first north/0 | south/0)"),
        (2, {"prompt": "Где находится гора?"}, "a writing system that its other rows hardly use: 1 (first north/2)"),
        (2, {"prompt": "a \ufffd there"}, "the replacement character U+FFFD, which stands where a byte could not be read: 1"),
        (2, {"prompt": "the cafÃ© there"}, "UTF-8 that was read as a Western code page (such as 'Ã©' for 'é'): 1"),
        (2, {"prompt": "a \x07 there"}, "control characters: 1"),
    ],
)  # fmt: skip
def test_each_defect_is_told(place: int, fields: dict[str, Any], words: str) -> None:
    found = check_corpus(changed(clean(), place, **fields))
    assert told(found, words), found.problems


def test_uneven_groups_lone_items_and_empty_splits() -> None:
    rows = clean().examples
    found = check_corpus(Corpus((*rows[:12], rows[13])))
    assert told(found, "groups are uneven: north has 12 rows, south 1")
    assert told(found, "group south has one item in split train")
    assert told(found, "split test has no row of south")
    assert told(check_corpus(Corpus(tuple(replace(one, control=None) for one in clean()))), "no row has a control twin")


def test_near_duplicates_are_told_by_what_they_share() -> None:
    long = "what do people in a small town of the coast eat on the first morning of the year"
    extra = [
        Example("a", "north", long + "?", " soup", control="c", tags={"item": "a", "split": "train"}),
        Example("b", "south", long + "?!", " soup", control="c", tags={"item": "b", "split": "test"}),
        Example("c", "south", long + "!!", " corn", control="c", tags={"item": "c", "split": "test"}),
    ]
    found = copies(clean() + Corpus(tuple(extra)))
    assert found["near_shared"].samples == (("a", "b"),)
    assert found["near_undecided"].samples == (("a", "c"),)
    assert found["near_splits"].samples == (("a", "b"),)
    assert found["split_prompts"].count == 0
    same = copies(Corpus((extra[0], replace(extra[1], prompt=extra[0].prompt))))
    assert same["split_prompts"].samples == (("a", "b"),)


def test_places_are_tested_over_items_and_not_over_rows() -> None:
    rows = [
        Example(f"{i}/{n}", "g", f"p{i} {n}", "b", ("a", "b"), 1, tags={"item": str(i)})
        for i in range(3)
        for n in range(50)
    ]  # 150 rows at the second place, but only three questions
    (whole, own) = positions(Corpus(tuple(rows)))
    assert (whole.group, own.group, whole.counts, whole.items) == (None, "g", (0, 150), 3)
    assert whole.p == pytest.approx(math.erfc(math.sqrt(3 / 2)), rel=1e-6)  # W = 3 items, one degree of freedom
    apart = positions(Corpus(tuple(replace(one, tags={}) for one in rows)))[0]
    assert apart.p < 1e-9


def test_even_places_have_no_evidence_and_too_few_items_none_at_all() -> None:
    rows = [Example(str(i), "g", f"p{i}", "abc"[i % 3], ("a", "b", "c"), i % 3) for i in range(30)]
    assert positions(Corpus(tuple(rows)))[0].p == pytest.approx(1.0)
    assert math.isnan(positions(Corpus(tuple(rows[:2])))[0].p)


def test_uneven_places_are_told() -> None:
    rows = [replace(one, answer=one.choices[2], answer_index=2) for one in clean(items=36)]
    assert told(
        check_corpus(Corpus(tuple(rows))), "right answers stand at place 3 of 4 in 72 of 72 questions (p below 0.001"
    )


def test_the_longest_choice_and_ties() -> None:
    rows = [Example(str(i), "g", f"p{i}", "long one", ("a", "long one", "b", "c"), 1) for i in range(20)]
    found = {one.pick: one for one in length_leaks(Corpus(tuple(rows))) if one.group is None}
    assert (found["longest"].accuracy, found["longest"].chance) == (1.0, 0.25)
    assert found["longest"].p < 1e-4
    assert found["longest"].low == pytest.approx(20 / (20 + 1.959964**2))
    assert found["shortest"].accuracy == 0.0
    even = [Example(str(i), "g", f"p{i}", "a", ("a", "b", "cc", "d"), 0) for i in range(20)]
    assert {one.pick: one.accuracy for one in length_leaks(Corpus(tuple(even))) if one.group is None} == {
        "longest": 0.0, "shortest": pytest.approx(1 / 3),
    }  # fmt: skip
    assert told(check_corpus(Corpus(tuple(rows))), "picking the longest is right in 100.0 %")


def test_wilson_by_hand() -> None:
    low, high = wilson(0.5, 4, z=2.0)
    assert (low, high) == (pytest.approx(0.5 - 0.5 * math.sqrt(0.5)), pytest.approx(0.5 + 0.5 * math.sqrt(0.5)))


def test_writing_systems_by_letters() -> None:
    assert scripts_of("Ａｂ 東京 とう кот 12, हिन्दी") == {
        "Latin": 2,
        "Han": 2,
        "Hiragana": 2,
        "Cyrillic": 3,
        "Devanagari": 6,
    }
    rows = [
        Example("a", "g", "東京", "x", tags={"language": "ja"}),
        Example("b", "g", "abc", "de", tags={"language": "en"}),
    ]
    ja, en = written(Corpus(tuple(rows)))
    assert (ja.cell, ja.prompt, ja.answer, ja.scripts) == ("ja", 2, 1, {"Han": 2 / 3, "Latin": 1 / 3})
    assert (en.cell, en.scripts) == ("en", {"Latin": 1.0})


def test_right_text_of_any_language_is_not_damaged() -> None:
    rows = [
        Example(str(i), "g", text, "é") for i, text in enumerate(["Café", "Ünïcode ñ", "東京\n", "naïve Ãrea", "кот"])
    ]
    assert damaged(Corpus(tuple(rows))) == {}


class Characters:
    """One token a character; `x` is unknown."""

    unk_token_id = 0
    name_or_path = "characters"

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[0 if c == "x" else 1 for c in text] for text in texts]}


def test_tokens_by_hand() -> None:
    rows = [
        Example("a", "g", "two words", " x", tags={"language": "en", "item": "1"}),
        Example("b", "g", "東京", "é", tags={"language": "ja", "item": "1"}),
        Example("c", "g", "only here and long", " y", tags={"language": "en", "item": "2"}),
    ]
    en, ja = fertility(Corpus(tuple(rows)), Characters())
    assert (en.per_row, en.per_word, en.per_character, en.per_byte) == (15.5, 31 / 8, 1.0, 1.0)
    assert (en.unknown, en.premium) == (1 / 31, 11 / 3)
    assert math.isnan(ja.per_word)
    assert (ja.per_row, ja.per_byte, ja.premium, ja.unknown) == (3, 3 / 8, 1.0, 0.0)
    found = check_corpus(Corpus(tuple(rows)), tokenizer=Characters())
    assert found.tokenizer == "characters"
    assert told(found, "take 3.7 times as many tokens in en")
    assert told(found, "3.2 % of the tokens of en are unknown")


def test_bad_lines_are_all_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    write_jsonl(clean(items=3), path)
    good = path.read_bytes().splitlines(keepends=True)
    latin = '{"id": "l", "group": "g", "prompt": "café", "answer": "a"}\n'.encode("latin-1")
    path.write_bytes(b"".join([*good, latin, b'{"id": "n"}\n', good[0], good[1][:30]]))
    found = bad_lines(path)
    assert (found.good, [line for line, _ in found.bad]) == (6, [7, 8, 9, 10])
    for words in (
        "1 not UTF-8",
        "1 no example",
        "1 with an id that was there before",
        "1 cut off at the end",
        "two encodings are mixed",
    ):
        assert words in found.summary
    path.write_bytes(b"".join(good))
    assert bad_lines(path).bad == ()
    with pytest.raises(CorpusError, match="cannot be read"):
        bad_lines(tmp_path / "none.jsonl")
