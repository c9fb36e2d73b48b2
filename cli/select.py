"""`neuropolis select`: from scores to sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import StudyFile, layer_range, say, share, table, wrote


def add(app: typer.Typer) -> None:
    app.command(name="select", help="Choose each group's neurons from the scores of a study.")(select)


def select(
    study: StudyFile,
    top: Annotated[str, typer.Option(help="Share (1%) or number (100) of neurons per group.")] = "1%",
    contrast: Annotated[str, typer.Option(help="others, z, controls or none.")] = "others",
    by: Annotated[str, typer.Option(help="Rank by values (absolute) or signed.")] = "values",
    scope: Annotated[
        str, typer.Option(help="The share is taken of all layers together (global) or of each (layer).")
    ] = "global",
    layers: Annotated[str | None, typer.Option(help="From these layers only: 2-3 or 0,5,7.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this atlas instead of back to the study.")] = None,
) -> None:
    from ..analysis.study import load, save
    from ..attribution.selection import select as choose

    opened = load(study)
    sets = choose(
        opened.scores,
        top=share(top),
        contrast=None if contrast == "none" else contrast,
        by=by,
        scope=scope,
        layers=layer_range(layers),
    )
    target = out or study
    if target == study:
        save(target, sets)
    else:
        save(target, opened.scores, sets, subject=opened.subject)
    depth = next(iter(sets.values())).num_layers
    say(f"neurons by layer ({contrast} contrast, top {top})")
    table(["group", "all", *map(str, range(depth))], [[g, len(s), *s.per_layer.tolist()] for g, s in sets.items()])
    name = opened.subject.get("name", "MODEL")
    if opened.has("effects") and target == study:
        say(
            "note: the effects in this study were measured on the sets that stood here before; run ablate and compare again"
        )
    wrote(target, then=f"neuropolis ablate {name} --data DATA --study {target} --controls 20")
