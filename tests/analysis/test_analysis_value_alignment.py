from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from neuropolis.analysis.study import load, save
from neuropolis.analysis.value_alignment import alignment, culture_similarity
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.survey import WORDINGS, Culture, Question, Survey
from neuropolis.corpora.wvs import read_survey

REAL = Path(__file__).parents[3] / "shared" / "data" / "culturespa"
QUESTIONS = (
    Question("Q1", "one", ("a", "b", "c", "d")),
    Question("Q2", "two", ("a", "b", "c", "d", "e")),
    Question("Q3", "three", ("no", "perhaps", "yes"), first=0),
)


def make_survey(**majorities: dict[str, int]) -> Survey:
    shares = {key: {id: {number: 1.0} for id, number in gold.items()} for key, gold in majorities.items()}
    cultures = {key: Culture(key) for key in majorities}
    return Survey("toy", QUESTIONS, cultures, shares, dict.fromkeys(WORDINGS, ""))


def test_the_score_by_hand() -> None:
    survey = make_survey(north={"Q1": 1, "Q2": 5, "Q3": 0})
    # misses 3, 4 and 0 against ranges 3, 4 and 2: 1 - 5 / sqrt(29)
    found = alignment(survey, {"north": {"Q1": 4, "Q2": "I say 1.", "Q3": "0"}})
    assert found.values.tolist() == pytest.approx([100 * (1 - 5 / 29**0.5)])
    assert (found.valid.tolist(), found.asked.tolist()) == ([3], [3])
    right = alignment(survey, {"north": {"Q1": "1", "Q2": "5", "Q3": "0"}})
    assert (right.values.item(), right.low.item(), right.high.item()) == (100.0, 100.0, 100.0)


def test_invalid_answers_and_questions_without_a_majority_are_left_out_and_counted() -> None:
    survey = make_survey(north={"Q1": 1, "Q2": 5}, south={"Q1": 2})
    said = {"Q1": 2, "Q2": "11 of course", "Q3": 1}
    found = alignment(
        survey,
        {
            "north": said,
            "south": {**said, "Q1": "none"},
        },
    )
    # the only valid answer of the north misses by 1 of 3; 11 is above the largest number that counts
    assert found.values[0].item() == pytest.approx(100 * (1 - 1 / 3))
    assert (found.valid.tolist(), found.asked.tolist()) == ([1, 0], [2, 1])
    assert torch.isnan(found.values[1])


def test_an_answer_out_of_the_options_counts_up_to_ten_as_it_does_for_the_authors() -> None:
    found = alignment(make_survey(north={"Q1": 1}), {"north": {"Q1": "10"}})
    assert found.values.item() == pytest.approx(100 * (1 - 9 / 3))


def test_chance_is_the_mean_of_random_answers_and_middle_that_of_the_middle_option() -> None:
    survey = make_survey(north={"Q3": 0})
    found = alignment(survey, {"north": {"Q3": 0}}, resamples=20_000)
    # misses of 0, 1 and 2 of 2, a third each
    assert found.chance.item() == pytest.approx(50.0, abs=1.0)
    assert found.middle.item() == 50.0  # always 1, of 0 to 2
    assert alignment(make_survey(north={"Q1": 4}), {"north": {"Q1": 4}}).middle.item() == pytest.approx(100 / 3)


def test_cultures_are_compared_by_their_majorities() -> None:
    survey = make_survey(north={"Q1": 1, "Q2": 1}, south={"Q1": 4, "Q2": 5}, east={"Q1": 1, "Q2": 1})
    table = culture_similarity(survey)
    assert table["north"] == {"south": pytest.approx(0.0), "east": pytest.approx(100.0)}
    assert "north" not in table["north"]


def test_what_the_survey_lacks_is_refused() -> None:
    survey = make_survey(north={"Q1": 1})
    with pytest.raises(CorpusError, match="no question 'Q9', which north answers"):
        alignment(survey, {"north": {"Q9": 1}})
    with pytest.raises(CorpusError, match="no culture 'west'"):
        alignment(survey, {"west": {"Q1": 1}})
    with pytest.raises(CorpusError, match="no answers to align"):
        alignment(survey, {})


def test_scores_come_back_from_an_atlas(tmp_path: Path) -> None:
    survey = make_survey(north={"Q1": 1, "Q2": 5}, south={"Q1": 2})
    found = alignment(survey, {"north": {"Q1": 2, "Q2": 1}, "south": {"Q1": 2}}, subject="5ub")
    save(tmp_path / "s.h5", found)
    back = load(tmp_path / "s.h5").get("alignment", "alignment")
    assert (back.groups, back.subject, back.origin) == (found.groups, "5ub", found.origin)
    assert torch.equal(back.values, found.values)
    assert torch.equal(back.valid, found.valid)


def shipped(survey: Survey, name: str) -> dict[str, dict[str, str]]:
    answers = {}
    for key in survey.cultures:
        file = REAL / "result" / "Meta-Llama-3-8B-Instruct" / f"wvs_result_{name.format(key)}_0.json"
        rows = json.loads(file.read_text("utf-8"))
        used = {question.id for question in survey.questions}
        answers[key] = {row["Q_id"]: row["answer"] for row in rows if row["Q_id"] in used}
    return answers


@pytest.mark.skipif(not REAL.is_dir(), reason="needs a clone of the authors' repository")
@pytest.mark.parametrize(
    ("name", "mean", "usa"), [("culture_unaware", 62.36, 68.34), ("culture_aware_{}", 66.61, 71.12)]
)
def test_the_scores_of_the_authors_shipped_answers(name: str, mean: float, usa: float) -> None:
    survey = read_survey(REAL)
    found = alignment(survey, shipped(survey, name))
    assert found.mean == pytest.approx(mean, abs=0.005)
    assert found.values[0].item() == pytest.approx(usa, abs=0.005)
