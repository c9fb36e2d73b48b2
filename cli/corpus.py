"""`neuropolis corpus FORMAT PATH --out x.jsonl`: a benchmark's own files as a corpus; one command for each format."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from .console import Force, by_leader, check_out, say, table, wrote

if TYPE_CHECKING:
    from ..corpora.formats import Format, Reading

Files = Annotated[Path, typer.Argument(metavar="PATH", help="File or folder as its authors publish it.")]
Out = Annotated[Path, typer.Option("--out", help="JSON Lines file to write (.jsonl).")]


def add(app: typer.Typer) -> None:
    """The verbs on corpora, then a sub-command per format, its options those of the reader."""
    from ..corpora.formats import formats
    from . import corpus_check, corpus_score

    corpus = typer.Typer(no_args_is_help=True, add_completion=False)
    for verbs in (corpus_check, corpus_score):
        verbs.add(corpus)
    for format in formats().values():
        corpus.command(name=format.name, help=f"{format.title[:1].upper()}{format.title[1:]}.")(_verb(format))
    app.add_typer(corpus, name="corpus", help="Turn a benchmark's own files into a corpus; check, split, score, pick.")


def _verb(format: Format) -> Callable[..., None]:
    """The command of a format; typer reads its options from the signature made here."""

    def read(path: Path, out: Path, force: bool, **options: Any) -> None:
        from ..corpora.formats import read_format
        from ..corpora.jsonl import write_jsonl

        check_out(out, force=force, source=path)
        reading = read_format(path, format.name, **options)
        by_leader(lambda: write_jsonl(reading.corpus, out))
        show(reading)
        wrote(out, then=f"neuropolis corpus check {out}")

    kind, word = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = [
        inspect.Parameter(option.name, kind, default=option.default, annotation=_option(option))
        for option in format.options.values()
    ]
    own = [
        inspect.Parameter("path", word, annotation=Files),
        inspect.Parameter("out", word, annotation=Out),
        inspect.Parameter("force", word, default=False, annotation=Force),
    ]
    setattr(read, "__signature__", inspect.Signature([*own, *given]))  # noqa: B010 - typer reads it
    read.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *given)}
    return read


def _option(parameter: inspect.Parameter) -> Any:
    """The reader's `Annotated[type, "help"]` as typer's."""
    name = "--" + parameter.name.replace("_", "-")
    annotated = get_origin(parameter.annotation) is Annotated
    type, help = get_args(parameter.annotation)[:2] if annotated else (parameter.annotation, None)
    if type is bool:
        name += "/--no-" + name.removeprefix("--")
    return Annotated[type, typer.Option(name, help=help)]


def show(reading: Reading) -> None:
    """Counts by group, and what was left out and why."""
    corpus = reading.corpus
    say(f"{corpus.name}: {reading.rows} rows read, {len(corpus)} examples in {len(corpus.groups)} groups")
    table(["group", "examples"], [[group, count] for group, count in corpus.counts.items()])
    for why, count in reading.reasons.items():
        first = next(row.where for row in reading.dropped if row.why == why)
        say(f"left out {count} rows: {why} (first: {first})")
    for note in reading.notes:
        say(f"note: {note}")
