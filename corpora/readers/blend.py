"""Reader of BLEnD: everyday knowledge of sixteen countries and regions, its multiple choice as published or made here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from ..blend_choices import questions_made
from ..countries import country_name
from ..examples import CorpusError, Example
from ..files import files_in, first_json, header_of, holds, read_json_rows, read_table, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import ANSWER, letters, listed

COLUMNS = ("MCQID", "ID", "country", "prompt", "choices", "answer_idx")
PUBLISHED = tuple(f"{folder}mc_questions*.{end}" for folder in ("", "*/", "*/*/") for end in ("csv", "json", "jsonl"))
ANNOTATED = tuple(f"{folder}*_data.json" for folder in ("", "annotations*/", "*/annotations*/"))
TOPICS = tuple(
    f"{folder}*_questions.{end}" for folder in ("", "questions*/", "*/questions*/") for end in ("csv", "json")
)
NEUR = ("Food", "Work life", "Sport")
ORDER = " Without any explanation"
JSON = ' {"answer_choice":"'


def _is_published(file: Path) -> bool:
    found = header_of(file) if file.suffix == ".csv" else first_json(file)
    return isinstance(found, dict | tuple) and set(COLUMNS) <= set(found)


def _is_annotated(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig") as text:
            head = text.read(4000)
    except (OSError, UnicodeDecodeError):
        return False
    return file.suffix == ".json" and '"en_question"' in head and '"annotations"' in head


@register_format(
    "blend",
    title="BLEnD: everyday knowledge by country, multiple choice as published or made from the annotations",
    source="https://huggingface.co/datasets/nayeon212/BLEnD",
    licence="CC BY-SA 4.0",
    looks=lambda path: holds(path, *PUBLISHED, of=_is_published) or holds(path, *ANNOTATED, of=_is_annotated),
)
def read_blend(
    path: Path,
    *,
    questions: Annotated[
        str, "published (mc_questions_file), annotations (made here), or auto (published if there)."
    ] = "auto",
    most: Annotated[int, "At most this many questions of a country and question id; 0 for all that are published."] = 5,
    ask: Annotated[
        str, "letter (question, options, Answer:), or json (the published order to answer in JSON)."
    ] = "letter",
    twin: Annotated[str, "The control: options (the question removed), none."] = "options",
) -> Reading:
    """The files of the authors' dataset and repository (Myung et al. 2024, arXiv 2406.09948).

    Published questions are read from `mc_questions_file` (.csv or .json), the first `most` of every country and question
    id, as CULNIG takes them; otherwise `COUNTRY_data.json` is turned into questions by `corpora/blend_choices.py`, with
    answers of other countries as wrong options. The group is the country. The twin keeps options and order and drops the
    question (CULNIG's BLEnD_ctrl): it controls for what the options alone say. Where a `COUNTRY_questions` file lies
    in the folder, the tag `topic` holds the question's topic and `half` is `neur` for food, work life and sport (on
    these CULNIG scores neurons) and `test` otherwise. A question id is one item in all countries, since their options
    are each other's answers. Dropped: what is above `most`; published prompts without the published order (no question
    can be told from them); questions that annotators could not answer, without an agreed answer, or with fewer than
    three wrong options.
    """
    check_option(questions, option="questions", known=("auto", "published", "annotations"))
    check_option(ask, option="ask", known=("letter", "json"))
    check_option(twin, option="twin", known=("options", "none"))
    if most < 0:
        raise CorpusError(f"the option most is {most}; expected 0 or more")
    use = questions
    if use == "auto":
        use = "published" if holds(path, *PUBLISHED, of=_is_published) else "annotations"
    if use == "annotations" and ask == "json":
        raise CorpusError("the order to answer in JSON stands in the published questions only; give ask=letter")
    topics = _topics(path)
    if use == "published":
        made = _published(files_in(path, *PUBLISHED)[0], most, ask, twin, topics)
    else:
        made = _made(files_in(path, *ANNOTATED), most or 5, twin, topics)
    examples, dropped = [], []
    for one in made:
        (examples if isinstance(one, Example) else dropped).append(one)
    notes = [] if topics else ["no file such as US_questions.csv in the folder: no topics"]
    return gather(examples, name="blend", dropped=dropped, notes=notes)


def _published(file: Path, most: int, ask: str, twin: str, topics: Mapping[str, str]) -> Iterator[Example | Dropped]:
    """The rows of `mc_questions_file`; `prompt` ends in the order, the options and "Answer:"."""
    rows = read_table(file, columns=COLUMNS) if file.suffix == ".csv" else read_json_rows(file)
    seen: Counter[tuple[str, str]] = Counter()
    for where, row in rows:
        id, country, text = (text_at(row, name, where) for name in ("ID", "country", "prompt"))
        seen[country, id] += 1
        if most and seen[country, id] > most:
            yield Dropped(where, f"more than {most} of its country and question")
            continue
        options, place = _options(row, where)
        question, order, rest = text.partition(ORDER)
        if not order:
            yield Dropped(where, f"the prompt has no {ORDER.strip()!r} after its question")
            continue
        control = f"{order.strip()}{rest}{JSON}"
        prompt = f"{question}{order}{rest}{JSON}"
        if ask == "letter":
            control = f"{listed(options)}\n{ANSWER}"
            prompt = f"{question.strip()}\n{control}"
        choices = letters(len(options), space=" " if ask == "letter" else "")
        yield Example(
            text_at(row, "MCQID", where), country_name(country), prompt, choices[place], choices, place,
            control if twin == "options" else None, _tags(id, topics),
        )  # fmt: skip


def _options(row: Mapping[str, Any], where: str) -> tuple[list[str], int]:
    """The options in the order of their letters and the place of the right one; `choices` is JSON within the field."""
    choices: Any = row.get("choices")
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            choices = None
    choices = choices if isinstance(choices, Mapping) else {}
    names = sorted(choices)
    if len(names) < 2 or names != [letter.strip() for letter in letters(len(names))]:
        raise CorpusError(
            f'{where}: expected \'choices\' such as {{"A": ..., "B": ...}}, found {str(row.get("choices"))[:60]!r}'
        )
    if row.get("answer_idx") not in names:
        raise CorpusError(
            f"{where}: expected one of {', '.join(names)} as 'answer_idx', found {row.get('answer_idx')!r}"
        )
    return [str(choices[name]) for name in names], names.index(row["answer_idx"])


def _made(files: list[Path], most: int, twin: str, topics: Mapping[str, str]) -> Iterator[Example | Dropped]:
    for made in questions_made(files, most=most):
        if isinstance(made, Dropped):
            yield made
            continue
        choices, asked = letters(len(made.options)), f"{listed(made.options)}\n{ANSWER}"
        yield Example(
            f"{made.country}/{made.id}/{made.number}", country_name(made.country), f"{made.question}\n{asked}",
            choices[made.place], choices, made.place, asked if twin == "options" else None, _tags(made.id, topics),
        )  # fmt: skip


def _tags(id: str, topics: Mapping[str, str]) -> dict[str, str]:
    tags = {"item": id, "language": "en"}
    if id in topics:
        tags |= {"topic": topics[id], "half": "neur" if topics[id] in NEUR else "test"}
    return tags


def _topics(path: Path) -> dict[str, str]:
    """Question id -> topic, from a country's questions beside the data (all countries have the same ids and topics)."""
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    found = sorted({file for folder in folders for pattern in TOPICS for file in folder.glob(pattern)})
    for file in sorted(found, key=lambda file: file.name != "US_questions.csv"):
        if "Topic" in (header_of(file) if file.suffix == ".csv" else first_json(file) or ()):
            rows = read_table(file, columns=("ID", "Topic")) if file.suffix == ".csv" else read_json_rows(file)
            return {text_at(row, "ID", where): text_at(row, "Topic", where) for where, row in rows}
    return {}
