"""Formats: which benchmark files can be read, by name, what each reader kept and dropped, and what a file looks like."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from . import readers
from .examples import Corpus, CorpusError
from .files import unended_files

Read = Callable[..., "Reading"]


class NoRowLeft(CorpusError):
    """Files that hold no row, or none that a reader keeps."""


@dataclass(frozen=True)
class Dropped:
    """A row that a reader left out: where it stands, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Reading:
    """What a reader made of some files: a corpus, the count of rows that it found, and the rows that it left out.

    `notes` are sentences on what else was changed, such as labels that were written alike.
    """

    corpus: Corpus
    rows: int
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were left out for each reason, most first."""
        return dict(Counter(row.why for row in self.dropped).most_common())


@dataclass(frozen=True)
class Format:
    """A layout of files that can be read: its name, what it is, where its authors publish it, under which licence."""

    name: str
    title: str
    source: str
    licence: str
    read: Read
    looks: Callable[[Path], bool]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The keyword options of the reader, by name."""
        parameters = inspect.signature(self.read, eval_str=True).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


_FORMATS: dict[str, Format] = {}


def register_format(
    name: str, *, title: str, source: str, licence: str, looks: Callable[[Path], bool] = lambda path: False
) -> Callable[[Read], Read]:
    """Register a function `(path, *, options...) -> Reading` as the reader of a format.

    `looks` says of a path that exists whether it has this layout; it must be quick and must not raise. The options are
    keyword-only and annotated `Annotated[type, "what it does"]` with type str, int, float, bool or one of these or None;
    the command line shows them under these names.
    """

    def register(read: Read) -> Read:
        if name in _FORMATS:
            raise ValueError(f"the format {name!r} is registered already, by {_FORMATS[name].read.__module__}")
        _FORMATS[name] = Format(name, title, source, licence, read, looks)
        return read

    return register


def formats() -> dict[str, Format]:
    """Every format that can be read, by name, in alphabetical order."""
    _load_readers()
    return dict(sorted(_FORMATS.items()))


def read_format(path: str | Path, format: str, **options: Any) -> Reading:
    """The files at a path as a corpus, with what was left out.

    Raises CorpusError for an unknown format or option, and for files that are not of this format (the text says which
    format they look like).
    """
    known = formats()
    if format not in known:
        raise CorpusError(f"no format {format!r}; there are {', '.join(known)}")
    chosen = known[format]
    for option in options:
        if option not in chosen.options:
            raise CorpusError(
                f"format {format!r} has no option {option!r}; it has {', '.join(chosen.options) or 'none'}"
            )
    try:
        with unended_files() as unended:
            reading = chosen.read(Path(path), **options)
    except CorpusError as error:
        hint = looks_like(path, but=format)
        told = f"{path}: {error}" if isinstance(error, NoRowLeft) else str(error)
        raise CorpusError(f"{told}; {hint}" if hint else told) from error
    notes = (f"{file}: the last line has no line end, so the file may have been cut off" for file in unended)
    return replace(reading, notes=(*reading.notes, *notes))


def guess_formats(path: str | Path) -> tuple[str, ...]:
    """The names of the formats that the files at a path look like."""
    path = Path(path)
    return tuple(name for name, format in formats().items() if path.exists() and format.looks(path))


def looks_like(path: str | Path, *, but: str | None = None) -> str:
    """A hint such as "it looks like the format 'kobbq': ..."; empty when it looks like none, or like `but`."""
    guesses = guess_formats(path)
    if not guesses or but in guesses:
        return ""
    return (
        f"it looks like the format {' or '.join(map(repr, guesses))}: "
        f'give format="{guesses[0]}", or convert it with: neuropolis corpus {guesses[0]} {path} --out corpus.jsonl'
    )


def gather(
    examples: Iterable[Any],
    *,
    name: str,
    dropped: Iterable[Dropped] = (),
    notes: Iterable[str] = (),
    rows: int | None = None,
) -> Reading:
    """A reading of these examples; raises NoRowLeft with the reasons when every row was left out.

    `rows` is how many rows were read, where an example is not one row; by default the kept and the dropped.
    """
    kept, out = tuple(examples), tuple(dropped)
    if not kept:
        reasons = ", ".join(f"{count} times {why}" for why, count in Counter(row.why for row in out).most_common(3))
        raise NoRowLeft(f"{name}: no row is left to read{f' ({reasons})' if reasons else ''}")
    return Reading(Corpus(kept, name=name), len(kept) + len(out) if rows is None else rows, out, tuple(notes))


def check_option(value: str, *, option: str, known: Iterable[str]) -> None:
    """Raise CorpusError when a reader's option has a value that is not one of the known ones."""
    known = tuple(known)
    if value not in known:
        raise CorpusError(f"the option {option} is {value!r}; expected one of {', '.join(known)}")


@cache
def _load_readers() -> None:
    """Import every module of `readers/`, each of which registers its formats."""
    for module in iter_modules(readers.__path__):
        import_module(f"{readers.__name__}.{module.name}")
