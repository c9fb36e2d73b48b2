"""Readers of benchmarks grouped by country: FORK, CountryRC, NormAd, CulturalBench, WorldValuesBench."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import neuropolis as npl
import pytest
from benchmark_files import countryrc, culturalbench, fork, json_lines, normad, worldvaluesbench
from neuropolis.corpora.countries import country_name, with_article

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("US", "United States"), ("united_states_of_america", "United States"), ("Great Britain", "United Kingdom"),
        ("South_Korea", "South Korea"), ("south_korea", "South Korea"), ("Assam", "Assam"),
        ("bosnia_and_herzegovina", "Bosnia and Herzegovina"), ("Hong Kong", "Hong Kong"),
    ],
)  # fmt: skip
def test_a_country_has_one_name_however_a_benchmark_writes_it(written: str, name: str) -> None:
    assert country_name(written) == name
    assert country_name(name) == name


def test_names_in_sentences_take_their_article() -> None:
    assert [with_article(name) for name in ("United States", "Japan")] == ["the United States", "Japan"]


def test_fork_questions_with_the_same_two_options_are_one_item(tmp_path: Path) -> None:
    reading = npl.read_format(fork(tmp_path), "fork")
    first, second = reading.corpus
    assert first.prompt == "How is soup eaten in Japan?\nA. sipped\nB. spooned\nAnswer:"
    assert first.control == "A. sipped\nB. spooned\nAnswer:"
    assert (first.answer, first.choices, first.group, second.group) == (" A", (" A", " B"), "Japan", "United States")
    assert first.item == second.item == "sipped | spooned"
    assert reading.reasons == {"both options are the same": 1}
    assert npl.load_corpus(tmp_path, format="fork", kind="implicit").counts == {"United States": 1}


def test_fork_is_the_same_as_a_table_and_as_json_lines(tmp_path: Path) -> None:
    table = npl.load_corpus(fork(tmp_path), format="fork")
    with (tmp_path / "fork.csv").open() as file:
        json_lines(tmp_path / "fork.jsonl", csv.DictReader(file))
    assert npl.load_corpus(tmp_path / "fork.jsonl", format="fork").hash == table.hash


def test_a_fork_row_without_a_key_is_told(tmp_path: Path) -> None:
    path = fork(tmp_path) / "fork.csv"
    path.write_text(path.read_text().replace("spooned,A,Japan", "spooned,C,Japan"))
    with pytest.raises(npl.CorpusError, match=r"fork.csv, line 2: expected the 'Answer Key' A or B .*found 'C'"):
        npl.read_format(path, "fork")


def test_countryrc_puts_every_country_into_every_passage(tmp_path: Path) -> None:
    path = countryrc(tmp_path)
    corpus = npl.load_corpus(path, format="countryrc", countries="US,China,Iran,Spain", wordings=1)
    assert corpus.counts == dict.fromkeys(("United States", "China", "Iran", "Spain"), 2)
    for example in corpus:
        passage, asked = example.prompt.split("\nQuestion: ")
        question, *options, end = asked.split("\n")
        right = options[example.answer_index or 0]
        assert right == f"{example.answer.strip()}. {example.group}"
        assert example.group in passage
        assert sorted(option[3:] for option in options) == ["China", "Iran", "Spain", "United States"]
        assert example.control == "\n".join((question, *options, end))
    assert "the United States" in corpus[0].prompt
    assert {example.item: example.tags["half"] for example in corpus} == {"0": "neur", "1": "test"}
    with_other = corpus.only("Iran")[1]
    assert "Bo left Iran" not in with_other.prompt
    assert npl.load_corpus(path, format="countryrc", countries="US,China,Iran,Spain", wordings=1).hash == corpus.hash


def test_countryrc_has_four_wordings_of_a_passage_with_the_right_option_in_any_place(tmp_path: Path) -> None:
    reading = npl.read_format(countryrc(tmp_path), "countryrc")
    assert (len(reading.corpus), reading.rows, len(reading.corpus.groups)) == (16 * 2 * 4, 2, 16)
    assert len({example.prompt for example in reading.corpus}) == len(reading.corpus)
    assert min(Counter(example.answer for example in reading.corpus).values()) > 16
    assert not any("{" in example.prompt for example in reading.corpus)


def test_countryrc_tells_of_slots_and_countries_that_are_not_right(tmp_path: Path) -> None:
    file = countryrc(tmp_path) / "data" / "CountryRC" / "data.json"
    with pytest.raises(npl.CorpusError, match="expected four or more different countries, found Iran, United States"):
        npl.read_format(file, "countryrc", countries="Iran,US")
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([rows[0], rows[1] | {"context": "Bo left {city} for {country}."}]))
    with pytest.raises(npl.CorpusError, match=r"row 2: expected the slot \{country\}.*found \['city', 'country'\]"):
        npl.read_format(file, "countryrc")


def test_normad_names_the_country_and_its_twin_the_rule(tmp_path: Path) -> None:
    reading = npl.read_format(normad(tmp_path), "normad")
    no, yes, neutral = reading.corpus
    assert no.prompt.startswith("Country: South Korea\nStory: Kim, at the door (1), kept shoes on.\nIs this behaviour")
    assert no.control is not None
    assert no.control.startswith("Rule: Guests take off their shoes.\nStory: Kim")
    assert "South Korea" not in no.control
    assert [e.answer for e in (no, yes, neutral)] == [" no", " yes", " neutral"]
    assert no.item == yes.item != neutral.item
    assert neutral.group == "United States"
    assert reading.reasons == {"the label is none of yes, no, neutral": 1, "no rule of thumb or no value": 1}
    assert len(npl.load_corpus(tmp_path, format="normad", neutral=False)) == 2


def test_normad_without_a_column_is_told(tmp_path: Path) -> None:
    file = normad(tmp_path) / "normad_etiquette_final_data.csv"
    file.write_text(file.read_text().replace("Gold Label", "Label"))
    with pytest.raises(npl.CorpusError, match="no column 'Gold Label'; the columns are ID, Country"):
        npl.read_format(tmp_path, "normad")


def test_culturalbench_easy_asks_for_a_letter_and_hard_whether_an_option_is_right(tmp_path: Path) -> None:
    reading = npl.read_format(culturalbench(tmp_path), "culturalbench")
    easy, right, wrong = reading.corpus
    assert easy.prompt == "What is drunk, mostly, in the UK?\nA. tea\nB. mud\nC. ink\nD. oil\nAnswer:"
    assert (easy.answer, right.answer, wrong.answer, right.choices) == (" A", " True", " False", (" True", " False"))
    assert right.prompt.endswith("Proposed answer: tea\nIs it right? Say True or False.\nAnswer:")
    assert right.control == right.prompt.removeprefix("What is drunk, mostly, in the UK?\n")
    assert {example.item for example in reading.corpus} == {"7"}
    assert reading.reasons == {"two options are the same": 1, "no option": 1}
    assert len(npl.load_corpus(tmp_path, format="culturalbench", level="hard")) == 2
    assert len(npl.load_corpus(tmp_path / "CulturalBench-Easy.csv", format="culturalbench")) == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("Easy", "oil,A,", "oil,E,", "line 2: expected the answer A, B, C or D, found 'E'"),
        ("Hard", "TRUE", "maybe", "line 2: expected the answer True or False, found 'maybe'"),
        (
            "Hard",
            "prompt_option",
            "option",
            "Hard.csv: expected the columns data_idx, prompt_question, prompt_option_a",
        ),
    ],
)
def test_culturalbench_files_that_are_not_right_are_told(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    file = culturalbench(tmp_path) / f"CulturalBench-{name}.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(npl.CorpusError, match=said):
        npl.read_format(tmp_path, "culturalbench")


def test_worldvaluesbench_asks_what_most_people_of_a_country_reply(tmp_path: Path) -> None:
    reading = npl.read_format(worldvaluesbench(tmp_path), "worldvaluesbench")
    british = {example.id: example for example in reading.corpus}["United Kingdom/Q1"]
    assert british.prompt == (
        "A person from the United Kingdom is asked: How important is rest, 1 to 3?\n"
        "The reply is a number from 1 to 3.\nAnswer:"
    )
    assert british.control == british.prompt.replace(" from the United Kingdom", "")
    assert (british.answer, british.choices, british.answer_index) == (" 2", (" 1", " 2", " 3"), 1)
    assert (british.item, british.tags["share"], british.tags["replies"]) == ("Q1", "0.667", "15")
    assert reading.corpus.counts == {"Chile": 1, "United Kingdom": 1}
    assert reading.reasons == {"two replies are equally frequent": 1}
    assert reading.notes == ("5 replies are off their question's scale and not counted",)
    assert npl.read_format(tmp_path, "worldvaluesbench", least=11).reasons["fewer than 11 replies"] == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("full/full_value_qa.tsv", "2.0", "often", "line 23, Q1: expected a whole number or nothing, found 'often'"),
        ("full/full_value_qa.tsv", "5\t3", "6\t3", "line 26: the participant '46' is not in the demographic file"),
        ("question_metadata.json", "3}", '"3"}', "Q2: expected a scale of whole numbers, found 1 to '3'"),
    ],
)
def test_worldvaluesbench_files_that_are_not_right_are_told(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    file = worldvaluesbench(tmp_path) / name
    text = file.read_text()
    file.write_text(text[: text.rindex(old)] + text[text.rindex(old) :].replace(old, new))
    with pytest.raises(npl.CorpusError, match=said):
        npl.read_format(tmp_path, "worldvaluesbench")


@pytest.mark.skipif(not (SHARED / "fork").is_dir(), reason="the benchmark's files are not here")
def test_forks_own_files() -> None:
    """184 rows, half of them B (counted in the file)."""
    reading = npl.read_format(SHARED / "fork", "fork")
    assert (reading.rows, reading.dropped) == (184, ())
    assert Counter(example.answer for example in reading.corpus) == {" A": 92, " B": 92}
    assert reading.corpus.counts["China"] == 66


@pytest.mark.skipif(not (SHARED / "countryrc").is_dir(), reason="the benchmark's files are not here")
def test_countryrcs_own_file() -> None:
    """Fifty passages, twenty with a second country, four wordings, sixteen countries."""
    reading = npl.read_format(SHARED / "countryrc", "countryrc")
    assert (reading.rows, len(reading.corpus), set(reading.corpus.counts.values())) == (50, 3200, {200})
    assert Counter(e.tags["half"] for e in reading.corpus) == {"neur": 1600, "test": 1600}
