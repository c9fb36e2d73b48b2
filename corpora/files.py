"""Files of benchmarks read strictly: text that must be UTF-8, JSON, tables with named columns."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from .examples import CorpusError

Row = Mapping[str, str]

_unended: ContextVar[list[Path] | None] = ContextVar("unended", default=None)


@contextmanager
def unended_files() -> Iterator[list[Path]]:
    """While the block runs, the tables and lines read from files whose last line has no line end: they may be cut off.

    JSON is not among them: what is left of a value that was cut off is no value.
    """
    found: list[Path] = []
    token = _unended.set(found)
    try:
        yield found
    finally:
        _unended.reset(token)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without a byte order mark; CorpusError says which line is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}, line {line}: not UTF-8, found byte 0x{data[error.start]:02x}; save the file as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without their line ends; an empty file has one, which is empty."""
    text = read_text(path)
    if text and not text.endswith("\n"):
        _note_unended(path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorpusError(f"{path}: cannot be read as JSON ({error}); is the file whole?") from error


def read_json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSON Lines file, or of a JSON file that holds a list of objects, each with where it stands."""
    text = read_text(path)
    listed = text.lstrip().startswith("[")
    values = enumerate(read_json(path), start=1) if listed else _json_lines(path, text)
    for number, value in values:
        where = f"{path}, {'row' if listed else 'line'} {number}"
        if not isinstance(value, Mapping):
            raise CorpusError(f"{where}: expected an object, found {str(value)[:60]!r}")
        yield where, value


def read_table(path: Path, *, columns: tuple[str, ...], delimiter: str | None = None) -> list[tuple[str, Row]]:
    """The rows of a CSV or TSV file with a header that names at least `columns`, each with where it stands.

    The delimiter is a tab for `.tsv` and a comma otherwise unless given. Raises CorpusError for a column that is missing,
    for a row with more or fewer fields than the header, and for a quote that is not closed.
    """
    return list(iter_table(path, columns=columns, delimiter=delimiter))


def iter_table(path: Path, *, columns: tuple[str, ...], delimiter: str | None = None) -> Iterator[tuple[str, Row]]:
    """The same, row by row, for files that are larger than memory should hold."""
    delimiter = delimiter or ("\t" if path.suffix == ".tsv" else ",")
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            header = [name.strip() for name in next(lines, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise CorpusError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(header) or 'none'}")
            for fields in filter(None, lines):
                where, number = f"{path}, line {lines.line_num}", lines.line_num
                if len(fields) != len(header):
                    raise CorpusError(
                        f"{where}: expected {len(header)} fields, found {len(fields)}; is the row cut off?"
                    )
                yield where, dict(zip(header, fields, strict=True))
        if _last_byte(path) not in (b"", b"\n", b"\r"):
            _note_unended(path)
    except csv.Error as error:
        raise CorpusError(f"{path}, after line {number}: cannot be read as a table ({error})") from error
    except (OSError, UnicodeDecodeError):
        read_text(path)  # tells what is wrong, and in which line
        raise


def files_in(path: Path, *patterns: str) -> list[Path]:
    """The file itself, or the files of a folder that match any of the patterns, in order; CorpusError when none does."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    found = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if not found:
        raise CorpusError(f"{path}: no file in it matches {' or '.join(patterns)}")
    return found


def holds(path: Path, *patterns: str, of: Callable[[Path], bool]) -> bool:
    """Whether the file, or a file of the folder that matches a pattern, is `of` a layout. For `looks`."""
    try:
        files = [path] if path.is_file() else [file for pattern in patterns for file in path.glob(pattern)][:100]
        return any(of(file) for file in files if file.is_file())
    except OSError:
        return False


def text_at(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be a text with more than blanks in it, without the blanks around."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{where}: expected a text under {name!r}, found {str(value)[:60]!r}")
    return value.strip()


def header_of(path: Path) -> tuple[str, ...]:
    """The first line of a text file split at tabs or commas; empty for what is not a text file. For `looks`."""
    try:
        with path.open(encoding="utf-8-sig", errors="strict") as file:
            line = file.readline(20_000).strip("\r\n")
    except (OSError, UnicodeDecodeError):
        return ()
    names = next(csv.reader([line], delimiter="\t" if "\t" in line else ","), [])
    return tuple(name.strip() for name in names)


def first_json(path: Path) -> Any:
    """The first object of a JSON or JSON Lines file, None for what is not one. For `looks`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(200_000).lstrip()
        return json.JSONDecoder().raw_decode(head[1:].lstrip() if head.startswith("[") else head)[0]
    except (OSError, ValueError, RecursionError):
        return None


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read(1)


def _note_unended(path: Path) -> None:
    found = _unended.get()
    if found is not None and path not in found:
        found.append(path)


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            cut = "; the file ends in the middle of this line, it may have been cut off" if number == len(lines) else ""
            raise CorpusError(f"{path}, line {number}: not JSON ({error.args[0]}), found {line[:40]!r}{cut}") from None
