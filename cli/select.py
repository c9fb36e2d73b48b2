"""`neuropolis select`: from scores to sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Listing, StudyFile, fail, layer_range, registered, say, share, table, wrote

if TYPE_CHECKING:
    from ..analysis.study import Study
    from ..neurons.scores import Scores


def add(app: typer.Typer) -> None:
    app.command(name="select", cls=Listing, help="Choose each group's neurons from the scores of a study.")(select)


def select(
    study: StudyFile,
    top: Annotated[str, typer.Option(help="Share (1%; 100% is all) or number (100) of neurons per group.")] = "1%",
    method: Annotated[
        str | None,
        typer.Option(help="Scores to choose from, where the study has several: their name, or a method ({methods})."),
    ] = None,
    contrast: Annotated[str, typer.Option(help="{contrasts}.")] = "others",
    by: Annotated[str, typer.Option(help="Rank by values (absolute) or signed.")] = "values",
    scope: Annotated[
        str, typer.Option(help="The share is taken of all layers together (global) or of each (layer).")
    ] = "global",
    layers: Annotated[str | None, typer.Option(help="From these layers only: 2-3 or 0,5,7.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this atlas instead of back to the study.")] = None,
) -> None:
    from ..analysis.study import load, save
    from ..attribution.selection import CONTRASTS
    from ..attribution.selection import select as choose

    if contrast not in (*CONTRASTS, "none"):
        fail(f"unknown contrast {contrast!r}; contrasts are {registered()['contrasts']}")
    opened = load(study)
    scores = _scores(opened, method)
    sets = choose(
        scores,
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
        save(target, scores, sets, subject=opened.subject)
    depth = next(iter(sets.values())).num_layers
    say(f"{scores.site} neurons by layer ({scores.method}, {contrast} contrast, top {top})")
    table(["group", "all", *map(str, range(depth))], [[g, len(s), *s.per_layer.tolist()] for g, s in sets.items()])
    name = opened.subject.get("name", "MODEL")
    if opened.has("effects") and target == study:
        say(
            "note: the effects in this study were measured on the sets that stood here before; run ablate and compare again"
        )
    wrote(target, then=f"neuropolis ablate {name} --data DATA --study {target} --controls 20")


def _scores(opened: Study, method: str | None) -> Scores:
    """The scores of this name, else those of this method where they are the only ones."""
    names = opened.names("scores")
    if method is None or method in names or not names:
        if method is None and len(names) > 1 and "scores" not in names:
            fail(f"{opened.path} has several scores; choose with --method: {', '.join(names)}")
        return opened.get("scores", method)
    of_method = [name for name in names if opened.get("scores", name).method == method]
    if len(of_method) != 1:
        there = f"several scores of method {method!r}" if of_method else f"no scores {method!r}"
        fail(f"{opened.path} has {there}; choose with --method: {', '.join(of_method or names)}")
    return opened.get("scores", of_method[0])
