"""Reader of PARAREL: facts about subjects, each asked with several wordings of its relation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import files_in, read_json_rows, text_at
from ..formats import Dropped, Reading, gather, register_format
from ..parts import evenly, only, with_choices, with_others_prompts

LAST = re.compile(r"(?P<before>[^\[]*\[X\][^\[]*?)(?P<space>\s*)\[Y\]\s*[.!]?\s*")
FOLDERS = ("", "data", "pattern_data", "data/pattern_data")


def _looks(path: Path) -> bool:
    return path.is_dir() and (path / "data" / "pattern_data").is_dir() | (path / "pattern_data").is_dir()


@register_format(
    "pararel",
    title="PARAREL: facts in paraphrases (data/pattern_data/graphs_json/P36.jsonl, data/trex_lms_vocab/P36.jsonl)",
    source="https://github.com/yanaiela/pararel",
    licence="MIT",
    looks=_looks,
)
def read_pararel(
    path: Path,
    *,
    relations: Annotated[str | None, "Only these relations, joined by commas, such as P36,P103."] = None,
    wordings: Annotated[int | None, "Wordings of a relation to take, the first ones; all by default."] = None,
    facts: Annotated[int | None, "Facts of a relation to take, evenly spread; all by default."] = None,
) -> Reading:
    """PARAREL (Elazar et al. 2021, arXiv 2102.01017); the path is the repository or its folder `data`.

    The relation, such as P36 (capital of), is the group. Of its wordings those are kept that end with the object, as a
    causal model has to write it; the prompt is the wording up to there, the answer the object without the full stop. The
    wrong choices are three other objects of the relation of about that length, none of them right for this subject. The
    item is the fact (relation and subject). The control asks the same wording about another subject: it controls for the
    relation's words and for how likely the object is anyway, not for the fact. Dropped: wordings that go on after the
    object or begin with it (one entry each), facts that stand twice, relations without wordings.
    """
    patterns, vocabulary = _folder(path, "graphs_json"), _folder(path, "trex_lms_vocab")
    files = {file.stem: file for file in files_in(vocabulary, "P*.jsonl")}
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for name, file in only(files, relations, path=vocabulary, what="file of the relation").items():
        known, left = _facts(file)
        frames, unusable = _wordings(patterns / f"{name}.jsonl")
        dropped += [*left, *unusable]
        for number, (before, space, lemma) in frames[:wordings]:
            examples += [_example(name, fact, number, before, space, lemma) for fact in evenly(known, facts)]
    twinned = with_others_prompts(with_choices(examples), within=lambda example: example.tags["wording"])
    return gather(twinned, name="pararel", dropped=dropped)


def _folder(path: Path, name: str) -> Path:
    for above in FOLDERS:
        if (path / above / name).is_dir():
            return path / above / name
    raise CorpusError(
        f"{path}: no folder {name!r} in it, in data or in data/pattern_data; expected PARAREL's repository"
    )


def _facts(file: Path) -> tuple[list[tuple[str, str]], list[Dropped]]:
    """Subjects and objects of a relation."""
    known: dict[tuple[str, str], None] = {}
    dropped = []
    for where, row in read_json_rows(file):
        fact = (text_at(row, "sub_label", where), text_at(row, "obj_label", where))
        if fact in known:
            dropped.append(Dropped(where, "the fact stands twice"))
        known[fact] = None
    return list(known), dropped


def _wordings(file: Path) -> tuple[list[tuple[int, tuple[str, str, str]]], list[Dropped]]:
    """The wordings that end with the object: their number, the text before it, the blank, what they say."""
    if not file.is_file():
        return [], [Dropped(str(file), "no file of wordings for this relation")]
    frames, dropped = [], []
    for number, (where, row) in enumerate(read_json_rows(file), start=1):
        match = LAST.fullmatch(text_at(row, "pattern", where))
        if match is None:
            dropped.append(Dropped(where, "the wording does not end with the object"))
            continue
        frames.append((number, (match["before"], match["space"] or " ", str(row.get("extended_lemma", "")))))
    return frames, dropped


def _example(name: str, fact: tuple[str, str], number: int, before: str, space: str, lemma: str) -> Example:
    subject, thing = fact
    tags = {"item": f"{name}/{subject}", "language": "en", "task": name, "wording": str(number)}
    tags |= {"topic": lemma} if lemma else {}
    id = f"{name}/{number}/{subject}/{thing}"
    return Example(id, name, before.replace("[X]", subject), space + thing, tags=tags)
