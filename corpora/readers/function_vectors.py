"""Reader of the function-vectors tasks: small tasks from input to output, shown by demonstrations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from ..examples import CorpusError, Example
from ..files import files_in, first_json, read_json_rows, text_at
from ..formats import Dropped, Reading, gather, register_format
from ..parts import parted, placed, with_choices

LABELS = 10  # more different outputs than this are not labels to choose from
PATTERNS = ("dataset_files/*tractive/*.json", "*tractive/*.json", "*.json")
LANGUAGES = {"english-french": "fr", "english-german": "de", "english-spanish": "es"}
Pair = tuple[str, str, str]


def _looks(path: Path) -> bool:
    file = path if path.is_file() else next(iter(_files(path)), None)
    row = first_json(file) if file is not None and file.suffix == ".json" else None
    return isinstance(row, dict) and set(row) == {"input", "output"}


@register_format(
    "function-vectors",
    title="function-vectors tasks: TASK.json with pairs of input and output",
    source="https://github.com/ericwtodd/function_vectors",
    licence="MIT",
    looks=_looks,
)
def read_function_vectors(
    path: Path,
    *,
    shots: Annotated[int, "Demonstrations before the question; 0 asks without any."] = 5,
    seed: Annotated[int, "Seed of which pairs become demonstrations, and of their order."] = 0,
    frame: Annotated[
        str, "A pair, with {input} and {output} in it; the output stands last."
    ] = "Q: {input}\nA: {output}",
) -> Reading:
    """The tasks of Todd et al. 2024 (arXiv 2310.15213): `dataset_files/abstractive/TASK.json`, `extractive/TASK.json`.

    The task is the group. Demonstrations are drawn for every question from pairs that are set aside for this and not asked
    themselves (four times `shots`, at most a fifth of the task), so that no answer shows in another question's prompt. The
    control has the same demonstrations with their outputs changed round: it controls for the words, the form and the
    answer, not for the task that they show; without demonstrations there is none. Choices: an extractive task's listed
    words; outputs that are at most ten in all; else three others of about that length. The item is the input.
    Dropped: pairs set aside, pairs that stand twice, extractive answers that are not among the words.
    """
    if shots < 0:
        raise CorpusError(f"expected 0 or more shots, found {shots}")
    if "{input}" not in frame or not frame.endswith("{output}") or not frame.removesuffix("{output}").strip():
        raise CorpusError(f"expected a frame with {{input}} in it and {{output}} at its end, found {frame!r}")
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for file in _files(path) or files_in(path, *PATTERNS):
        asked, left = parted(_questions(file, shots, seed, frame))
        examples += _chosen(asked)
        dropped += left
    return gather(examples, name=path.stem, dropped=dropped)


def _files(path: Path) -> list[Path]:
    """The tasks of the repository, of `dataset_files`, or of a folder of tasks: the first of these that has any."""
    return next((sorted(found) for pattern in PATTERNS if (found := list(path.glob(pattern)))), [])


def _questions(file: Path, shots: int, seed: int, frame: str) -> Iterator[Example | Dropped]:
    task, kind = file.stem, file.parent.name
    pairs: dict[tuple[str, str], Pair] = {}
    for where, row in read_json_rows(file):
        given, output = _field(row, "input", where), _field(row, "output", where)
        if (given, output) in pairs:
            yield Dropped(where, "the pair stands twice")
        elif kind == "extractive" and output not in given.split(", "):
            yield Dropped(where, "the output is not one of the words listed")
        else:
            pairs[given, output] = (where, given, output)
    demonstrations = _aside(list(pairs.values()), task, shots, seed)
    shown = {given for _, given, _ in demonstrations}
    before, space = _space(frame)
    for number, (where, given, output) in enumerate(pairs.values(), start=1):
        if given in shown:
            yield Dropped(where, "set aside for demonstrations")
            continue
        drawn = _drawn(demonstrations, shots, f"{seed}/{task}/{given}")
        question = before.format(input=given)
        tags = {"item": given, "language": "en", "task": task, "kind": kind}
        tags |= {"target": LANGUAGES[task]} if task in LANGUAGES else {}
        yield Example(
            f"{task}/{number}", task, _prompt(drawn, frame, question), space + output,
            control=_prompt(_turned(drawn), frame, question) if len({pair[2] for pair in drawn}) > 1 else None, tags=tags,
        )  # fmt: skip


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text, or a number as a text."""
    value = row.get(name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_at(row, name, where)


def _aside(pairs: list[Pair], task: str, shots: int, seed: int) -> list[Pair]:
    """The pairs that serve as demonstrations, with different inputs."""
    if shots == 0:
        return []
    num = max(shots, min(4 * shots, len(pairs) // 5))
    firsts = {pair[1]: pair for pair in reversed(pairs)}
    if num >= len(firsts):
        raise CorpusError(f"task {task!r} has {len(firsts)} inputs, too few for {shots} demonstrations and a question")
    return random.Random(f"{seed}/{task}").sample(sorted(firsts.values(), key=lambda pair: pair[1]), num)


def _drawn(demonstrations: list[Pair], shots: int, seed: str) -> list[Pair]:
    """Demonstrations for one question, with two different outputs at least where the task has them."""
    order = random.Random(seed).sample(demonstrations, len(demonstrations))
    drawn, rest = order[:shots], order[shots:]
    other = next((pair for pair in rest if drawn and pair[2] != drawn[0][2]), None)
    return [*drawn[:-1], other] if shots > 1 and other and len({pair[2] for pair in drawn}) == 1 else drawn


def _space(frame: str) -> tuple[str, str]:
    """What stands before the output, and the blank that belongs to the output."""
    before = frame.removesuffix("{output}")
    return before.rstrip(" "), before[len(before.rstrip(" ")) :]


def _prompt(drawn: list[Pair], frame: str, question: str) -> str:
    return "\n\n".join([*(frame.format(input=given, output=output) for _, given, output in drawn), question])


def _turned(drawn: list[Pair]) -> list[Pair]:
    """The same inputs, each with the output of the pair before it."""
    return [(where, given, drawn[place - 1][2]) for place, (where, given, _) in enumerate(drawn)]


def _chosen(rows: list[Example]) -> tuple[Example, ...]:
    """The questions of one task with their choices."""
    outputs = sorted({row.answer for row in rows})
    if rows and rows[0].tags["kind"] == "extractive":
        listed = [
            (row, [f"{row.answer[: -len(row.answer.lstrip())]}{word}" for word in row.item.split(", ")]) for row in rows
        ]
        return tuple(replace(row, choices=words, answer_index=words.index(row.answer)) for row, words in listed)
    if 1 < len(outputs) <= LABELS:
        others = ((row, *placed(row.answer, [o for o in outputs if o != row.answer], key=row.id)) for row in rows)
        return tuple(replace(row, choices=choices, answer_index=place) for row, choices, place in others)
    return with_choices(rows)
