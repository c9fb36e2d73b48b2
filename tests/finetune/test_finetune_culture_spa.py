"""The stages of CultureSPA's loop with a generator whose replies are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from neuropolis.attribution.generators import GeneratorError, Reply, Sampling
from neuropolis.corpora.examples import CorpusError, Messages
from neuropolis.corpora.journal import read_journal
from neuropolis.corpora.jsonl import read_jsonl
from neuropolis.corpora.survey import WORDINGS, Culture, Question, Survey
from neuropolis.corpora.wvs import read_survey
from neuropolis.finetune.culture_spa.answers import (
    Collected,
    answer_questions,
    answers_by_culture,
    collect_instances,
    read_answers,
)
from neuropolis.finetune.culture_spa.parsing import Refused, mended, parsed_question
from neuropolis.finetune.culture_spa.questions import (
    filter_questions,
    generate_questions,
    read_questions,
)
from neuropolis.finetune.culture_spa.watch import Patience


class Fake:
    """Says what `speak(prompt, seed)` gives; stops the process, as it were, before batch `stop`."""

    name = "fake"

    def __init__(self, speak: Callable[[Messages, int], str | None], stop: int | None = None) -> None:
        self.speak, self.stop, self.batches = speak, stop, 0

    def __call__(self, prompts: Sequence[Messages], *, sampling: Sampling, seeds: Sequence[int]) -> list[Reply]:
        if self.batches == self.stop:
            raise KeyboardInterrupt
        self.batches += 1
        said = [self.speak(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [Reply(failed="gone") if text is None else Reply(text) for text in said]


def write(_: Messages, seed: int) -> str:
    if seed % 3 == 0:
        return "I would rather not."
    return f'Here: {{"Question": "Do you like number {seed % 50}?", "Options": ["Yes", "No"]}} Good?'


@pytest.fixture
def survey() -> Survey:
    questions = tuple(Question(f"Q{i}", f"Is {i} good?", ("Yes", "Perhaps", "No"), "AB"[i % 2]) for i in range(8))
    cultures = {"USA": Culture("American"), "CHN": Culture("Chinese")}
    shares = {key: {"Q1": {1: 1.0}, "Q2": {3: 1.0}} for key in cultures}
    words = dict.fromkeys(WORDINGS, "{survey}") | {
        "write": "{topic}: {examples}", "aware": "Be {a_culture}.", "question": "{question} {options}",
        "control": "{question} {option}",
    }  # fmt: skip
    return Survey("toy", questions, cultures, shares, words)


def generate(survey: Survey, fake: Fake, out: Path, **options: Any) -> Path:
    return generate_questions(survey, fake, out, **{"per_topic": 20, "batch_size": 8, **options})


def test_questions_are_written_after_examples_of_their_topic(survey: Survey, tmp_path: Path) -> None:
    prompts: list[str] = []

    def speak(prompt: Messages, seed: int) -> str:
        prompts.append(prompt[1]["content"])
        return write(prompt, seed)

    out = generate(survey, Fake(speak), tmp_path / "g.jsonl")
    rows = read_journal(out, stage="generate")
    for topic in "AB":
        own = [row for row in rows if row["topic"] == topic]
        assert sum("failed" not in row for row in own) in range(20, 28)
        seeds = {question.id for question in survey.questions if question.topic == topic}
        assert {id for row in own for id in row["shots"]} > seeds
        assert all(sum(id not in seeds for id in row["shots"]) <= 2 for row in own)
        assert [len(row["shots"]) for row in own] == [4] * 8 + [5] * (len(own) - 8)  # four seeds, then two of its own
    bad = next(row for row in rows if "failed" in row)
    assert (bad["failed"], bad["said"]) == ("no JSON object", "I would rather not.")
    shown = prompts[0].removeprefix("B: " if prompts[0][0] == "B" else "A: ").splitlines()
    assert all(set(json.loads(line)) == {"Question", "Options"} for line in shown)


@pytest.mark.parametrize("lost", [0, 5, 2000])
def test_a_stopped_run_goes_on_and_gives_what_one_that_was_not_stopped_gives(
    survey: Survey, tmp_path: Path, lost: int
) -> None:
    whole = generate(survey, Fake(write), tmp_path / "whole.jsonl").read_bytes()
    out, told = tmp_path / "g.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        generate(survey, Fake(write, stop=4), out)
    out.write_bytes(out.read_bytes()[: -lost or None])
    generate(survey, Fake(write), out, tell=told.append)
    assert out.read_bytes() == whole
    assert bool(told[0]) == bool(lost)
    assert generate(survey, Fake(write, stop=0), out).read_bytes() == whole  # there is nothing left to ask


def test_more_can_be_asked_for_and_other_settings_are_refused(survey: Survey, tmp_path: Path) -> None:
    out = generate(survey, Fake(write), tmp_path / "g.jsonl")
    before = read_journal(out, stage="generate")
    generate(survey, Fake(write), out, per_topic=30)
    assert read_journal(out, stage="generate")[: len(before)] == before
    with pytest.raises(CorpusError, match="was begun with seed 42, now it is 1"):
        generate(survey, Fake(write), out, seed=1)
    with pytest.raises(CorpusError, match="no topic 'C'; it has A, B"):
        generate(survey, Fake(write), tmp_path / "h.jsonl", topics=["C"])


def test_a_generator_that_never_parses_is_stopped_with_samples(survey: Survey, tmp_path: Path) -> None:
    fake = Fake(lambda *_: "As a language model")
    with pytest.raises(GeneratorError, match=r"40 of 40 replies are of no use, more than 80%.*'As a language model'"):
        generate(survey, fake, tmp_path / "g.jsonl", patience=Patience(replies=40))
    assert fake.batches == 5
    with pytest.raises(GeneratorError, match=r"topic '.': 64 of 64 .*Such as: gone. What"):
        generate(survey, Fake(lambda *_: None), tmp_path / "h.jsonl")


def test_filtering_keeps_what_can_be_asked_and_says_why_not(survey: Survey, tmp_path: Path) -> None:
    said = [
        ("Is 3 good?", ["Yes", "No"]), ("Why?", ["a", "b"]), ("WHY ", ["a", "b"]), ("How many?", ["1", "2", "3"]),
        ("On a scale from 1 to 3, how?", ["1", "2", "3"]), ("Which?", ["1. Tea", "2. Milk"]), ("Long?", list("abcdefghijkl")),
    ]  # fmt: skip
    texts = iter([json.dumps({"Question": q, "Options": o}) for q, o in said] + ["nothing"] * 99)
    out = generate(
        survey, Fake(lambda *_: next(texts)), tmp_path / "g.jsonl", topics=["A"], per_topic=7,
    )  # fmt: skip
    counts = filter_questions(survey, out, tmp_path / "f.jsonl")
    assert counts == {
        "kept": 3, "a question that there is": 2, "not a question": 1, "12 options; 2 to 10 can be answered": 1,
        "options are numbers and the question does not say what they mean": 1,
    }  # fmt: skip
    kept = read_questions(tmp_path / "f.jsonl")
    assert [(q.text, q.options) for q in kept] == [
        ("Why?", ("a", "b")), ("On a scale from 1 to 3, how?", ("1", "2", "3")), ("Which?", ("Tea", "Milk")),
    ]  # fmt: skip
    assert kept[0].id == "G00-00001"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["1) Yes", "2) No"], ("Q?", ("Yes", "No"))),
        (["0. Yes", "1. No"], ("Q?", ("Yes", "No"))),
        (["1 - Never", "4 - Always"], ("Q? On a scale where 1 means 'Never', 4 means 'Always'.", ("1", "2", "3", "4"))),
        (["A lot", "2. No"], ("Q?", ("A lot", "2. No"))),
        (["2. b", "5. e"], "options are numbered 2, 5"),
        (["1 - Never", "20 - Always"], "20 options; 2 to 10 can be answered"),
        (["Yes", "yes "], "two options are the same"),
    ],
)
def test_options_are_mended_or_refused(options: list[str], expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(Refused, match=expected):
            mended("Q?", options)
    else:
        assert mended("Q?", options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('x {"a": 1} {"question": " T? ", "options": {"1": "Yes", "2": "No"}}', ("T?", ["Yes", "No"])),
        ('{"Question": "T?", "Options": [1, 2]}', ("T?", ["1", "2"])),
        ('{"Question": "T?", "Options": ["Yes"', "no whole JSON object"),
        ('{"Question": "T?", "Options": ["Yes"]}', "no Question with two or more Options"),
        ('{"Question": ["T?"], "Options": ["Yes", "No"]}', "no Question with two or more Options"),
        ("Question: T?", "no JSON object"),
    ],
)
def test_a_question_is_read_from_what_was_written(text: str, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(Refused, match=expected):
            parsed_question(text)
    else:
        assert parsed_question(text) == expected


def reply(prompt: Messages, _: int) -> str | None:
    """Unaware: 1. American: 2 to odd questions. Chinese: 3, but nothing to Q0 and no number to Q1."""
    system, user = prompt[0]["content"], prompt[1]["content"]
    number = int(user.split()[1])
    if system == "toy":
        return "1." if number != 5 else "9"
    if "Chinese" in system:
        return {0: None, 1: "none", 2: "12"}.get(number, "I choose 3")
    return str(1 + number % 2)


def test_answers_are_asked_for_collected_and_resumed(survey: Survey, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_questions(survey, survey.questions, Fake(reply, stop=2), out, batch_size=5)
    assert len(read_journal(out, stage="answer")) == 10
    fake = Fake(reply)
    answer_questions(survey, survey.questions, fake, out, batch_size=5)
    rows = read_answers(out)
    assert (len(rows), fake.batches) == (24, 3)
    assert rows["Q3", "CHN", "aware"] == {
        "question": "Q3", "culture": "CHN", "asking": "aware", "said": "I choose 3", "answer": 3,
    }  # fmt: skip
    assert rows["Q0", "CHN", "aware"]["failed"] == "gone"
    assert rows["Q1", "CHN", "aware"]["failed"] == "no number from 0 to 15"
    counts = collect_instances(survey, survey.questions, out, tmp_path / "i.jsonl")
    assert counts == {"USA": Collected(7, 3, 1), "CHN": Collected(4, 4, 4)}
    corpus = read_jsonl(tmp_path / "i.jsonl")
    assert corpus.counts == {"USA": 3, "CHN": 4}
    one = corpus.only("USA")[0]
    assert (one.id, one.answer, one.choices, one.tags["unaware"]) == ("USA/Q1", "2", ("1", "2", "3"), "1")
    assert one.prompt[0] == {"role": "system", "content": "Be an American."}
    assert collect_instances(survey, survey.questions, out, tmp_path / "j.jsonl", strict=False)["USA"] == Collected(
        8, 4, 0
    )
    said = answers_by_culture(survey, rows)
    assert (said["CHN"]["Q3"], said["CHN"]["Q0"]) == ("I choose 3", None)
    assert answers_by_culture(survey, rows, asking="unaware")["CHN"]["Q5"] == "9"
    with pytest.raises(CorpusError, match="no thinking answers for 'USA'"):
        answers_by_culture(survey, rows, asking="thinking")


def test_failed_answers_are_asked_again_only_when_told_to(survey: Survey, tmp_path: Path) -> None:
    out = answer_questions(survey, survey.questions, Fake(reply), tmp_path / "a.jsonl")
    answer_questions(survey, survey.questions, Fake(reply, stop=0), out)
    answer_questions(survey, survey.questions, Fake(lambda *_: "2"), out, retry_failed=True)
    rows = read_answers(out)
    assert rows["Q0", "CHN", "aware"]["answer"] == 2
    assert rows["Q3", "CHN", "aware"]["answer"] == 3
    assert len(read_journal(out, stage="answer")) == 26


def test_answers_that_never_have_a_number_stop_the_stage(survey: Survey, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match=r"answers: 10 of 10 replies are of no use.*no number.*'Hm'"):
        answer_questions(survey, survey.questions, Fake(lambda *_: "Hm"), tmp_path / "a.jsonl", batch_size=5,
            patience=Patience(replies=10))  # fmt: skip
    with pytest.raises(CorpusError, match="no culture 'FRA'"):
        answer_questions(survey, survey.questions, Fake(reply), tmp_path / "b.jsonl", cultures=["FRA"])


def test_an_unknown_way_of_asking_is_refused_before_there_is_a_file(survey: Survey, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="unknown way of asking 'awrae'; expected unaware, aware, thinking"):
        answer_questions(survey, survey.questions, Fake(reply), tmp_path / "a.jsonl", askings=["unaware", "awrae"])  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "a.jsonl").exists()


def test_nothing_to_collect_is_said(survey: Survey, tmp_path: Path) -> None:
    out = answer_questions(survey, survey.questions, Fake(lambda *_: "2"), tmp_path / "a.jsonl")
    with pytest.raises(CorpusError, match=r"no aware answer differs .*USA 8 compared, 0 invalid"):
        collect_instances(survey, survey.questions, out, tmp_path / "i.jsonl")


def test_the_default_wording_asks_for_json(tmp_path: Path) -> None:
    (tmp_path / "wvs_questions.json").write_text(
        json.dumps([{"Q_id": f"Q{i}", "question": f"How {i}?", "option_lst": ["a", "b"]} for i in range(1, 6)])
    )
    (tmp_path / "proportions_group_by_country.json").write_text('{"USA": {"Q1": {"1": 1}}}')
    seen: list[Messages] = []

    def speak(prompt: Messages, _: int) -> str:
        seen.append(prompt)
        return '{"Question": "Hm?", "Options": ["a", "b"]}'

    generate(read_survey(tmp_path), Fake(speak), tmp_path / "g.jsonl", per_topic=1)
    assert "You are a social scientist on the World Values Survey team." in seen[0][0]["content"]
    assert '{"Question": "How 3?", "Options": ["a", "b"]}' in seen[0][1]["content"]
