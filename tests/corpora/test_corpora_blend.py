"""BLEnD: its published multiple choice, and multiple choice made from what its annotators answered."""

from __future__ import annotations

import json
from pathlib import Path

import neuropolis as npl
import pytest
from benchmark_files import blend, blend_annotations, json_lines
from neuropolis.corpora.blend_choices import Made, may_differ, questions_made
from neuropolis.corpora.files import read_table
from neuropolis.corpora.formats import guess_formats

OPTIONS = "A. rice\nB. snow\nC. tea\nD. wool\n"


def test_published_questions_are_read_up_to_five_of_a_country_and_id(tmp_path: Path) -> None:
    reading = npl.read_format(blend(tmp_path), "blend")
    first = reading.corpus[0]
    assert first.prompt == f"What is drunk in the UK?\n{OPTIONS}Answer:"
    assert first.control == f"{OPTIONS}Answer:"
    assert (first.answer, first.answer_index, first.group, first.item) == (" C", 2, "United Kingdom", "Al-en-02")
    assert (first.tags["topic"], first.tags["half"]) == ("Food", "neur")
    assert reading.corpus.counts == {"United Kingdom": 5, "United States": 1}
    assert reading.reasons == {
        "more than 5 of its country and question": 1,
        "the prompt has no 'Without any explanation' after its question": 1,
    }
    assert npl.read_format(tmp_path, "blend", most=0).corpus.counts["United Kingdom"] == 6


def test_the_published_order_to_answer_in_json_can_be_kept(tmp_path: Path) -> None:
    example = npl.load_corpus(blend(tmp_path), format="blend", ask="json")[0]
    order = 'Without any explanation, choose only one. Provide as JSON format: {"answer_choice":""}'
    assert example.prompt == f'What is drunk in the UK? {order}\n\n{OPTIONS}\nAnswer: {{"answer_choice":"'
    assert example.control == example.prompt.removeprefix("What is drunk in the UK? ")
    assert (example.answer, example.choices) == ("C", ("A", "B", "C", "D"))


def test_the_json_file_of_the_dataset_reads_like_the_table(tmp_path: Path) -> None:
    table = npl.load_corpus(blend(tmp_path), format="blend")
    file = tmp_path / "evaluation" / "mc_data" / "mc_questions_file.csv"
    rows = [dict(row) for _, row in read_table(file, columns=())]
    (tmp_path / "mc_questions_file.json").write_text(json.dumps(rows))
    json_lines(tmp_path / "far" / "from" / "them" / "mc_questions_file.jsonl", rows)
    for again in ("mc_questions_file.json", "far/from/them/mc_questions_file.jsonl"):
        assert guess_formats(tmp_path / again) == ("blend",)
        corpus = npl.load_corpus(tmp_path / again, format="blend")
        assert [e.prompt for e in corpus] == [e.prompt for e in table]
    assert "topic" not in corpus[0].tags


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('""B""', '""E""', "line 7: expected 'choices' such as"),
        (",C\n", ",E\n", "line .*: expected one of A, B, C, D as 'answer_idx', found 'E'"),
    ],
)
def test_a_published_row_that_is_not_right_is_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = blend(tmp_path) / "evaluation" / "mc_data" / "mc_questions_file.csv"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(npl.CorpusError, match=said.replace("line 7", "line .*")):
        npl.read_format(tmp_path, "blend")


@pytest.mark.parametrize("listed", [False, True])
def test_annotations_become_questions_with_other_countries_answers(tmp_path: Path, listed: bool) -> None:
    """Tea shares a word with sour tea, so neither is a wrong option of the other; Spain left the question open."""
    path = blend_annotations(tmp_path, listed=listed)
    assert guess_formats(path) == ("blend",)
    reading = npl.read_format(path, "blend", most=20)
    assert reading.reasons == {"annotators called it not applicable": 1}
    wrong: dict[str, set[str]] = {}
    for example in reading.corpus:
        question, *lines, _ = example.prompt.split("\n")
        options = dict(line.split(". ") for line in lines)
        right = options.pop(example.answer.strip())
        assert question == f"What is drunk in {'the ' if 'United' in example.group else ''}{example.group}?"
        assert right == {"United Kingdom": "tea", "United States": "Coffee", "China": "soy milk", "Iran": "sour tea",
                         "South Korea": "7"}[example.group]  # fmt: skip
        wrong[example.group] = wrong.get(example.group, set()) | set(options.values())
        assert len(options) == 3
    assert wrong["United Kingdom"] == wrong["Iran"] == {"Coffee", "soy milk", "7", "wine"}
    assert len(wrong["China"] & {"tea", "sour tea"}) == 1
    assert not any(option.endswith("ade") for options in wrong.values() for option in options)
    few = npl.read_format(path, "blend", most=2)
    assert few.corpus.counts == dict.fromkeys(few.corpus.groups, 2)
    assert npl.read_format(path, "blend", most=2).corpus.hash == few.corpus.hash


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("Tea", "coffee", True), ("tea", "Sour Tea", False), ("tea", "teapot", False), ("rice/bread", "bread", False),
        ("7", "7.0", False), ("7", "70", True), ("7", "7 hours", False),
    ],
)  # fmt: skip
def test_answers_that_may_mean_the_same_are_not_set_against_each_other(one: str, other: str, differ: bool) -> None:
    assert may_differ(one, other) == may_differ(other, one) == differ


def test_answers_without_agreement_and_with_too_few_rivals_are_left_out(tmp_path: Path) -> None:
    folder = blend_annotations(tmp_path) / "data" / "annotations"
    for name in ("South_Korea", "Spain"):
        (folder / f"{name}_data.json").unlink()
    made = list(questions_made(sorted(folder.glob("*.json")), most=5))
    why = {one.where.split("/")[-1]: one.why for one in made if not isinstance(one, Made)}
    assert why["UK_data.json, question Al-en-02"] == "fewer than 3 wrong options from other countries"
    text = (folder / "US_data.json").read_text()
    (folder / "US_data.json").write_text(text.replace('"count": 4', '"count": 1'))
    reasons = {one.why for one in questions_made([folder / "US_data.json"], most=5) if not isinstance(one, Made)}
    assert reasons == {"no answer that 2 annotators agreed on"}
    (folder / "US_data.json").write_text(text.replace('"idk": 0', '"idk": 3'))
    reasons = {one.why for one in questions_made([folder / "US_data.json"], most=5) if not isinstance(one, Made)}
    assert reasons == {"more than 2 annotators left it open"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"idks"', '"idk"', "UK_data.json, question Al-en-02: expected a list under 'annotations' and counts"),
        ('"count": 4', '"count": "4"', "expected 'en_answers' and 'count' of an answer"),
        ('"en_question"', '"en"', "expected a text under 'en_question'"),
    ],
)
def test_annotations_that_are_not_right_are_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = blend_annotations(tmp_path) / "data" / "annotations" / "UK_data.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(npl.CorpusError, match=said):
        npl.read_format(tmp_path, "blend", questions="annotations")
    with pytest.raises(npl.CorpusError, match="JSON stands in the published questions only"):
        npl.read_format(tmp_path, "blend", questions="annotations", ask="json")
