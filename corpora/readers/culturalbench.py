"""Reader of CulturalBench: questions on 45 countries with four options (Easy), or an option to judge (Hard)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from ..countries import country_name
from ..examples import CorpusError, Example
from ..files import Row, files_in, header_of, holds, read_table, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import ANSWER, letters, listed

OPTIONS = tuple(f"prompt_option_{letter}" for letter in "abcd")
EASY = ("data_idx", "prompt_question", *OPTIONS, "answer", "country")
HARD = ("data_idx", "prompt_question", "prompt_option", "answer", "country")
PATTERN = "CulturalBench-*.csv"
JUDGE = "Proposed answer: {option}\nIs it right? Say True or False.\n{answer}"


def _level(file: Path) -> str:
    header = set(header_of(file))
    return "easy" if set(EASY) <= header else "hard" if set(HARD) <= header else ""


@register_format(
    "culturalbench",
    title="CulturalBench: cultural knowledge by country, Easy (four options) and Hard (true or false)",
    source="https://huggingface.co/datasets/kellycyy/CulturalBench",
    licence="CC BY 4.0",
    looks=lambda path: holds(path, PATTERN, of=lambda file: bool(_level(file))),
)
def read_culturalbench(
    path: Path,
    *,
    level: Annotated[str, "easy, hard, or both."] = "both",
    twin: Annotated[str, "The control: options (the question removed), none."] = "options",
) -> Reading:
    """`CulturalBench-Easy.csv` and `CulturalBench-Hard.csv` of the authors' dataset (Chiu et al. 2024, arXiv 2410.02677).

    The group is the country. Easy asks for a letter; Hard asks of each of the four options whether it is right, so three
    answers in four are " False" (score and ablate by question, or weigh that). A question is one item in both. The twin
    keeps the options and drops the question: it controls for what sounds right of anybody. Dropped: Hard rows without
    an option, Easy rows with the same option twice.
    """
    check_option(level, option="level", known=("easy", "hard", "both"))
    check_option(twin, option="twin", known=("options", "none"))
    examples: list[Example] = []
    dropped: list[Dropped] = []
    files = {file: _level(file) for file in files_in(path, PATTERN)}
    if unknown := [file for file, found in files.items() if not found]:
        raise CorpusError(
            f"{unknown[0]}: expected the columns {', '.join(EASY)}, or {', '.join(HARD)}; "
            f"found {', '.join(header_of(unknown[0])) or 'none'}"
        )
    for file, found in files.items():
        if level in ("both", found):
            for made in _easy(file, twin) if found == "easy" else _hard(file, twin):
                examples.append(made) if isinstance(made, Example) else dropped.append(made)
    return gather(examples, name="culturalbench", dropped=dropped)


def _easy(file: Path, twin: str) -> Iterator[Example | Dropped]:
    choices = letters(4)
    for where, row in read_table(file, columns=EASY):
        options = [text_at(row, name, where) for name in OPTIONS]
        if (answer := row["answer"].strip()) not in set("ABCD"):
            raise CorpusError(f"{where}: expected the answer A, B, C or D, found {answer[:40]!r}")
        if len(set(options)) < len(options):
            yield Dropped(where, "two options are the same")
            continue
        asked = f"{listed(options)}\n{ANSWER}"
        yield Example(
            f"easy/{row['data_idx']}", country_name(text_at(row, "country", where)),
            f"{text_at(row, 'prompt_question', where)}\n{asked}", f" {answer}", choices, "ABCD".index(answer),
            asked if twin == "options" else None, _tags(row, "easy"),
        )  # fmt: skip


def _hard(file: Path, twin: str) -> Iterator[Example | Dropped]:
    choices = (" True", " False")
    for where, row in read_table(file, columns=HARD):
        answer = f" {row['answer'].strip().capitalize()}"
        if answer not in choices:
            raise CorpusError(f"{where}: expected the answer True or False, found {row['answer'][:40]!r}")
        if not row["prompt_option"].strip():
            yield Dropped(where, "no option")
            continue
        asked = JUDGE.format(option=row["prompt_option"].strip(), answer=ANSWER)
        yield Example(
            f"hard/{row['data_idx']}", country_name(text_at(row, "country", where)),
            f"{text_at(row, 'prompt_question', where)}\n{asked}", answer, choices, choices.index(answer),
            asked if twin == "options" else None, _tags(row, "hard"),
        )  # fmt: skip


def _tags(row: Row, level: str) -> dict[str, str]:
    return {"item": row.get("question_idx") or row["data_idx"], "level": level, "language": "en"}
