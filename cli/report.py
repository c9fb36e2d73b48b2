"""`neuropolis report`: one self-contained page from an atlas alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import StudyFile, say, wrote


def add(app: typer.Typer) -> None:
    app.command(name="report", help="Write one self-contained HTML page from a study; no model needed.")(report)


def report(
    study: StudyFile,
    out: Annotated[Path | None, typer.Option("--out", help="Page to write; report.html by default.")] = None,
    only: Annotated[
        str, typer.Option(help="Only these parts, with commas: set, effects, overlap, similarity, scores, ...")
    ] = "",
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder for the figures as SVG and PNG files, instead of a page.")
    ] = None,
) -> None:
    from ..figures.report import report as write
    from ..figures.report import save_figures

    parts = [name.strip() for name in only.split(",") if name.strip()]
    if figures is not None:
        written = save_figures(study, figures, only=parts)
        say("\n".join(f"wrote {path}" for path in written))
    if figures is None or out is not None:
        wrote(write(study, out or Path("report.html"), only=parts))
