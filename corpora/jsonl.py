"""The native format: JSON Lines, one example per line, read strictly and written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .examples import Corpus, CorpusError, Example
from .rows import parse_row


def read_jsonl(path: str | os.PathLike[str], *, name: str | None = None) -> Corpus:
    """The corpus in a JSON Lines file, named after the file unless `name` is given.

    Blank lines are skipped. Raises CorpusError with file, line, field, what was expected and what was found when the
    file is missing, empty, not UTF-8, cut off, or when a row is not an example or repeats an id.
    """
    path = Path(path)
    examples: dict[str, Example] = {}
    lines: dict[str, int] = {}
    for number, row in _rows(path):
        example = parse_row(row, where=f"{path}, line {number}", default_id=f"line-{number}")
        if example.id in lines:
            raise CorpusError(
                f"{path}: id {example.id!r} stands on line {lines[example.id]} and on line {number}; ids must be unique"
            )
        lines[example.id] = number
        examples[example.id] = example
    if not examples:
        raise CorpusError(f"{path}: the file is empty; expected one example (a JSON object) per line")
    return Corpus(tuple(examples.values()), name=name or path.stem)


def write_jsonl(corpus: Corpus, path: str | os.PathLike[str]) -> None:
    """Write the corpus so that `read_jsonl` gives it back; a file that is there is replaced at once or not at all."""
    with replacing(Path(path)) as file:
        for example in corpus:
            file.write(json.dumps(example.to_json(), ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: Path, *, errors: str = "strict") -> Iterator[TextIO]:
    """A text file to write to that becomes `path` when the block ends; on an error what was there stays as it is.

    `errors` is that of `open`. Raises CorpusError where there is no such folder.
    """
    if not path.parent.is_dir():
        raise CorpusError(f"{path}: the folder {path.parent} does not exist; make it first")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8", errors=errors, newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The parsed lines with their numbers."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; expected a JSON Lines file (.jsonl)") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); expected a JSON Lines file (.jsonl)") from error
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_line(line, where=f"{path}, line {number}", cut_off=number == len(lines))


def parse_line(line: bytes, *, where: str, cut_off: bool) -> Any:
    """The JSON value of one line; `cut_off` when nothing, not even a line end, follows it."""
    hint = "; the file ends in the middle of this line, so it may have been cut off" if cut_off else ""
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, where))
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where}: not UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line; "
            f"save the file as UTF-8{hint}"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        place = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        found = line[:40].decode("utf-8", "replace")
        reason = error.args[0].split(":")[0].removesuffix(" at")
        raise CorpusError(f"{where}: not JSON ({reason}{place}), found {found!r}{hint}") from None


def _unique(pairs: list[tuple[str, Any]], where: str) -> Mapping[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise CorpusError(f"{where}: field {twice!r} stands {keys.count(twice)} times in one object; expected once")
    return row
