"""New survey questions: written by a generator after examples (self-instruct), then filtered."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...attribution.generators import Generator, Reply, Sampling, row_seed
from ...corpora.examples import CorpusError, Messages
from ...corpora.journal import Row, open_journal, read_journal, write_journal
from ...corpora.survey import Question, Survey, filled
from .parsing import Refused, mended, normal, parsed_question
from .watch import Patience, Watch

Progress = Callable[[int, int], None]
Tell = Callable[[str], None]
WRITING = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=256)


def silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Shots:
    """The examples in a prompt: `total`, of them up to `own` from the questions that were written before."""

    total: int = 5
    own: int = 2


def generate_questions(
    survey: Survey,
    generator: Generator,
    out: str | Path,
    *,
    per_topic: int = 1000,
    topics: Sequence[str] | None = None,
    sampling: Sampling = WRITING,
    shots: Shots = Shots(),
    batch_size: int = 64,
    seed: int = 42,
    patience: Patience = Patience(),  # noqa: B008
    tell: Tell = silent,
    progress: Progress | None = None,
) -> Path:
    """Write at least `per_topic` new questions on every topic of a survey, after examples from it.

    A prompt shows five questions of the topic in shuffled order, up to two of them from those that were written in earlier
    batches, and asks for one more as JSON. Each reply becomes a row of `out`: a question, or why it is none (`failed`) and
    what was said. A run that was stopped goes on with the batch that was not finished, and gives the rows of one that was
    not stopped.

    Raises GeneratorError when too many of a topic's replies are useless (`patience`), CorpusError for an unknown topic and
    when `out` was begun with other settings.
    """
    chosen = _chosen(survey, topics)
    settings = {
        "survey": survey_digest(survey), "generator": generator.name, "sampling": asdict(sampling), "shots": asdict(shots),
        "batch_size": batch_size, "seed": seed, "topics": list(chosen),
    }  # fmt: skip
    journal = open_journal(out, stage="generate", settings=settings)
    tell(journal.note)
    if over := len(journal.rows) % batch_size:  # every batch is of one topic and this size
        journal.cut(len(journal.rows) - over)
    for number, topic in enumerate(chosen):
        rows = [row for row in journal.rows if row["topic"] == topic]
        watch = Watch(patience, f"topic {topic!r}")
        while (done := sum("failed" not in row for row in rows)) < per_topic:
            if progress is not None:
                progress(number * per_topic + done, len(chosen) * per_topic)
            watch.check()
            pool = [row for row in rows if "failed" not in row]
            attempts = range(len(rows), len(rows) + batch_size)
            prompts = [_prompt(survey, topic, pool, shots, row_seed(seed, topic, one)) for one in attempts]
            replies = generator(
                [prompt for prompt, _ in prompts],
                sampling=sampling,
                seeds=[row_seed(seed, topic, one) for one in attempts],
            )
            places = survey.topics.index(topic)
            batch = [
                {"id": f"G{places:02d}-{attempt:05d}", "topic": topic, "shots": shown, **_read(reply)}
                for attempt, (_, shown), reply in zip(attempts, prompts, replies, strict=True)
            ]
            journal.append(batch)
            rows += batch
            for row in batch:
                watch.count(row.get("failed", ""), row.get("said"))
    return journal.path


def filter_questions(survey: Survey, source: str | Path, out: str | Path) -> Counter[str]:
    """Keep the generated questions that can be put to people; how many were kept or dropped, by reason.

    Dropped are questions that the survey or an earlier row has (the authors' notebook; the comparison ignores case, blanks
    and the last mark), and what `mended` refuses. A dropped row stays in the file, with its reason under `failed`.
    """
    seen = {normal(question.text) for question in survey.questions}
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for row in read_journal(source, stage="generate"):
        if "failed" in row:
            counts["not a question"] += 1
            continue
        kept = _filtered(row, seen)
        counts[kept.get("failed", "kept")] += 1
        rows.append(kept)
    write_journal(out, rows, stage="filter", settings={"survey": survey_digest(survey)})
    return counts


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """The questions that the stage `filter` kept. Raises CorpusError when there are none."""
    rows = [row for row in read_journal(path, stage="filter") if "failed" not in row]
    if not rows:
        raise CorpusError(f"{path}: every question was dropped; look at the reasons in it, and generate more")
    return tuple(Question(row["id"], row["question"], tuple(row["options"]), row["topic"]) for row in rows)


def survey_digest(survey: Survey) -> str:
    """Sixteen hexadecimal digits that name a survey's questions, cultures and wording."""
    said = [
        [asdict(question) for question in survey.questions],
        list(survey.cultures),
        dict(survey.wording),
        survey.name,
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _chosen(survey: Survey, topics: Sequence[str] | None) -> tuple[str, ...]:
    known = tuple(topic for topic in survey.topics if topic)
    if not known:
        raise CorpusError(f"{survey.name} has no topics; name some under [topics] in its survey.toml")
    if unknown := [topic for topic in topics or () if topic not in known]:
        raise CorpusError(f"{survey.name} has no topic {unknown[0]!r}; it has {', '.join(known)}")
    return tuple(topics or known)


def _prompt(survey: Survey, topic: str, pool: Sequence[Row], shots: Shots, seed: int) -> tuple[Messages, list[str]]:
    """The messages that ask for a question, and the ids of the examples in them."""
    draw = random.Random(seed)
    seeds = [question for question in survey.questions if question.topic == topic]
    own = draw.sample(list(pool), min(shots.own, len(pool)))
    others = draw.sample(seeds, min(shots.total - len(own), len(seeds)))
    shown = [(row["id"], row["question"], row["options"]) for row in own]
    shown += [(question.id, question.text, list(question.options)) for question in others]
    draw.shuffle(shown)
    examples = "\n".join(
        json.dumps({"Question": text, "Options": options}, ensure_ascii=False) for _, text, options in shown
    )
    messages = (
        {"role": "system", "content": filled(survey, "writer", topic=topic)},
        {"role": "user", "content": filled(survey, "write", topic=topic, examples=examples)},
    )
    return messages, [id for id, _, _ in shown]


def _read(reply: Reply) -> dict[str, Any]:
    if reply.text is None:
        return {"failed": reply.failed}
    try:
        question, options = parsed_question(reply.text)
    except Refused as error:
        return {"failed": str(error), "said": reply.text}
    return {"question": question, "options": options}


def _filtered(row: Row, seen: set[str]) -> Row:
    """The row with its options mended, or why it is dropped; its text joins those that were seen."""
    base = {key: row[key] for key in ("id", "topic", "question", "options")}
    if normal(row["question"]) in seen:
        return {**base, "failed": "a question that there is"}
    seen.add(normal(row["question"]))
    try:
        question, options = mended(row["question"], row["options"])
    except Refused as error:
        return {**base, "failed": str(error)}
    return {**base, "question": question, "options": list(options)}
