"""The command line: one file per verb, one place where errors become one clear line."""

from __future__ import annotations

import os
import sys

import typer

from . import ablate, compare, demo, fidelity, info, locate, report, select, tune
from .console import fail

app = typer.Typer(
    name="neuropolis",
    help="Find the neurons that a culture, a task or a language depends on; switch them off; train only them; compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (demo, locate, fidelity, select, ablate, tune, compare, report, info):
    verb.add(app)


def main() -> None:
    """Run the command line. A caller's mistake is one line on standard error and exit status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except KeyboardInterrupt:
        fail("interrupted; files are as they were before this command, or whole")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("NEUROPOLIS_DEBUG"):
            raise
        fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
