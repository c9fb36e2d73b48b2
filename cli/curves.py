"""`neuropolis sweep` and `neuropolis dose`: one layer's share of a set at a time, and larger and larger sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    By,
    Data,
    Device,
    Dtype,
    Model,
    Split,
    chosen_split,
    fail,
    open_corpus,
    open_model,
    p_value,
    progress,
    say,
    share,
    table,
    wrote,
)
from .effects import (
    Factor,
    Groups,
    KindName,
    MatchBy,
    Metric,
    OnWhat,
    ReferenceData,
    ReferenceGroup,
    Twins,
    chosen_sets,
    number,
    power,
    references,
    scores_to_match,
    sites_of,
    unit,
)

if TYPE_CHECKING:
    from ..analysis.curves import Curve

StudyFile = Annotated[Path, typer.Option("--study", help="Atlas that holds sets and scores; the curve is added to it.")]
Controls = Annotated[int, typer.Option("--controls", help="Matched random sets for every set and step.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the controls.")]


def add(app: typer.Typer) -> None:
    app.command(name="sweep", help="Switch off one layer's share of each set at a time.")(sweep)
    app.command(name="dose", help="Switch off larger and larger shares of each group's neurons.")(dose)


def sweep(
    model: Model, data: Data, study: StudyFile, controls: Controls = 5, kind: KindName = "zero",
    metric: Metric = "accuracy", on: OnWhat = "both", match: MatchBy = "layer", twins: Twins = False,
    factor: Factor = 2.0, reference: ReferenceData = None, reference_group: ReferenceGroup = None, group: Groups = None,
    by: By = None, split: Split = "auto", seed: Seed = 0, device: Device = None, dtype: Dtype = None,
) -> None:  # fmt: skip
    from ..analysis.along import layer_sweep
    from ..analysis.study import load, save

    corpus, opened = open_corpus(data, by=by), load(study)
    sets = chosen_sets(opened, group)
    subject = open_model(model, dtype=dtype, device=device)
    opened.check(subject)
    sites = sites_of(sets)
    known = references(subject, corpus, kind, source=reference, group=reference_group, sites=sites)
    with progress("layer by layer") as bar:
        curve = layer_sweep(
            subject, corpus, sets, kind=kind, metric=metric, on=on, controls=controls, match=match, twins=twins,  # pyright: ignore[reportArgumentType]
            scores=scores_to_match(opened, match, sites), seed=seed, reference=known, factor=factor,
            split=chosen_split(split), progress=bar,
        )  # fmt: skip
    save(study, curve, subject=subject)
    show(curve)
    wrote(study, then=f"neuropolis report {study}")


def dose(
    model: Model, data: Data, study: StudyFile,
    shares: Annotated[str, typer.Option(help="Shares of the site's neurons, ascending, with commas.")]
    = "0.1%,0.3%,1%,3%,10%",
    contrast: Annotated[str, typer.Option(help="How the neurons are ranked, as in select.")] = "others",
    method: Annotated[str | None, typer.Option(help="Which of the study's scores, where it has several.")] = None,
    controls: Controls = 5, kind: KindName = "zero", metric: Metric = "accuracy", on: OnWhat = "both",
    match: MatchBy = "layer", twins: Twins = False, factor: Factor = 2.0, reference: ReferenceData = None,
    reference_group: ReferenceGroup = None, group: Groups = None, by: By = None, split: Split = "auto", seed: Seed = 0,
    device: Device = None, dtype: Dtype = None,
) -> None:  # fmt: skip
    from ..analysis.along import dose_response
    from ..analysis.study import load, save

    doses: list[Any] = [share(part.strip()) for part in shares.split(",")]
    if not all(isinstance(one, float) for one in doses):
        fail(f"--shares {shares!r} holds a number of neurons; expected shares such as 0.1%,1%,10%")
    corpus, opened = open_corpus(data, by=by), load(study)
    scores = opened.get("scores", method)
    subject = open_model(model, dtype=dtype, device=device)
    opened.check(subject)
    known = references(subject, corpus, kind, source=reference, group=reference_group, sites=[scores.site])
    with progress("dose by dose") as bar:
        curve = dose_response(
            subject, corpus, scores, doses=doses, groups=group, contrast=None if contrast == "none" else contrast,
            kind=kind, metric=metric, on=on, controls=controls, match=match, twins=twins, seed=seed, reference=known,  # pyright: ignore[reportArgumentType]
            factor=factor, split=chosen_split(split), progress=bar,
        )  # fmt: skip
    save(study, curve, subject=subject)
    show(curve)
    wrote(study, then=f"neuropolis report {study}")


def show(curve: Curve) -> None:
    """Change of the metric on the own group, step by step, beside the controls."""
    effects, rows = curve.effects, curve.summary()
    say(
        f"change of {unit(effects)} on the set's own group, step by step, beside the mean of the controls and of other groups"
    )
    twins = effects.twins is not None
    table(
        ["set", curve.axis, "neurons", "own", "95% interval", "controls", "others", *(["twins"] if twins else []), "p ctrl"],
        [
            [
                r["set"], f"{100 * r['dose']:g}%" if curve.axis == "dose" else r["layer"], r["neurons"],
                number(r["effect"], effects, sign=True),
                f"{number(r['low'], effects, sign=True)} to {number(r['high'], effects, sign=True)}",
                number(r["control"], effects, sign=True), number(r["others"], effects, sign=True),
                *([number(r["twin"], effects, sign=True)] if twins else []), p_value(r["p_controls"]),
            ]
            for r in rows
        ],
    )  # fmt: skip
    power(effects)
    shown = sum(r["p_controls"] < 0.05 for r in rows)
    say(f"{shown} of {len(rows)} cells beyond their controls (sign-flip over items, Holm, 0.05)")
    mean = curve.averaged()
    worst = int((effects.sign * mean["effect"]).nan_to_num(nan=float("inf")).argmin())
    step = f"{100 * curve.steps[worst]:g}%" if curve.axis == "dose" else f"layer {curve.steps[worst]:g}"
    say(
        f"mean over {len(curve.names)} sets: most at {step} ({number(float(mean['effect'][worst]), effects, sign=True)}; controls "
        f"{number(float(mean['control'][worst]), effects, sign=True)}, other groups "
        f"{number(float(mean['others'][worst]), effects, sign=True)})"
    )
