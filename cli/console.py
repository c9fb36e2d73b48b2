"""What the verbs share: how they speak, show progress, and read arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from ..corpora.examples import Corpus
    from ..neurons.subject import Subject

Model = Annotated[str, typer.Argument(help="Hub id, local folder, or bundled:polis.", metavar="MODEL")]
StudyFile = Annotated[Path, typer.Argument(help="Atlas (.h5) of the study.", metavar="STUDY")]
DATA_HELP = "Corpus: a .jsonl file, bundled:polis, bundled:polis-new or bundled:polis-tasks."
Data = Annotated[str, typer.Option("--data", help=DATA_HELP)]
By = Annotated[str | None, typer.Option("--by", help="Group by this tag (language, task, ...) instead of by group.")]
Split = Annotated[
    str, typer.Option("--split", help="Rows to use, by their tag 'split'; auto picks the fitting one; all takes all.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; by default a GPU where there is one.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, ...; by default the checkpoint's.")]


def say(text: str = "") -> None:
    """One line on standard output."""
    typer.echo(text)


def fail(text: str) -> NoReturn:
    """One line on standard error, then exit status 1."""
    typer.echo(f"error: {' '.join(text.split())}", err=True)
    raise SystemExit(1)


def stopped(text: str) -> NoReturn:
    """One line on standard error after Ctrl-C, then exit status 130, as shells expect."""
    typer.echo(f"stopped: {' '.join(text.split())}", err=True)
    raise SystemExit(130)


def wrote(path: Path | str, *, then: str = "") -> None:
    """Say what was written and what to try next."""
    say(f"wrote {path}")
    if then:
        say(f"next: {then}")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
    """A plain table, numbers to the right, that survives being copied into a mail."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(header):
        grid.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, soft_wrap=width is not None, markup=False).print(grid)


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields the callable (done, total) that moves it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def open_model(name: str, *, dtype: str | None = None, device: str | None = None) -> Subject:
    """Load the subject that a command names, without the library's own progress bars."""
    import torch
    from transformers.utils import logging

    from ..neurons.subject import load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = getattr(torch, dtype, None) if dtype else None
    if dtype and not isinstance(kind, torch.dtype):
        fail(f"unknown dtype {dtype!r}; expected float32, bfloat16, float16 or float64")
    return load_model(name, dtype=kind, device=device)


def open_corpus(source: str, *, by: str | None = None) -> Corpus:
    """Load the corpus that a command names."""
    from ..corpora.loading import load_corpus

    return load_corpus(source, by=by)


def layer_range(text: str | None) -> list[int] | None:
    """Layers from `2-3` or `0,5,7`; None for none given."""
    if text is None:
        return None
    try:
        ends = [part.split("-") for part in text.split(",")]
        spans = [range(int(part[0]), int(part[-1]) + 1) for part in ends]
        if not all(spans):
            raise ValueError
        return [layer for span in spans for layer in span]
    except ValueError:
        fail(f"cannot read {text!r} as layers; expected a range such as 2-3 or a list such as 0,5,7")


def chosen_split(text: str) -> str | None:
    """The library's split argument from the command line's."""
    return None if text == "all" else text


def share(text: str) -> float | int:
    """A share (1%, 0.01) or a number of neurons (100)."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        fail(
            f"cannot read {text!r} as an amount; expected a share such as 1% or 0.01, or a number of neurons such as 100"
        )


def percent(value: float) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return "-" if value != value else f"{100 * value:.1f}"


def p_value(value: float) -> str:
    """A p-value with three decimals or as a bound."""
    return "-" if value != value else "<0.001" if value < 0.001 else f"{value:.3f}"
