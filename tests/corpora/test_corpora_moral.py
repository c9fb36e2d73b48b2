"""CMoralEval: twins by polarity, categories in English, one item for a scenario wherever it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import neuropolis as npl
import pytest
from benchmark_files import cmoraleval, json_lines, moral_row

REAL = Path(__file__).parents[3] / "shared" / "data" / "cmoraleval"


def test_a_row_becomes_a_question_whose_twin_has_the_other_polarity(tmp_path: Path) -> None:
    first, second = npl.load_corpus(cmoraleval(tmp_path), format="cmoraleval", variant="c1", polarity="moral")
    assert first.prompt == "该怎么做？\n拾到钱包1\nA.归还\nB.藏起来\nC.今天天气很好\n答案："
    assert first.control == first.prompt.replace("该怎么做", "不该怎么做")
    assert (first.group, first.answer, first.choices, first.answer_index) == ("professional", "A", ("A", "B", "C"), 0)
    assert (first.tags["labels"], first.tags["split"], first.tags["kind"]) == (
        "professional,social",
        "test",
        "explicit",
    )
    assert (first.id, second.group) == ("c1/test/1/standby/moral", "family")


def test_the_rows_of_one_template_and_of_one_scenario_are_one_item(tmp_path: Path) -> None:
    reading = npl.read_format(cmoraleval(tmp_path), "cmoraleval")
    items = {example.id: example.item for example in reading.corpus}
    assert items == {
        "c1/test/1/standby/moral": "c1/test/1", "c1/test/1/standby/unmoral": "c1/test/1",
        "c1/test/2/standby/moral": "c1/test/2", "c1/test/2/standby/unmoral": "c1/test/2",
        "d1/test/9/party/moral": "c1/test/1",
    }  # fmt: skip
    assert (reading.rows, reading.reasons) == (7, {"no category that is one of the five": 2})
    assert reading.notes == (
        "2 labels '2,5' are none of the five categories",
        "no twin for 1 of 5 examples: the file of the other polarity is not there",
    )


def test_options_choose_rows_twins_and_what_becomes_of_several_categories(tmp_path: Path) -> None:
    path = cmoraleval(tmp_path)
    each = npl.load_corpus(path, format="cmoraleval", variant="c1", polarity="moral", several="each", codes=True)
    assert each.counts == {"professional": 1, "social": 2, "family": 1, "personal": 1}
    assert npl.load_corpus(path, format="cmoraleval", several="drop").groups == ("family", "personal")
    alone = npl.load_corpus(path, format="cmoraleval", twin="options", narrator="party")
    assert alone[0].control == "A.归还\nB.藏起来\nC.今天天气很好\n答案："
    assert npl.load_corpus(path, format="cmoraleval", twin="none")[0].control is None
    with pytest.raises(npl.CorpusError, match="the option variant is 'c3'; expected one of c1, c2, d1, d2"):
        npl.read_format(path, "cmoraleval", variant="c3")


def test_rows_that_repeat_or_contradict_themselves_are_left_out(tmp_path: Path) -> None:
    good = moral_row(1, ["个人品德"], ask="该？", scene="s")
    rows = [good, moral_row(2, ["个人品德"], ask="该？", scene="t", right="C", wrong="C")]
    rows.append(moral_row(3, ["个人品德"], ask="该？", scene="v") | {"choices": ["A.一", "B.二", "C.二"]})
    for part, kept in (("test", rows), ("val", [good])):
        json_lines(tmp_path / f"cmoraleval_c2_party_moral_{part}_data", kept)
    json_lines(tmp_path / "cmoraleval_c2_standby_moral_val_data", [moral_row(5, ["个人品德"], ask="该？", scene="w")])
    assert npl.load_corpus(tmp_path, format="cmoraleval", narrator="standby").splits == ("dev",)
    json_lines(tmp_path / "cmoraleval_d2_party_moral_test_data", [moral_row(4, ["个人品德"], ask="该？", scene="u")])
    json_lines(tmp_path / "cmoraleval_d2_party_unmoral_test_data", [moral_row(4, ["个人品德"], ask="不？", scene="u")])
    assert npl.read_format(tmp_path, "cmoraleval").reasons == {
        "the right option is also the wrong one": 1,
        "the same row as in an earlier file": 1,
        "two options are the same": 1,
        "the twin of the other polarity has other options, or not right and wrong swapped": 2,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": ["A.x", "B.y"]}, "line 1: expected three 'choices' that begin A. B. C."),
        ({"correct_answer": "D"}, "line 1: expected A, B or C as 'correct_answer'"),
        ({"index": "1"}, "line 1: expected a number under 'index'"),
        ({"question": " "}, "line 1: expected a text under 'question'"),
    ],
)
def test_a_row_that_is_not_of_the_layout_is_told(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    row = moral_row(1, ["个人品德"], ask="?", scene="s") | change
    json_lines(tmp_path / "cmoraleval_c1_party_moral_test_data", [row])
    with pytest.raises(npl.CorpusError, match=said):
        npl.read_format(tmp_path, "cmoraleval")


def test_a_file_of_another_name_and_half_a_line_are_told(tmp_path: Path) -> None:
    file = tmp_path / "moral.jsonl"
    file.write_text("{}")
    with pytest.raises(npl.CorpusError, match="expected a name such as cmoraleval_c1_party_moral_test_data"):
        npl.read_format(file, "cmoraleval")
    cut = json.dumps(moral_row(1, [], ask="?", scene="s"))[:-9]
    (tmp_path / "cmoraleval_c1_party_moral_test_data").write_text(cut)
    with pytest.raises(npl.CorpusError, match=r"line 1: not JSON.*may have been cut off"):
        npl.read_format(tmp_path, "cmoraleval")


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's files are not here")
def test_the_files_themselves() -> None:
    """The paper gives the sizes of the variants; the files here are twelve of the sixteen, and the validation files."""
    reading = npl.read_format(REAL, "cmoraleval", narrator="standby", polarity="moral")
    assert reading.rows == 3441 + 300 + 3541 + 315 + 4 * 5
    assert sum(reading.reasons.values()) + len(reading.corpus) == reading.rows
    explicit = npl.read_format(REAL, "cmoraleval", variant="c1", narrator="standby", polarity="unmoral", several="each")
    wanted = {"professional": 1414, "personal": 1159, "social": 797 + 2, "family": 439, "internet": 324}
    labels = {name: len({e.id for e in explicit.corpus.only(name, split="test")}) for name in wanted}
    # two rows name the social category in other words
    assert labels == wanted
    assert npl.read_format(REAL, "cmoraleval").rows == 16_504
