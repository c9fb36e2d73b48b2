"""One door to every corpus: a file, a bundled name, a corpus, or rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from .bundled import polis, polis_new, polis_tasks
from .examples import Corpus, CorpusError, Example
from .jsonl import read_jsonl
from .o_lora import is_o_lora, read_o_lora
from .rows import parse_row
from .translations import polis_new_translations

BUNDLED = {
    "polis": polis, "polis-new": polis_new, "polis-tasks": polis_tasks, "polis-new-translations": polis_new_translations,
}  # fmt: skip
PREFIX = "bundled:"

Source = str | os.PathLike[str] | Corpus | Iterable[Example | Mapping[str, Any]]


def load_corpus(
    source: Source, *, by: str | None = None, split: str | None = None, groups: Iterable[str] | str | None = None
) -> Corpus:
    """A corpus from a path to a JSON Lines file, `bundled:NAME`, a corpus, or an iterable of examples or rows.

    A folder is read as a benchmark in O-LoRA's layout (see `o_lora`).

    `split` keeps the examples with that value of the tag `split`; `by` regroups by a tag (`task`, `language`, ...);
    then `groups` keeps these groups, in terms of the new ones. Raises CorpusError on an unknown name or a bad row.
    """
    corpus = _read(source)
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
        return read_o_lora(source) if is_o_lora(source) else read_jsonl(source)
    if isinstance(source, Mapping | Example | bytes) or not isinstance(source, Iterable):
        raise CorpusError(
            f"expected a path, {PREFIX}NAME, a Corpus or a list of examples, "
            f"found {type(source).__name__}: {source!r:.80}"
        )
    return Corpus(tuple(_example(row, number) for number, row in enumerate(source, start=1)), name="rows")


def _bundled(source: str) -> Corpus:
    name = source.removeprefix(PREFIX)
    if name not in BUNDLED:
        raise CorpusError(f"no bundled corpus {name!r}; there are {', '.join(PREFIX + known for known in BUNDLED)}")
    return BUNDLED[name]()


def _example(row: Example | Mapping[str, Any], number: int) -> Example:
    if isinstance(row, Example):
        return row
    return parse_row(row, where=f"row {number}", default_id=f"row-{number}")
