"""Lines of a file that are no rows: all of them, where reading stops at the first."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .examples import CorpusError
from .jsonl import parse_line
from .rows import parse_row


@dataclass(frozen=True)
class BadLines:
    """The lines of a JSON Lines file that cannot be read, with what is wrong, and how many can."""

    path: str
    good: int
    bad: tuple[tuple[int, str], ...]

    @property
    def summary(self) -> str:
        """One sentence: how many of how many, and whether encodings are mixed or the file was cut off."""
        told = f"{self.path}: {len(self.bad)} of {self.good + len(self.bad)} lines cannot be read"
        kinds = Counter(_kind(text) for _, text in self.bad)
        told += f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
        if kinds["not UTF-8"] and self.good:
            told += "; the other lines are UTF-8, so two encodings are mixed: convert the parts before joining them"
        return told


def bad_lines(path: str | os.PathLike[str]) -> BadLines:
    """Read a JSON Lines file to its end, past every bad line. Raises CorpusError when there is no file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); expected a JSON Lines file (.jsonl)") from None
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    seen: dict[str, int] = {}
    bad = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_line(line, where=f"line {number}", cut_off=number == len(lines))
            example = parse_row(row, where=f"line {number}", default_id=f"line-{number}")
            first = seen.setdefault(example.id, number)
            if first != number:
                raise CorpusError(
                    f"line {number}: id {example.id!r} stands on line {first} already; ids must be unique"
                )
        except CorpusError as error:
            bad.append((number, str(error)))
    return BadLines(str(path), sum(1 for line in lines if line.strip()) - len(bad), tuple(bad))


def _kind(text: str) -> str:
    if "in the middle of this line" in text:
        return "cut off at the end"
    kinds = {"not UTF-8": "not UTF-8", "not JSON": "not JSON", "ids must be unique": "with an id that was there before"}
    return next((kind for sign, kind in kinds.items() if sign in text), "no example")
