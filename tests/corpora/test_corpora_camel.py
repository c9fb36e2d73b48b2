"""CAMeL and the Excel workbooks it comes in."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import neuropolis as npl
import pytest
from benchmark_files import camel, workbook
from neuropolis.corpora.sheets import read_sheet

REAL = Path(__file__).parents[3] / "shared" / "data" / "camel_arab_western"


def test_a_prompt_is_ended_by_an_entity_of_either_culture(tmp_path: Path) -> None:
    reading = npl.read_format(camel(tmp_path), "camel")
    assert reading.corpus.counts == {"Arab": 4, "Western": 4}
    arab, western = reading.corpus[0], reading.corpus[1]
    assert arab.prompt == western.prompt == "أكلت اليوم"
    assert arab.choices == western.choices
    assert set(arab.choices) == {arab.answer, western.answer}
    assert {e.answer for e in reading.corpus.only("Arab") if e.item == "food/1"} == {" كسكس", " فول"}
    assert {e.answer for e in reading.corpus.only("Western") if e.item == "food/3"} == {"برغر", "بيتزا"}
    assert arab.control == f"أكلت اليوم{arab.answer}\nأكلت اليوم"
    assert reading.reasons == {
        "an entity of both cultures": 2,
        "no entity, or a culture other than Arab and Western": 1,
        "there is nothing before, or something after, [MASK]": 1,
        "no entities of the type cars": 1,
    }


def test_contextual_prompts_have_an_arab_answer_only(tmp_path: Path) -> None:
    path = camel(tmp_path)
    with pytest.raises(npl.CorpusError, match="no file in it matches prompts/camel-co"):
        npl.read_format(path, "camel", prompts="contextual")
    workbook(path / "prompts" / "camel-co" / "x.xlsx", [["Entity Type", "Prompt"], ["Food", "أكلت [MASK]"]])
    corpus = npl.load_corpus(path, format="camel", prompts="contextual", most=1)
    assert (corpus.counts, len(corpus[0].choices)) == ({"Arab": 1}, 2)


def test_a_sheet_keeps_gaps_and_runs_and_leaves_out_empty_rows(tmp_path: Path) -> None:
    file = workbook(tmp_path / "x.xlsx", [["one", "two"], ["", "b"], ["", ""], ["long text", ""], ["last", "row"]])
    rows = read_sheet(file, columns=("one",))
    assert [row for _, row in rows] == [
        {"one": "", "two": "b"}, {"one": "long text", "two": ""}, {"one": "last", "two": "row"},
    ]  # fmt: skip
    assert rows[1][0].endswith("x.xlsx, row 4")


def test_what_is_no_workbook_is_told(tmp_path: Path) -> None:
    file = workbook(tmp_path / "x.xlsx", [["one"], ["a"]])
    with pytest.raises(npl.CorpusError, match="no column 'two'; the columns are one"):
        read_sheet(file, columns=("two",))
    file.write_text("one,two")
    with pytest.raises(npl.CorpusError, match=r"x.xlsx: cannot be read as an .xlsx workbook"):
        read_sheet(file, columns=())
    with ZipFile(file, "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", "<worksheet><sheetData>")
    with pytest.raises(npl.CorpusError, match=r"cannot be read as an .xlsx workbook"):
        read_sheet(file, columns=())


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's files are not here")
def test_the_files_themselves() -> None:
    """378 agnostic prompts, 373 of which end in the mask, and 20,342 entities (counted in the files)."""
    reading = npl.read_format(REAL, "camel", most=2)
    assert reading.corpus.counts == {"Arab": 746, "Western": 746}
    assert reading.rows == 378 + 20_342
