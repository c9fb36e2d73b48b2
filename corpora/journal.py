"""Journals: JSON Lines files that a stage appends to batch by batch, and goes on with where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .examples import CorpusError
from .jsonl import replacing

Row = dict[str, Any]


@dataclass
class Journal:
    """A file whose first line says which stage writes it with which settings, and whose other lines are its rows.

    `rows` are those that are on the disk; `note` says what was repaired when the file was opened.
    """

    path: Path
    rows: list[Row]
    ends: list[int]  # the byte after each row
    note: str = ""

    def append(self, rows: Sequence[Row]) -> None:
        """Write a batch; when it returns, the rows are on the disk."""
        if not rows:
            return
        lines = [_line(row) for row in rows]
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        for row, line in zip(rows, lines, strict=True):
            self.rows.append(row)
            self.ends.append(self.ends[-1] + len(line))

    def cut(self, count: int) -> None:
        """Keep the first `count` rows: those behind them belong to a batch that was not finished."""
        os.truncate(self.path, self.ends[count])
        del self.rows[count:], self.ends[count + 1 :]


def open_journal(path: str | os.PathLike[str], *, stage: str, settings: Mapping[str, Any]) -> Journal:
    """Open a journal to append to, made anew where there is none. Half a last line is cut off, which `note` says.

    Raises CorpusError, and leaves the file as it is, when that is another stage's or no stage's, was begun with other
    settings, or has a line that is no row.
    """
    path = Path(path)
    header = {"stage": stage, "settings": json.loads(json.dumps(settings))}
    if not path.parent.is_dir():
        raise CorpusError(f"{path}: the folder {path.parent} does not exist; make it first")
    line = _line(header)
    found, whole, note = _read(path) if path.exists() else ([], 0, "")
    if not found:
        if note and not line.startswith(data := path.read_bytes()):
            raise CorpusError(f"{path}: expected a file of the stage {stage!r}, found {data[:80]!r}; give another file")
        path.write_bytes(line)
        return Journal(path, [], [len(line)], note)
    _check(path, found[0][0], header)
    if note:
        os.truncate(path, whole)
    ends = [end for _, end in found]
    return Journal(path, [row for row, _ in found[1:]], ends, note)


def read_journal(path: str | os.PathLike[str], *, stage: str) -> list[Row]:
    """The rows of a stage's file; half a last line is left out. Raises CorpusError when there is none or it is another's."""
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; expected what the stage {stage!r} wrote")
    found, _, _ = _read(path)
    written = found[0][0].get("stage") if found else None
    if written != stage:
        raise CorpusError(
            f"{path}: expected a file of the stage {stage!r}, found {f'one of {written!r}' if written else 'none'}"
        )
    return [row for row, _ in found[1:]]


def write_journal(
    path: str | os.PathLike[str], rows: Iterable[Row], *, stage: str, settings: Mapping[str, Any]
) -> None:
    """Write a whole journal at once, or not at all."""
    with replacing(Path(path), errors="surrogatepass") as file:
        file.writelines(_text(row) for row in ({"stage": stage, "settings": dict(settings)}, *rows))


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _line(row: Mapping[str, Any]) -> bytes:
    return _text(row).encode("utf-8", "surrogatepass")


def _read(path: Path) -> tuple[list[tuple[Row, int]], int, str]:
    """The rows with the byte after each, the length of the whole lines, and what is wrong with the last one."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    found: list[tuple[Row, int]] = []
    end = 0
    for number, line in enumerate(data[:whole].splitlines(keepends=True), start=1):
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error}), found {line[:40]!r}") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: expected an object, found {line[:40]!r}")
        found.append((row, end))
    half = len(data) - whole
    note = f"{path}: the last line was cut off after {half} bytes; it is taken away and done again" if half else ""
    return found, whole, note


def _check(path: Path, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    if found.get("stage") != header["stage"]:
        raise CorpusError(
            f"{path}: expected a file of the stage {header['stage']!r}, found {str(found)[:80]}; give another file"
        )
    old, new = found.get("settings", {}), header["settings"]
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            raise CorpusError(
                f"{path} was begun with {name} {old.get(name)!r:.100}, now it is {new.get(name)!r:.100}; "
                "go on with the same, or give another file"
            )
