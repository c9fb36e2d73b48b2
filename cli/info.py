"""`neuropolis info`: what a study holds, or what a model offers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import completeness, open_model, say, table


def add(app: typer.Typer) -> None:
    app.command(name="info", help="What a study (.h5) holds, or which sites a model has.")(info)


def info(what: Annotated[str, typer.Argument(help="An atlas (.h5), or a model.", metavar="STUDY|MODEL")]) -> None:
    if what.endswith(".h5") or Path(what).is_file():
        _study(what)
    else:
        _model(what)


def _study(path: str) -> None:
    from ..analysis.study import load

    study = load(path)
    for key, value in {**study.subject, **study.versions}.items():
        say(f"{key}: {value}")
    table(["kind", "name"], study.keys)
    for name in study.names("scores"):
        if gap := completeness(study.get("scores", name)):
            say(f"{name}: {gap}")


def _model(name: str) -> None:
    from ..neurons.errors import SiteError
    from ..neurons.sites import SITES

    subject = open_model(name)
    say(f"{subject.name}: {type(subject.model).__name__}, {subject.num_parameters:,} parameters, {subject.dtype}")
    say(f"fingerprint: {subject.fingerprint}")
    rows = []
    for site, meaning in SITES.items():
        try:
            place = subject.site(site)
            rows.append([site, place.num_layers, place.width, place.taps[0].path, meaning])
        except SiteError:
            rows.append([site, "-", "-", "not in this model", meaning])
    table(["site", "layers", "neurons per layer", "first tap", "what it is"], rows)
