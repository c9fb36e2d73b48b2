"""What the verbs share: how they speak, show progress, and read arguments."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from ..corpora.examples import Corpus
    from ..neurons.scores import Scores
    from ..neurons.subject import Subject

Model = Annotated[str, typer.Argument(help="Hub id, local folder, or bundled:polis.", metavar="MODEL")]
StudyFile = Annotated[Path, typer.Argument(help="Atlas (.h5) of the study.", metavar="STUDY")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that is there.")]
DATA_HELP = (
    "Corpus: a .jsonl file, bundled:polis, bundled:polis-new, bundled:polis-tasks or bundled:polis-new-translations."
)
Data = Annotated[str, typer.Option("--data", help=DATA_HELP)]
Source = Annotated[str, typer.Argument(help=DATA_HELP, metavar="DATA")]
By = Annotated[str | None, typer.Option("--by", help="Group by this tag (language, task, ...) instead of by group.")]
Split = Annotated[
    str, typer.Option("--split", help="Rows to use, by their tag 'split'; auto picks the fitting one; all takes all.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; by default a GPU where there is one.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, ...; by default the checkpoint's.")]
Offload = Annotated[
    str | None,
    typer.Option(
        "--offload", help="For models beyond memory: disk (or a folder), or cpu to keep weights in RAM for a GPU."
    ),
]
Memory = Annotated[
    str | None, typer.Option("--memory", help="With --offload: what of the weights may stay in memory, such as 5GB.")
]


def leads() -> bool:
    """Whether this process is the one that speaks and writes; under torchrun there are several."""
    return os.environ.get("RANK", "0") == "0"


def by_leader(write: Callable[[], object]) -> None:
    """Let one process write while the others wait: what they do next may count on it. Raises in all what it raised."""
    from ..attribution.processes import join_team

    team = join_team()
    try:
        if team.leads:
            write()
    except Exception as error:
        team.failed(error)
        raise
    team.end()


def say(text: str = "") -> None:
    """One line on standard output."""
    if leads():
        typer.echo(text)


def fail(text: str) -> NoReturn:
    """One line on standard error, then exit status 1."""
    typer.echo(f"error: {' '.join(text.split())}", err=True)
    raise SystemExit(1)


def stopped(text: str) -> NoReturn:
    """One line on standard error after Ctrl-C, then exit status 130, as shells expect."""
    typer.echo(f"stopped: {' '.join(text.split())}", err=True)
    raise SystemExit(130)


def check_out(out: Path, *, force: bool, source: str | Path | None = None) -> None:
    """Stop unless a file can be written there: in a folder that is there, over nothing but by force, and never its source."""
    if not out.absolute().parent.is_dir():
        fail(f"cannot write {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        fail(f"cannot write {out}: it is a folder; give the name of a file in it")
    if not out.exists():
        return
    if source is not None and Path(source).exists() and out.samefile(source):
        fail(f"cannot write {out}: it is the file that is read; give another name")
    if not force:
        fail(f"{out}: the file exists already; give another name, or --force to replace it")


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
    with Progress(*columns, console=Console(stderr=True), disable=not leads()) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def open_model(
    name: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    offload: str | None = None,
    memory: str | None = None,
) -> Subject:
    """Load the subject that a command names, without the library's own progress bars."""
    import torch
    from transformers.utils import logging

    from ..neurons.subject import load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = getattr(torch, dtype, None) if dtype else None
    if dtype and not isinstance(kind, torch.dtype):
        fail(f"unknown dtype {dtype!r}; expected float32, bfloat16, float16 or float64")
    return load_model(name, dtype=kind, device=device, offload=offload, memory=memory)


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


def several(values: list[str] | None, default: str) -> list[str]:
    """Names from an option that may be repeated and may hold commas."""
    return [name for value in values or [default] for name in names(value)]


def key_pairs(given: list[str] | None, option: str, form: str) -> dict[str, str]:
    """{key: value} from repeated key=value."""
    found = {}
    for pair in given or []:
        key, sign, value = pair.partition("=")
        if not (sign and key.strip() and value.strip()):
            fail(f"cannot read {pair!r}; expected {option} {form}")
        found[key.strip()] = value.strip()
    return found


def several_groups(found: Sequence[str], source: object, what: str) -> None:
    """Stop where there is one group alone, and nothing to hold it against."""
    if len(found) < 2:
        fail(
            f"{source} has one group alone, {', '.join(found)}; two or more are {what} with one another (of one: "
            "neuropolis report, neuron, redundancy)"
        )


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def key_values(pairs: list[str] | None) -> dict[str, Any]:
    """Options of a preset or a method from `key=value`: JSON, a share (1%), a corpus (a .jsonl file, bundled:...), or text."""
    found = {}
    for pair in pairs or []:
        key, sign, text = pair.partition("=")
        if not sign or not key.isidentifier():
            fail(f"cannot read {pair!r} as an option; expected key=value, such as top=0.05")
        if text.endswith(".jsonl") or text.startswith("bundled:"):
            found[key] = open_corpus(text)
        elif text.endswith("%"):
            found[key] = share(text)
        else:
            try:
                found[key] = json.loads(text)
            except ValueError:
                found[key] = {"True": True, "False": False, "None": None, "none": None}.get(text, text)
    return found


class Listing(TyperCommand):
    """A command whose help names what the registries hold; they are read when the help is asked for, not before."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        names = registered()
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text:
                parameter.help = text.format(**names)  # pyright: ignore[reportAttributeAccessIssue]
        super().format_help(ctx, formatter)


def registered() -> dict[str, str]:
    """The names in each registry, as text."""
    from typing import get_args

    from ..attribution.engine import NotFiniteRule
    from ..attribution.located import PRESETS, preset_options
    from ..attribution.methods import METHODS, TOKEN_REDUCTIONS
    from ..attribution.objectives import OBJECTIVES
    from ..attribution.presets import preset  # noqa: F401  (registers the presets and the methods)
    from ..attribution.selection import CONTRASTS
    from ..neurons.sites import SITES

    lists = {
        "methods": METHODS, "presets": PRESETS, "sites": SITES, "objectives": OBJECTIVES, "reductions": TOKEN_REDUCTIONS,
        "contrasts": (*CONTRASTS, "none"), "rules": get_args(NotFiniteRule),
        "preset_options": [f"{name} ({', '.join(preset_options(name))})" for name in PRESETS],
    }  # fmt: skip
    return {key: ", ".join(names) for key, names in lists.items()}


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


def completeness(scores: Scores) -> str:
    """How far scores of a path are from what they should sum to; nothing where a method has no such sum."""
    if "completeness_gap" not in scores.origin:
        return ""
    gap, change = scores.origin["completeness_gap"], scores.origin["completeness_change"]
    return f"completeness gap {gap:.3g} of a change of {change:.3g} (means over examples)"


def percent(value: float) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return "-" if value != value else f"{100 * value:.1f}"


def p_value(value: float) -> str:
    """A p-value with three decimals or as a bound."""
    return "-" if value != value else "<0.001" if value < 0.001 else f"{value:.3f}"
