"""Reader of SIB-200: the same 1,004 sentences in 200 languages, each with one of seven topics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import header_of, read_lines, read_table, text_at
from ..formats import Dropped, Reading, gather, register_format
from ..parts import halves, only, parted, with_choices

COLUMNS = ("index_id", "category", "text")
PARTS = ("train", "dev", "test")
FOLDERS = ("", "*/", "annotated/*/", "data/*/", "data/annotated/*/")
FRAME = "{sentence}\nTopics: {topics}\nTopic:"
BARE = "Topics: {topics}\nTopic:"


def _looks(path: Path) -> bool:
    found = (file for above in FOLDERS for file in path.glob(f"{above}train.tsv"))
    file = path if path.is_file() else next(found, None)
    return file is not None and file.suffix == ".tsv" and header_of(file) == COLUMNS


@register_format(
    "sib200",
    title="SIB-200: parallel sentences with seven topics in 200 languages (LANG/train.tsv)",
    source="https://github.com/dadelani/sib-200",
    licence="CC BY-SA 4.0",
    looks=_looks,
)
def read_sib200(
    path: Path,
    *,
    ask: Annotated[str, "What is asked: rest (the sentence's second half, for languages) or topic."] = "rest",
    group: Annotated[str, "What becomes the group: language or topic."] = "language",
    languages: Annotated[str | None, "Only these languages, joined by commas, such as deu_Latn,zho_Hans."] = None,
) -> Reading:
    """SIB-200 (Adelani et al. 2024, arXiv 2309.07445); the path is the repository, `data/annotated`, a language or a file.

    `rest`: the prompt is the first half of a sentence, the answer its second half, the wrong choices are the second halves
    of three others of about that length. It has no control: nothing in the text is not its language.
    `topic`: the prompt is the sentence and the topics (in English, as in the files), the choices are the topics; the
    control leaves the sentence out: it controls for the frame and for how likely the topic's word is anyway.
    A sentence's translations share the item `sib200/INDEX`. Dropped: sentences of one character for `rest`.
    """
    for name, value, known in (("ask", ask, ("rest", "topic")), ("group", group, ("language", "topic"))):
        if value not in known:
            raise CorpusError(f"expected {name} {' or '.join(known)}, found {value!r}")
    folders: dict[str, list[Path]] = {}
    for file in _tables(path):
        folders.setdefault(file.parent.name, []).append(file)
    chosen = only(folders, languages, path=path, what="folder of the language")
    examples, dropped = parted(row for files in chosen.values() for file in files for row in _rows(file, ask))
    asked = with_choices(examples) if ask == "rest" else examples
    grouped = asked if group == "language" else [replace(row, group=row.tags["topic"]) for row in asked]
    return gather(grouped, name="sib200", dropped=dropped)


def _tables(path: Path) -> list[Path]:
    """The tables of the repository, of `data/annotated` or of one language, in the order train, dev, test."""
    if path.is_file():
        return [path]
    found = [file for part in PARTS for above in FOLDERS for file in sorted(path.glob(f"{above}{part}.tsv"))]
    if not found:
        raise CorpusError(f"{path}: no file LANG/train.tsv, dev.tsv or test.tsv in it or in its folder data/annotated")
    return found


def _topics(file: Path, rows: list[str]) -> tuple[str, ...]:
    """The language's `labels.txt`, or the topics that its table has."""
    labels = file.with_name("labels.txt")
    return tuple(filter(None, read_lines(labels))) if labels.is_file() else tuple(sorted(set(rows)))


def _rows(file: Path, ask: str) -> Iterator[Example | Dropped]:
    language, split = file.parent.name, file.stem
    rows = read_table(file, columns=COLUMNS)
    topics = _topics(file, [row["category"] for _, row in rows])
    for where, row in rows:
        index, topic, text = (text_at(row, name, where) for name in COLUMNS)
        if topic not in topics:
            raise CorpusError(f"{where}: the topic {topic!r} is none of those in labels.txt: {', '.join(topics)}")
        tags = {"item": f"sib200/{index}", "language": language, "split": split, "topic": topic}
        id = f"{language}/{split}/{index}"
        if ask == "rest":
            head, tail = halves(text)
            yield Example(id, language, head, tail, tags=tags) if head else Dropped(where, "a single character")
            continue
        choices, place, listed = tuple(f" {one}" for one in topics), topics.index(topic), ", ".join(topics)
        prompt, control = FRAME.format(sentence=text, topics=listed), BARE.format(topics=listed)
        yield Example(id, language, prompt, choices[place], choices, place, control, tags)
