"""`neuropolis select`: from scores to sets."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Listing, StudyFile, fail, layer_range, registered, say, share, table, wrote

if TYPE_CHECKING:
    from ..analysis.study import Study
    from ..neurons.scores import Scores
    from ..neurons.sets import NeuronSet


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
    by: Annotated[str, typer.Option(help="Rank by values (absolute), signed or positive (the positive parts).")] = "values",
    scope: Annotated[
        str, typer.Option(help="The share is taken of all layers together (global) or of each (layer).")
    ] = "global",
    alpha: Annotated[
        float | None,
        typer.Option(help="Instead of the top: neurons that stand out at this level when group labels are shuffled."),
    ] = None,
    correction: Annotated[
        str, typer.Option(help="With --alpha: family, discoveries or none (each neuron alone).")
    ] = "family",
    stable: Annotated[
        float | None,
        typer.Option(help="Instead of the top itself: what is in it in this share of random halves of the items."),
    ] = None,
    seed: Annotated[int, typer.Option(help="With --alpha or --stable: seed of the shuffles or halves.")] = 0,
    layers: Annotated[str | None, typer.Option(help="From these layers only: 2-3 or 0,5,7.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this atlas instead of back to the study.")] = None,
) -> None:
    from ..analysis.study import load, save
    from ..attribution.permutation import permutation
    from ..attribution.selection import CONTRASTS
    from ..attribution.selection import select as choose
    from ..attribution.stability import stable as frequencies

    if contrast not in (*CONTRASTS, "none"):
        fail(f"unknown contrast {contrast!r}; contrasts are {registered()['contrasts']}")
    opened = load(study)
    scores = _scores(opened, method)
    chosen = {"contrast": None if contrast == "none" else contrast, "by": by}
    if (alpha is not None or stable is not None) and (layers is not None or scope != "global"):
        fail("--layers and --scope go with the top alone; leave them out with --alpha and --stable")
    if alpha is not None and stable is not None:
        fail("--alpha and --stable are two ways to choose; give one")
    if alpha is not None:
        sets = permutation(scores, by=by, seed=seed, draws=max(200, ceil(2 / alpha))).sets(alpha, correction=correction)  # pyright: ignore[reportArgumentType]
        how = f"level {alpha:g} by permutation, correction {correction}"
    elif stable is not None:
        found = frequencies(scores, top=share(top), seed=seed, **chosen)
        sets = found.sets(stable)
        how = f"in the top {top} of {stable:.0%} of {found.resamples} halves, {contrast} contrast"
    else:
        sets = choose(scores, top=share(top), scope=scope, layers=layer_range(layers), **chosen)
        how = f"{contrast} contrast, top {top}"
    target = out or study
    if target == study:
        sets = _apart(opened, scores, sets)
        save(target, sets)
    else:
        save(target, scores, sets, subject=opened.subject)
    depth = next(iter(sets.values())).num_layers
    say(f"{scores.site} neurons by layer ({scores.method}, {how})")
    table(["group", "all", *map(str, range(depth))], [[g, len(s), *s.per_layer.tolist()] for g, s in sets.items()])
    name = opened.subject.get("name", "MODEL")
    if opened.has("effects") and target == study and any(name in opened.names("set") for name in sets):
        say(
            "note: the effects in this study were measured on the sets that stood here before; run ablate and compare again"
        )
    wrote(target, then=f"neuropolis ablate {name} --data DATA --study {target} --controls 20")


def _apart(opened: Study, scores: Scores, sets: Mapping[str, NeuronSet]) -> dict[str, NeuronSet]:
    """The sets under names that do not take the place of sets which other scores gave: then GROUP/METHOD."""
    there = [opened.get("set", name) for name in opened.names("set") if name in sets]
    here = (scores.site, scores.method)
    if all((one.site, one.origin.get("method", scores.method)) == here for one in there):
        return dict(sets)
    label = scores.method if all(one.site == scores.site for one in there) else f"{scores.method}.{scores.site}"
    say(f"note: {opened.path} keeps the sets that other scores gave; these are named GROUP/{label}")
    return {f"{group}/{label}": one for group, one in sets.items()}


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
