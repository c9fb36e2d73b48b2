"""One door to every corpus: a file, a bundled name, a corpus, or rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from .bundled import polis, polis_new, polis_tasks
from .examples import Corpus, CorpusError, Example
from .formats import looks_like, read_format
from .jsonl import read_jsonl
from .readers.o_lora import is_o_lora, read_o_lora
from .rows import parse_row
from .translations import polis_new_translations

BUNDLED = {
    "polis": polis, "polis-new": polis_new, "polis-tasks": polis_tasks, "polis-new-translations": polis_new_translations,
}  # fmt: skip
PREFIX = "bundled:"

Source = str | os.PathLike[str] | Corpus | Iterable[Example | Mapping[str, Any]]


def load_corpus(
    source: Source,
    *,
    format: str | None = None,
    by: str | None = None,
    split: str | None = None,
    groups: Iterable[str] | str | None = None,
    **options: Any,
) -> Corpus:
    """A corpus from a path to a JSON Lines file, `bundled:NAME`, a corpus, or an iterable of examples or rows.

    `format` names the layout of a path that is not the native one (`formats()` lists them), with that reader's own
    `options`; `read_format` also says what the reader left out. Without it a folder is read in O-LoRA's layout.

    `split` keeps the examples with that value of the tag `split`; `by` regroups by a tag (`task`, `language`, ...);
    then `groups` keeps these groups, in terms of the new ones. Raises CorpusError on an unknown name or a bad row.
    """
    corpus = _read(source) if format is None else _formatted(source, format, options)
    if format is None and options:
        raise CorpusError(f"the option {next(iter(options))!r} belongs to a reader; name its format too (format=...)")
    if split is not None:
        corpus = corpus.only(split=split)
    if by is not None:
        corpus = corpus.by(by)
    return corpus if groups is None else corpus.only(groups)


def _read(source: Source) -> Corpus:
    if isinstance(source, Corpus):
        return source
    if isinstance(source, str) and source.startswith(PREFIX):
        return _bundled(source)
    if isinstance(source, str | os.PathLike):
        return _native(source)
    if isinstance(source, Mapping | Example | bytes) or not isinstance(source, Iterable):
        raise CorpusError(
            f"expected a path, {PREFIX}NAME, a Corpus or a list of examples, "
            f"found {type(source).__name__}: {source!r:.80}"
        )
    return Corpus(tuple(_example(row, number) for number, row in enumerate(source, start=1)), name="rows")


def _native(source: str | os.PathLike[str]) -> Corpus:
    """A file of the native format or a folder in O-LoRA's layout; what is neither is told by what it looks like."""
    if is_o_lora(source):
        return read_o_lora(source)
    try:
        return read_jsonl(source)
    except CorpusError as error:
        hint = looks_like(os.fspath(source))
        raise CorpusError(f"{error}; {hint}" if hint else str(error)) from error


def _formatted(source: Source, format: str, options: Mapping[str, Any]) -> Corpus:
    if not isinstance(source, str | os.PathLike):
        raise CorpusError(f"format={format!r} reads files: expected a path, found {type(source).__name__}")
    return read_format(os.fspath(source), format, **options).corpus


def _bundled(source: str) -> Corpus:
    name = source.removeprefix(PREFIX)
    if name not in BUNDLED:
        raise CorpusError(f"no bundled corpus {name!r}; there are {', '.join(PREFIX + known for known in BUNDLED)}")
    return BUNDLED[name]()


def _example(row: Example | Mapping[str, Any], number: int) -> Example:
    if isinstance(row, Example):
        return row
    return parse_row(row, where=f"row {number}", default_id=f"row-{number}")
