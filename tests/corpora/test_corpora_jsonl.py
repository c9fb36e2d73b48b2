"""The native format: what is written is read back, and every bad row says where and why."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.corpora.jsonl import read_jsonl, write_jsonl

GOOD = {"id": "a", "group": "japan", "prompt": "Capital of Japan?", "answer": " Tokyo"}

texts = st.text(min_size=1)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": st.text()}), min_size=1, max_size=3).map(tuple)
prompts = texts | messages


@st.composite
def examples(draw):
    choices = draw(st.lists(texts, max_size=4))
    index = draw(st.integers(0, len(choices) - 1)) if choices else None
    return Example(
        id=draw(texts),
        group=draw(texts),
        prompt=draw(prompts),
        answer=draw(texts) if index is None else choices[index],
        choices=tuple(choices),
        answer_index=index,
        control=draw(st.none() | prompts),
        tags=draw(st.dictionaries(st.text(), st.text(), max_size=3)),
    )


def write(tmp_path, *rows):
    path = tmp_path / "study.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def complaint(path):
    with pytest.raises(CorpusError) as caught:
        read_jsonl(path)
    return str(caught.value)


@given(rows=st.lists(examples(), min_size=1, max_size=5, unique_by=lambda e: e.id))
def test_round_trip(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    corpus = Corpus(tuple(rows), name="x")
    write_jsonl(corpus, path)
    again = read_jsonl(path)
    assert again == corpus
    assert again.hash == corpus.hash


def test_what_may_be_left_out(tmp_path):
    by_index = {"group": "g", "prompt": "p", "choices": ["x", "y"], "answer_index": 1, "answer": None}
    by_answer = {"group": "g", "prompt": "p", "choices": ["x", "y"], "answer": "y"}
    corpus = read_jsonl(write(tmp_path, by_index, by_answer, GOOD))
    assert [e.id for e in corpus] == ["line-1", "line-2", "a"]
    assert [(e.answer, e.answer_index) for e in corpus] == [("y", 1), ("y", 1), (" Tokyo", None)]
    assert corpus.name == "study"
    assert read_jsonl(tmp_path / "study.jsonl", name="mine").name == "mine"


def test_line_ends_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "windows.jsonl"
    row = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n" + row.replace(b'"a"', b'"b"') + b"\r\n")
    assert [e.id for e in read_jsonl(path)] == ["a", "b"]


def test_a_last_line_without_line_end_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD))
    assert len(read_jsonl(path)) == 1


BAD_ROWS = {
    "no answer": ({"answer": ...}, "field 'answer' is missing; expected a string that is not empty"),
    "null answer": ({"answer": None}, "field 'answer' is missing; expected a string that is not empty"),
    "empty answer": ({"answer": ""}, "field 'answer': expected a string that is not empty, found \"\" (str)"),
    "number for answer": ({"answer": 7}, "field 'answer': expected a string that is not empty, found 7 (int)"),
    "no prompt": ({"prompt": ...}, "field 'prompt' is missing; expected a string that is not empty"),
    "empty prompt": ({"prompt": ""}, "field 'prompt': expected a string that is not empty, found \"\" (str)"),
    "no messages": ({"prompt": []}, "field 'prompt': expected at least one message, found an empty list"),
    "message without role": (
        {"prompt": [{"content": "hi"}]},
        "field 'prompt[0]': expected a message with 'role' and 'content', found {\"content\": \"hi\"} (dict)",
    ),
    "message of another type": (
        {"prompt": [{"role": "user", "content": "hi"}, "no"]},
        "field 'prompt[1]': expected a message with 'role' and 'content', found \"no\" (str)",
    ),
    "number for content": (
        {"prompt": [{"role": "user", "content": 3}]},
        "field 'prompt[0].content': expected a string, found 3 (int)",
    ),
    "no group": ({"group": ...}, "field 'group' is missing; expected a string that is not empty"),
    "empty group": ({"group": ""}, "field 'group': expected a string that is not empty, found \"\" (str)"),
    "list for group": ({"group": ["x"]}, "field 'group': expected a string that is not empty, found [\"x\"] (list)"),
    "number for id": ({"id": 3}, "field 'id': expected a string that is not empty, found 3 (int)"),
    "text for choices": ({"choices": "xy"}, "field 'choices': expected a list of strings, found \"xy\" (str)"),
    "no choices in the list": ({"choices": []}, "field 'choices': expected a list of strings, found [] (list)"),
    "number among choices": (
        {"choices": [" Tokyo", 1]},
        "field 'choices[1]': expected a string that is not empty, found 1 (int)",
    ),
    "index too large": (
        {"choices": ["x", " Tokyo"], "answer_index": 2},
        "field 'answer_index': expected an integer from 0 to 1, found 2 (int)",
    ),
    "negative index": (
        {"choices": ["x", " Tokyo"], "answer_index": -1},
        "field 'answer_index': expected an integer from 0 to 1, found -1 (int)",
    ),
    "letter for index": (
        {"choices": ["x", " Tokyo"], "answer_index": "B"},
        "field 'answer_index': expected an integer from 0 to 1, found \"B\" (str)",
    ),
    "truth value for index": (
        {"choices": ["x", " Tokyo"], "answer_index": True},
        "field 'answer_index': expected an integer from 0 to 1, found true (bool)",
    ),
    "index without choices": (
        {"answer_index": 0},
        "field 'answer_index' is 0 (int) but there are no 'choices' to count in",
    ),
    "index of another choice": (
        {"choices": ["x", " Tokyo"], "answer_index": 0},
        "field 'answer_index': expected the place of the answer ' Tokyo', found 0, which is the choice 'x'",
    ),
    "answer not among choices": (
        {"choices": ["Tokyo", "Kyoto"]},
        "field 'choices': expected the answer ' Tokyo' once among them, "
        'found it 0 times in ["Tokyo", "Kyoto"] (list)',
    ),
    "answer twice among choices": (
        {"choices": [" Tokyo", " Tokyo"]},
        "field 'choices': expected the answer ' Tokyo' once among them, "
        'found it 2 times in [" Tokyo", " Tokyo"] (list)',
    ),
    "unknown field": (
        {"label": "x"},
        "unknown field 'label'; the fields are id, group, prompt, answer, choices, answer_index, control, tags",
    ),
    "list for tags": ({"tags": ["x"]}, "field 'tags': expected an object of strings, found [\"x\"] (list)"),
    "number for a tag": ({"tags": {"year": 3}}, "field 'tags.year': expected a string, found 3 (int)"),
    "empty control": ({"control": ""}, "field 'control': expected a string that is not empty, found \"\" (str)"),
    "half a surrogate pair": (
        {"answer": "x\ud800"},
        "field 'answer': expected Unicode text, found half a surrogate pair in 'x\\ud800'",
    ),
}


@pytest.mark.parametrize(("change", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows(tmp_path, change, expected):
    row = {name: value for name, value in ({**GOOD, "id": "b"} | change).items() if value is not ...}
    path = write(tmp_path, GOOD, row)
    assert complaint(path) == f"{path}, line 2: {expected}"


def test_long_values_are_shortened(tmp_path):
    path = write(tmp_path, {**GOOD, "tags": ["x" * 500]})
    assert len(complaint(path)) < len(str(path)) + 150


class TestBadFiles:
    def bad(self, tmp_path, data):
        path = tmp_path / "bad.jsonl"
        path.write_bytes(data)
        return complaint(path).replace(str(path), "FILE")

    def test_missing(self, tmp_path):
        path = tmp_path / "none.jsonl"
        assert complaint(path) == f"{path}: no such file; expected a JSON Lines file (.jsonl)"

    def test_folder(self, tmp_path):
        assert complaint(tmp_path).startswith(f"{tmp_path}: cannot be read (")

    def test_empty(self, tmp_path):
        expected = "FILE: the file is empty; expected one example (a JSON object) per line"
        assert self.bad(tmp_path, b"") == self.bad(tmp_path, b"\n  \n") == expected

    def test_not_json(self, tmp_path):
        row = json.dumps(GOOD).encode() + b"\n"
        message = self.bad(tmp_path, row + b"id,group\n" + row)
        assert message == "FILE, line 2: not JSON (Expecting value at column 1), found 'id,group'"

    def test_half_a_last_line(self, tmp_path):
        row = json.dumps(GOOD).encode()
        message = self.bad(tmp_path, row + b"\n" + row[:20])
        assert message.startswith("FILE, line 2: not JSON (")
        assert message.endswith("; the file ends in the middle of this line, so it may have been cut off")

    def test_half_a_letter_at_the_end(self, tmp_path):
        message = self.bad(tmp_path, '{"id": "é'.encode()[:-1])
        assert "not UTF-8, found byte 0xc3 at byte 9 of the line" in message
        assert "cut off" in message

    def test_not_utf8(self, tmp_path):
        message = self.bad(tmp_path, json.dumps(GOOD).encode() + b'\n{"id": "\xff"}\n')
        assert message == "FILE, line 2: not UTF-8, found byte 0xff at byte 9 of the line; save the file as UTF-8"

    def test_a_list_instead_of_lines(self, tmp_path):
        message = self.bad(tmp_path, json.dumps([GOOD]).encode() + b"\n")
        assert message.startswith("FILE, line 1: expected an object with the fields of an example, found [{")

    def test_a_field_twice_in_a_row(self, tmp_path):
        message = self.bad(tmp_path, b'{"group": "a", "group": "b"}\n')
        assert message == "FILE, line 1: field 'group' stands 2 times in one object; expected once"

    def test_deep_nesting(self, tmp_path):
        assert "line 1: not JSON" in self.bad(tmp_path, b"[" * 100_000 + b"\n")

    def test_duplicate_ids(self, tmp_path):
        path = write(tmp_path, GOOD, {**GOOD, "id": "b"}, GOOD)
        assert complaint(path) == f"{path}: id 'a' stands on line 1 and on line 3; ids must be unique"


class TestWriting:
    corpus = Corpus((Example(**GOOD),))

    def test_failure_leaves_the_old_file_and_no_draft(self, tmp_path, monkeypatch):
        path = tmp_path / "x.jsonl"
        path.write_text("old")

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            write_jsonl(self.corpus, path)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["x.jsonl"]

    def test_replaces_and_leaves_no_draft(self, tmp_path):
        path = tmp_path / "x.jsonl"
        path.write_text("old")
        write_jsonl(self.corpus, path)
        assert read_jsonl(path).examples == self.corpus.examples
        assert os.listdir(tmp_path) == ["x.jsonl"]

    def test_missing_folder(self, tmp_path):
        with pytest.raises(CorpusError, match=r"the folder .* does not exist; make it first"):
            write_jsonl(self.corpus, tmp_path / "no" / "x.jsonl")
