from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from neuropolis.corpora import wvs
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.formats import guess_formats, read_format
from neuropolis.corpora.jsonl import read_jsonl, write_jsonl
from neuropolis.corpora.survey import Culture, Question, asked, first_number, plain_prompt, system_prompt
from neuropolis.corpora.wvs import is_survey, read_survey, survey_corpus

REAL = Path(__file__).parents[3] / "shared" / "data" / "culturespa"
Put = Callable[..., Path]
FAMILY = {"Q_id": "Q1", "question": "How important is family?", "option_lst": ["Very", "Rather", "Not at all"]}
ARMY = {"Q_id": "Q95", "question": "Are you in a church?", "option_lst": ["No", "Inactive", "Active"]}


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(config: str = "", **files: Any) -> Path:
        given: dict[str, Any] = {
            "wvs_questions": [FAMILY, ARMY, {**FAMILY, "Q_id": "Q223"}, {**FAMILY, "Q_id": "Q234A"}, {**FAMILY, "Q_id": "Q290"}],
            "proportions_group_by_country": {
                "USA": {"Q1": {"1": 0.7, "3": 0.2, "2": 0.1}, "Q95": {"2": 0.4, "0": 0.4, "1": 0.2}, "Q223": {"1": 1.0}},
                "UKR": {"Q1": {"2": 1.0}, "Q95": {}, "Q234A": {"3": 0.9, "1": 0.1}},
                "MEX": {"Q1": {"1": 1.0}},
            },
        } | files  # fmt: skip
        (tmp_path / "data").mkdir(exist_ok=True)
        for name, content in given.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / "data" / f"{name}.json").write_text(text, "utf-8")
        if config:
            (tmp_path / "data" / "survey.toml").write_text(config, "utf-8")
        return tmp_path

    return write


def test_questions_numbers_topics_and_what_is_left_out(put: Put) -> None:
    survey = read_survey(put())
    assert is_survey(put())
    assert not is_survey(put() / "elsewhere")
    assert [(q.id, q.topic, list(q.numbers)) for q in survey.questions] == [
        ("Q1", "Social Values, Attitudes & Stereotypes", [1, 2, 3]),
        ("Q95", "Social Capital, Trust & Organizational Membership", [0, 1, 2]),
        ("Q234A", "Political Interest & Participation", [1, 2, 3]),
    ]
    assert survey.questions[1].printed == "0.No 1.Inactive 2.Active"
    assert set(survey.cultures) == {"USA", "UKR"}
    assert {key: survey.left_out[key] for key in ("Q223", "Q290", "MEX", "CAN")} == {
        "Q223": "excluded", "Q290": "excluded", "MEX": "no name in the config's cultures",
        "CAN": "not in proportions_group_by_country.json",
    }  # fmt: skip


def test_the_majority_is_the_first_of_the_most_frequent_and_missing_where_nobody_was_asked(put: Put) -> None:
    survey = read_survey(put())
    assert survey.majority("USA") == {"Q1": 1, "Q95": 2}
    assert survey.majority("UKR") == {"Q1": 2, "Q234A": 3}
    with pytest.raises(CorpusError, match=r"no culture 'FRA'; it has USA, UKR"):
        survey.majority("FRA")


def test_the_default_config_leaves_259_of_the_authors_questions() -> None:
    ids = [*(f"Q{number}" for number in range(1, 291)), "Q234A"]
    rules = wvs._rules(None)
    used = [id for id in ids if not wvs._among(id, rules["exclude"])]
    assert (len(ids), len(used)) == (291, 259)
    topics = [[topic for topic, names in rules["topics"].items() if wvs._among(id, names)] for id in used]
    assert all(len(one) == 1 for one in topics)
    assert len(rules["topics"]) == 13
    assert len(rules["cultures"]) == 18


def test_prompts_name_the_culture_with_its_article(put: Put) -> None:
    survey = read_survey(put())
    unaware = system_prompt(survey, asking="unaware")
    assert unaware.startswith(
        "You are a real person with your own set of values. Please fill out the World Values Survey"
    )
    assert "with an American cultural background" in system_prompt(survey, "USA")
    assert "with a Ukrainian cultural background" in system_prompt(survey, "UKR")
    assert Culture("hourly", "an").with_article == "an hourly"
    system, user = asked(survey, survey.questions[0], "USA")
    assert (system["role"], user["role"]) == ("system", "user")
    assert "#Options: 1.Very 2.Rather 3.Not at all\n" in user["content"]
    assert plain_prompt((system, user)) == f"{system['content']}\n\n{user['content']}\n\nAnswer:"
    with pytest.raises(CorpusError, match="'unaware' goes without a culture"):
        asked(survey, survey.questions[0], "USA", asking="unaware")


def test_cross_culture_thinking_names_the_nearest_and_the_farthest(put: Put) -> None:
    others = {"CAN": 9.0, "NLD": 8.0, "DEU": 7.0, "BOL": 5.0, "CHN": 3.0, "KEN": 1.0, "MEX": 99.0, "USA": 100.0}
    answers = {key: {"Q1": {"1": 1.0}} for key in ("USA", *others)}
    survey = read_survey(put(proportions_group_by_country=answers, country_similarity={"USA": others}))
    text = system_prompt(survey, "USA", asking="thinking")
    assert text.startswith(system_prompt(survey, "USA"))
    assert "is similar to Canadian, Dutch and German cultures" in text
    assert "is different from Kenyan, Chinese and Bolivian cultures" in text
    with pytest.raises(CorpusError, match=r"similarities of 'CAN' with 0 cultures, cross-culture thinking needs 6"):
        system_prompt(survey, "CAN", asking="thinking")


def test_a_corpus_has_the_majority_as_answer_and_a_twin_that_says_it(put: Put, tmp_path: Path) -> None:
    survey = read_survey(put(proportions_group_by_country={"USA": {"Q1": {"1": 0.6, "2": 0.4}, "Q95": {"7": 1.0}}}))
    (example,) = survey_corpus(survey)
    assert (example.id, example.group, example.item) == ("USA/Q1", "USA", "Q1")
    assert (example.answer, example.choices, example.answer_index) == ("1", ("1", "2", "3"), 0)
    assert example.control is not None
    assert example.control[0] == example.prompt[0]
    assert 'that reads "Very"' in example.control[1]["content"]  # pyright: ignore[reportArgumentType]
    write_jsonl(survey_corpus(survey), tmp_path / "c.jsonl")
    assert read_jsonl(tmp_path / "c.jsonl").hash == survey_corpus(survey).hash
    (plain,) = survey_corpus(survey, chat=False, asking="unaware")
    assert isinstance(plain.prompt, str)
    assert plain.prompt.endswith("Answer:")
    assert (plain.answer, plain.control) == (" 1", None)


def test_a_survey_of_ones_own(put: Put) -> None:
    config = 'name = "Tea Survey"\n[cultures]\nMEX = {name = "Mexican", article = "one"}\n[wording]\naware = "Be {a_culture}."'
    survey = read_survey(put(config))
    assert (survey.name, set(survey.cultures)) == ("Tea Survey", {"MEX"})
    assert system_prompt(survey, "MEX") == "Be one Mexican."
    assert "Tea Survey" in system_prompt(survey, asking="unaware")
    bad = put('[wording]\naware = "Be {country}."')
    with pytest.raises(CorpusError, match=r"wording 'aware' has the gap 'country'; it may have {survey}, {culture}"):
        system_prompt(read_survey(bad), "USA")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"wvs_questions": {"Q1": 1}}, r"wvs_questions.json: expected a list of questions, found dict"),
        ({"wvs_questions": [{"Q_id": "Q1"}]}, r"question 1: expected texts 'Q_id' and 'question'"),
        ({"wvs_questions": [{**FAMILY, "option_lst": ["Yes"]}]}, r"'Q1': expected two or more options"),
        ({"wvs_questions": [FAMILY, FAMILY]}, r"question 'Q1' stands there twice"),
        ({"wvs_questions": '[{"Q_id": "Q1"'}, r"cannot be read as JSON .*is the file whole\?"),
        ({"proportions_group_by_country": {"USA": {"Q1": {"x": 1}}}}, r"USA: expected Q_id -> {option number: share}"),
        ({"proportions_group_by_country": {"FRA": {}}}, r"is about FRA, the config names USA, CAN"),
        ({"country_similarity": {"USA": 3}}, r"country_similarity.json: expected culture -> culture -> number"),
        ({"config": "names = 3"}, r"unknown entry 'names'; expected name, exclude"),
        ({"config": 'exclude = "Q1"'}, r"'exclude' is 'Q1', expected a list"),
        ({"config": "[cultures]\nUSA = {adjective = 'x'}"}, r"cultures: expected a name or"),
    ],
)
def test_what_is_not_as_described_is_said(put: Put, files: dict[str, Any], said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        read_survey(put(**files))
    with pytest.raises(CorpusError, match="no such file; expected a folder with"):
        read_survey(put() / "nowhere")


def test_the_first_number_of_an_answer() -> None:
    assert first_number("I choose 2. 3", most=10) == 2
    assert first_number("12", most=10) is None
    assert first_number("none", most=10) is None
    assert [first_number(text, most=15) for text in ("007", "000", "15", "16")] == [7, 0, 15, None]
    assert first_number("1" * 5000, most=10) is None
    assert Question("Q", "t", ("a", "b")).numbers == range(1, 3)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs a clone of the authors' repository")
def test_the_authors_files() -> None:
    survey = read_survey(REAL)
    assert (len(survey.questions), len(survey.cultures), len(survey.topics)) == (259, 18, 13)
    assert "MEX" in survey.left_out


def test_the_format_gives_the_same_corpus_and_what_is_left_out(put: Put) -> None:
    folder = put()
    reading = read_format(folder, "wvs", asking="unaware")
    assert reading.corpus.hash == survey_corpus(read_survey(folder), asking="unaware").hash
    assert len(reading.dropped) == len(read_survey(folder).left_out) > 0
    assert guess_formats(folder) == ("wvs",)
    first = reading.corpus.groups[0]
    assert read_format(folder, "wvs", cultures=first, chat=False).corpus.groups == (first,)
    with pytest.raises(CorpusError, match="has no culture 'XXX'"):
        read_format(folder, "wvs", cultures="XXX")
