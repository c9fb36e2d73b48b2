"""Formats by name: the registry, what is left out, what a file looks like; tables, plain text, hub datasets."""

from __future__ import annotations

import json
from pathlib import Path

import neuropolis as npl
import pytest
from neuropolis.corpora.files import read_json_rows, read_table
from neuropolis.corpora.formats import Dropped, gather, guess_formats

TABLE = 'land,ask,say,wrong,topic\nNorth,"Who, then?",Ann,Bob,names\nSouth,What?,Tea,Mud,\n'
COLUMNS = {"group": "land", "prompt": "ask", "answer": "say", "choices": "say,wrong", "tags": "subject=topic"}


def test_a_table_becomes_examples_by_the_columns_that_options_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    reading = npl.read_format(tmp_path / "t.csv", "csv", **COLUMNS)
    first, second = reading.corpus
    assert (first.group, first.prompt, first.answer, first.choices) == ("North", "Who, then?", "Ann", ("Ann", "Bob"))
    assert (dict(first.tags), dict(second.tags)) == ({"subject": "names"}, {})
    assert (reading.rows, reading.dropped) == (2, ())


def test_load_corpus_takes_a_format_and_then_its_own_options(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    assert npl.load_corpus(tmp_path / "t.csv", format="csv", groups="South", **COLUMNS).counts == {"South": 1}


def test_all_rows_may_be_of_one_group_and_the_answer_may_be_a_number(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("prompt\ta\tb\tright\n1+1=\t 2\t 3\t0\n")
    corpus = npl.load_corpus(tmp_path / "t.tsv", format="csv", all_in="sums", choices="a,b", answer_index="right")
    assert (corpus[0].group, corpus[0].answer, corpus[0].answer_index) == ("sums", " 2", 0)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n1,2\n", {}, "no column 'group'; the columns are a, b"),
        ("group,prompt,answer\nx,y\n", {}, "line 2: expected 3 fields, found 2"),
        ("group,prompt,right\nx,y,one\n", {"answer": None, "answer_index": "right"}, "expected a whole number"),
        ("group,prompt,answer\nx,,z\n", {}, "line 2: field 'prompt' is missing"),
        ("group,prompt,answer\n", {}, "no row is left to read"),
        ("", {}, "the columns are none"),
    ],
)
def test_a_bad_table_is_told_by_file_line_and_field(
    tmp_path: Path, text: str, options: dict[str, str], said: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(npl.CorpusError, match=said):
        npl.read_format(tmp_path / "t.csv", "csv", **options)


def test_bytes_that_are_not_utf8_are_told_by_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"group,prompt,answer\na,b,caf\xe9\n")
    with pytest.raises(npl.CorpusError, match=r"line 2: not UTF-8, found byte 0xe9"):
        read_table(tmp_path / "t.csv", columns=("group",))


def test_half_a_line_of_json_at_the_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": ')
    rows = read_json_rows(tmp_path / "x.jsonl")
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(npl.CorpusError, match=r"line 2: not JSON.*it may have been cut off"):
        next(rows)


@pytest.mark.parametrize(
    ("format", "name", "said"),
    [
        ("fork", "fork.jsonl", "fork: no row is left to read"),
        ("text", "north.txt", "north: no row is left to read"),
        ("mgsm", "x.jsonl", "no file mgsm_LANG.tsv; there are none"),
        ("xquad", "x.jsonl", "no file xquad.LANG.json; there are none"),
    ],
)
def test_an_empty_file_is_told_by_its_path(tmp_path: Path, format: str, name: str, said: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(npl.CorpusError) as told:
        npl.read_format(tmp_path / name, format)
    assert str(told.value) == f"{tmp_path / name}: {said}"


def test_what_is_not_of_the_named_format_is_told_by_what_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("group,prompt,answer\na,b,c\n")
    assert guess_formats(tmp_path / "t.csv") == ("csv",)
    with pytest.raises(npl.CorpusError, match="it looks like the format 'csv'"):
        npl.read_format(tmp_path / "t.csv", "parquet")
    with pytest.raises(npl.CorpusError, match="it looks like the format 'csv'"):
        npl.load_corpus(tmp_path / "t.csv")


def test_unknown_formats_and_options_are_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(npl.CorpusError, match=r"no format 'cvs'; there are .*csv"):
        npl.read_format(tmp_path, "cvs")
    with pytest.raises(npl.CorpusError, match="has no option 'grup'; it has group, prompt"):
        npl.read_format(tmp_path, "csv", grup="x")
    with pytest.raises(npl.CorpusError, match="'group' belongs to a reader; name its format"):
        npl.load_corpus("bundled:polis", group="x")


def test_a_format_is_registered_once_and_can_be_read_then(tmp_path: Path) -> None:
    from neuropolis.corpora import formats

    @npl.register_format("mine", title="mine", source="here", licence="none")
    def read(path: Path) -> npl.Reading:
        return gather([npl.Example("1", "a", "b", "c")], name="mine", dropped=[Dropped("row 2", "odd")])

    try:
        reading = npl.read_format(tmp_path, "mine")
        assert (reading.rows, reading.reasons) == (2, {"odd": 1})
        with pytest.raises(ValueError, match="registered already"):
            npl.register_format("mine", title="", source="", licence="")(read)
    finally:
        del formats._FORMATS["mine"]


def test_a_parquet_file_with_a_list_of_choices(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"group": "g", "prompt": "p", "options": ["x", "y"], "right": 1}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    corpus = npl.load_corpus(tmp_path / "t.parquet", format="parquet", choices="options", answer_index="right")
    assert (corpus[0].choices, corpus[0].answer) == (("x", "y"), "y")


def test_a_dataset_in_a_local_folder_keeps_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "test"):
        row = {"group": "g", "prompt": f"{part}?", "answer": "a"}
        (data / f"{part}.jsonl").write_text(json.dumps(row) + "\n")
    corpus = npl.load_corpus(data, format="hub")
    assert {e.prompt: e.tags["split"] for e in corpus} == {"train?": "train", "test?": "test"}
    with pytest.raises(npl.CorpusError, match="no split 'dev'; it has train, test"):
        npl.read_format(data, "hub", part="dev")


def test_plain_text_is_grouped_by_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("Guten Morgen allen\n\nJa\n")
    (tmp_path / "ja").mkdir()
    (tmp_path / "ja" / "a.txt").write_text("今日は晴れです\n")
    reading = npl.read_format(tmp_path, "text")
    assert {e.group: (e.prompt, e.answer) for e in reading.corpus} == {
        "de": ("Guten", " Morgen allen"), "ja": ("今", "日は晴れです"),
    }  # fmt: skip
    assert reading.reasons == {"a single word": 1}


def test_a_table_that_ends_inside_a_quote_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('group,prompt,answer\na,b,c\nd,e,"f and so o')
    with pytest.raises(
        npl.CorpusError, match=r"t\.csv, after line 2: cannot be read as a table \(unexpected end of data"
    ):
        npl.read_format(tmp_path / "t.csv", "csv")


@pytest.mark.parametrize(
    ("format", "name", "text"),
    [
        ("csv", "t.csv", "group,prompt,answer\na,b, c d\n"),
        ("csv", "t.tsv", "group\tprompt\tanswer\na\tb\t c d\n"),
        ("mgsm", "mgsm_de.tsv", "Eins?\t10\nZwei?\t20\nDrei?\t3000\n"),
        ("text", "north.txt", "One two three four\nFive six seven eight\n"),
    ],
)
def test_a_file_without_its_last_line_end_is_noted(tmp_path: Path, format: str, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert npl.read_format(tmp_path, format).notes == ()
    (tmp_path / name).write_text(text[:-2])
    note = f"{tmp_path / name}: the last line has no line end, so the file may have been cut off"
    assert npl.read_format(tmp_path, format).notes == (note,)
    (tmp_path / name).write_text(text.replace("\n", "\r\n"))
    assert npl.read_format(tmp_path, format).notes == ()
