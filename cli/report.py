"""`neuropolis report`: one self-contained page from an atlas alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import StudyFile, wrote


def add(app: typer.Typer) -> None:
    app.command(name="report", help="Write one self-contained HTML page from a study; no model needed.")(report)


def report(
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("report.html"),
) -> None:
    from ..figures.report import report as write

    wrote(write(study, out))
