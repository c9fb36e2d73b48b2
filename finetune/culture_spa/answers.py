"""Answers to survey questions under culture-unaware, culture-aware and cross-culture-thinking prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from ...attribution.generators import Generator, Reply, Sampling, row_seed
from ...corpora.examples import Corpus, CorpusError
from ...corpora.journal import Row, open_journal, read_journal
from ...corpora.jsonl import write_jsonl
from ...corpora.survey import Asking, Question, Survey, asked, first_number
from ...corpora.wvs import survey_example
from .questions import Progress, Tell, silent, survey_digest
from .watch import Patience, Watch

ANSWERING = Sampling(temperature=0.6, top_p=0.9, max_new_tokens=16)
MOST = 15  # the authors count an answer from 0 to 15 when they collect
Key = tuple[str, str | None, str]


def answer_questions(
    survey: Survey,
    questions: Sequence[Question],
    generator: Generator,
    out: str | Path,
    *,
    cultures: Sequence[str] | None = None,
    askings: Sequence[Asking] = ("unaware", "aware"),
    sampling: Sampling = ANSWERING,
    batch_size: int = 64,
    seed: int = 42,
    retry_failed: bool = False,
    patience: Patience = Patience(),  # noqa: B008
    tell: Tell = silent,
    progress: Progress | None = None,
) -> Path:
    """Put every question to a person of no culture (once) and of each culture, in these ways (Xu et al. 2024).

    Each reply becomes a row of `out`: what was `said`, and under `answer` its first whole number from 0 to 15. Where there
    is none the row says so under `failed`, and so it does where nothing was said. A run that was stopped goes on where it
    stopped; other questions, cultures and ways can be added to a file. `retry_failed` asks again what has failed.

    Raises GeneratorError when too many replies are useless (`patience`), CorpusError for an unknown culture and when `out`
    was begun with other settings.
    """
    for key in cultures or ():
        survey.culture(key)
    if unknown := [one for one in askings if one not in get_args(Asking)]:
        raise CorpusError(f"unknown way of asking {unknown[0]!r}; expected {', '.join(get_args(Asking))}")
    settings = {
        "survey": survey_digest(survey), "generator": generator.name, "sampling": asdict(sampling), "seed": seed,
    }  # fmt: skip
    journal = open_journal(out, stage="answer", settings=settings)
    tell(journal.note)
    done = {_key(row) for row in journal.rows if not (retry_failed and "failed" in row)}
    done |= {_key(row) for row in journal.rows if "failed" not in row}
    texts = {question.id: question for question in questions}
    wanted = [key for key in _keys(questions, tuple(cultures or survey.cultures), askings) if key not in done]
    watch = Watch(patience, "answers")
    for first in range(0, len(wanted), batch_size):
        if progress is not None:
            progress(first, len(wanted))
        batch = wanted[first : first + batch_size]
        replies = generator(
            [asked(survey, texts[id], culture, asking=asking) for id, culture, asking in batch],  # pyright: ignore[reportArgumentType]
            sampling=sampling, seeds=[row_seed(seed, *key) for key in batch],
        )  # fmt: skip
        rows = [_row(key, reply) for key, reply in zip(batch, replies, strict=True)]
        journal.append(rows)
        for row in rows:
            watch.count(row.get("failed", ""), row.get("said"))
        watch.check()
    if progress is not None:
        progress(len(wanted), len(wanted))
    return journal.path


def read_answers(path: str | Path) -> dict[Key, Row]:
    """The rows of the stage `answer` by (question, culture or None, way of asking); of several the last."""
    return {_key(row): row for row in read_journal(path, stage="answer")}


def answers_by_culture(
    survey: Survey, rows: dict[Key, Row], *, asking: Asking = "aware", cultures: Sequence[str] | None = None
) -> dict[str, dict[str, str | None]]:
    """What was said to each culture's questions, as `alignment` takes it; None where nothing was said.

    The unaware answers are the same for every culture. Raises CorpusError for a culture without answers.
    """
    found: dict[str, dict[str, str | None]] = {}
    for culture in cultures or tuple(survey.cultures):
        own = culture if asking != "unaware" else None
        found[culture] = {
            question.id: row.get("said")
            for question in survey.questions
            if (row := rows.get((question.id, own, asking))) is not None
        }
        if not found[culture]:
            raise CorpusError(
                f"no {asking} answers for {culture!r} to the questions of {survey.name}; run the stage answer"
            )
    return found


@dataclass(frozen=True)
class Collected:
    """Of one culture's questions, how many were compared, how many answers differed, and how many could not be used."""

    compared: int
    different: int
    invalid: int


def collect_instances(
    survey: Survey,
    questions: Sequence[Question],
    answers: str | Path,
    out: str | Path,
    *,
    asking: Asking = "aware",
    cultures: Sequence[str] | None = None,
    strict: bool = True,
    chat: bool = True,
) -> dict[str, Collected]:
    """Write the instances where a culture's answer differs from the culture-unaware one, as a corpus (steps 4 and 5).

    An instance is the question under the culture-aware prompt, whichever way (`asking`) its answer was found, and that
    answer is right. With `strict` both answers must be the number of an option; without it the authors' rule holds (any
    number from 0 to 15), except that the answer that is learned must still be an option's. `chat` is that of
    `survey_corpus`; without it prompts are plain texts.

    Raises CorpusError when nothing differs.
    """
    rows = read_answers(answers)
    examples, counts = [], {}
    for culture in cultures or tuple(survey.cultures):
        compared = different = invalid = 0
        for question in questions:
            pair = (rows.get((question.id, None, "unaware")), rows.get((question.id, culture, asking)))
            if None in pair:
                continue
            plain, own = (None if row is None else row.get("answer") for row in pair)
            if (
                own is None
                or own not in question.numbers
                or plain is None
                or (strict and plain not in question.numbers)
            ):
                invalid += 1
                continue
            compared += 1
            if own != plain:
                different += 1
                tags = {"unaware": str(plain)}
                examples.append(survey_example(survey, question, culture, own, chat=chat, tags=tags))
        counts[culture] = Collected(compared, different, invalid)
    if not examples:
        told = ", ".join(f"{key} {one.compared} compared, {one.invalid} invalid" for key, one in counts.items())
        raise CorpusError(f"{answers}: no {asking} answer differs from an unaware one ({told}); nothing to learn from")
    write_jsonl(Corpus(tuple(examples), name=Path(out).stem), out)
    return counts


def _keys(questions: Sequence[Question], cultures: Sequence[str], askings: Sequence[Asking]) -> Iterator[Key]:
    for question in questions:
        for asking in askings:
            yield from ((question.id, culture, asking) for culture in ((None,) if asking == "unaware" else cultures))


def _key(row: Row) -> Key:
    return row["question"], row["culture"], row["asking"]


def _row(key: Key, reply: Reply) -> Row:
    question, culture, asking = key
    row: Row = {"question": question, "culture": culture, "asking": asking}
    if reply.text is None:
        return {**row, "failed": reply.failed}
    number = first_number(reply.text, most=MOST)
    if number is None:
        return {**row, "said": reply.text, "failed": f"no number from 0 to {MOST}"}
    return {**row, "said": reply.text, "answer": number}
