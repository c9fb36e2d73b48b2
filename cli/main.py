"""The command line: one file per verb, one place where errors become one clear line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from . import (
    ablate,
    calibrate,
    compare,
    continual,
    corpus,
    culture_spa,
    curves,
    demo,
    evaluate,
    fidelity,
    info,
    locate,
    neuron,
    overlap,
    redundancy,
    report,
    represent,
    select,
    similarity,
    stability,
    sweeps,
    tune,
)
from .console import fail, stopped

app = typer.Typer(
    name="neuropolis",
    help="Find the neurons that a culture, a task or a language depends on; switch them off; train only them; compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (
    demo, locate, fidelity, calibrate, stability, select, ablate, curves, evaluate, tune, continual, sweeps, compare, overlap,
    similarity, represent, redundancy, neuron, report, info, corpus, culture_spa,
):  # fmt: skip
    verb.add(app)


def _interruptible(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that says that it was stopped. Typer would turn Ctrl-C into an exit without a word."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return verb(*args, **kwargs)
        except KeyboardInterrupt:
            stopped("files are as they were before this command, or whole; give it again to start over")

    return run


def _commands(group: Any) -> list[Any]:
    """The commands of a group of verbs."""
    return group.typer_instance.registered_commands


for command in [*app.registered_commands, *(one for group in app.registered_groups for one in _commands(group))]:
    assert command.callback is not None
    command.callback = _interruptible(command.callback)


def main() -> None:
    """Run the command line. A caller's mistake is one line on standard error and exit status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except KeyboardInterrupt:
        stopped("nothing was done yet")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("NEUROPOLIS_DEBUG"):
            raise
        fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
