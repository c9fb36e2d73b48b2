"""`neuropolis calibrate`: plant neurons whose role is known in a model, and say which method finds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    By,
    Device,
    Dtype,
    Model,
    by_leader,
    fail,
    key_values,
    open_corpus,
    open_model,
    progress,
    say,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..finetune.calibration_result import Calibration

SHOWN = ("recall", "precision", "auroc")


def add(app: typer.Typer) -> None:
    app.command(name="calibrate", help="Plant neurons whose role is known, and see which method finds them.")(calibrate)


def calibrate(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    data: Annotated[
        str, typer.Option("--data", help="Natural groups, for --deletion; and text that planting must leave as it was.")
    ] = "bundled:polis",
    own_text: Annotated[
        bool,
        typer.Option("--own-text", help="The text that planting must leave as it was is what the model itself writes."),
    ] = False,
    methods: Annotated[
        str, typer.Option(help="Methods to hold against the plants, with commas; exact takes long.")
    ] = "taylor,ig,relp,lape,culnig,coalition,random",
    per_group: Annotated[int, typer.Option(help="Neurons planted for each group.")] = 64,
    groups: Annotated[int, typer.Option(help="Groups of invented facts.")] = 4,
    facts: Annotated[int, typer.Option(help="Facts of each group, each taught in two wordings.")] = 8,
    seeds: Annotated[int, typer.Option(help="Plants of each variant, with seeds from 0.")] = 3,
    variants: Annotated[
        str,
        typer.Option(help="plain, shared, redundant, suppressor, layer, strong, weak, attn, few, with commas; or all."),
    ] = "plain",
    site: Annotated[str, typer.Option(help="Site to plant in.")] = "mlp",
    form: Annotated[
        str, typer.Option(help="How facts are put: question, or statement, for a model that was never asked anything.")
    ] = "question",
    answers: Annotated[
        str, typer.Option(help="invented words, or known: words of the other text that have the fewest tokens.")
    ] = "invented",
    plants: Annotated[
        Path | None, typer.Option(help="Folder of plants: those that stand there are taken, others are made and kept.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Most steps of planting; by default the variant's.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE changes how plants are trained (lr, keep, hard, noise, ...); can be given again."),
    ] = None,
    deletion: Annotated[
        bool, typer.Option("--deletion", help="Also compare with deletion curves on the natural groups of --data.")
    ] = False,
    false_positives: Annotated[
        bool, typer.Option(help="Also look for neurons where there are none: labels shuffled, weights random.")
    ] = True,
    by: By = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.study import save
    from ..finetune.calibration import VARIANTS
    from ..finetune.calibration import calibrate as measure
    from ..neurons.atlas import check_target

    if seeds < 1:
        fail(f"seeds is {seeds}; expected 1 or more plants of each variant")
    if plants is not None and not plants.absolute().parent.is_dir():
        fail(f"there is no folder {plants.parent} for the plants; make it first")
    changes = key_values(recipe) | ({} if steps is None else {"steps": steps})
    natural = open_corpus(data, by=by)
    subject = open_model(model, dtype=dtype, device=device)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    with progress("planting, then scoring") as bar:
        found = measure(
            subject, methods=_listed(methods), groups=groups, per_group=per_group, facts=facts, seeds=seeds,
            variants=tuple(VARIANTS) if variants == "all" else _listed(variants), site=site, form=form, answers=answers,  # pyright: ignore[reportArgumentType]
            keep="own" if own_text else natural, recipe=changes, folder=plants,
            checks=false_positives, deletion=natural if deletion else None, progress=bar,
        )  # fmt: skip
    by_leader(lambda: save(out, found, subject=subject))
    show(found)
    wrote(out, then=_next(found, model, data, out) if found.first is not None else _again(found, context))


def show(found: Calibration) -> None:
    """Plants, methods, layers, false positives, and what follows from them."""
    _plants(found.plants)
    for variant in found.variants:
        if found.held(variant):
            _methods(found, variant)
    if found.first is not None:
        _layers(found, found.first)
        _false(found)
        _agreement(found)
    say(found.verdict())


def _plants(plants: Sequence[Mapping[str, Any]]) -> None:
    say(
        "planted: share of each group's facts that are answered, before, planted, and with the group's neurons put back as they "
        "were; lowest of the other groups meanwhile; in a wording that was not trained; perplexity of other text"
    )
    rows = []
    for plant in plants:
        proof = plant["proof"]
        moved = proof["perplexity"][1] / proof["perplexity"][0] - 1
        for g, group in enumerate(proof["groups"]):
            others = [share for place, share in enumerate(proof["without"][g]) if place != g]
            rows.append(
                [
                    f"{plant['variant']}, seed {plant['seed']}", group, f"{proof['before'][g]:.2f}", f"{proof['planted'][g]:.2f}",
                    f"{proof['without'][g][g]:.2f}", f"{min(others, default=math.nan):.2f}", f"{proof['reworded'][g]:.2f}",
                    f"{moved:+.1%}",
                    "holds" if plant["holds"] else "fails",
                ]
            )  # fmt: skip
    table(["plant", "group", "before", "planted", "put back", "others", "reworded", "perplexity", "proof"], rows)
    costs = [plant["forwards"] for plant in plants if plant.get("forwards")]
    if costs:
        say(
            f"planting cost {sum(costs) / len(costs):,.0f} forwards a plant (one example through the model; three with a backward)"
        )
    for plant in plants:
        if not plant["holds"]:
            say(f"not scored: {plant['variant']}, seed {plant['seed']}: {'; '.join(plant['failures'])}")


def _methods(found: Calibration, variant: str) -> None:
    held = found.held(variant)
    say(
        f"{variant}: every method with the ranking that finds most, {held} plant{'s' * (held != 1)}, mean over groups "
        + ("with the 95 % t interval over seeds" if held > 1 else "(one seed: no interval)")
    )
    rows = [
        [
            row["method"], row["ranking"], *(_with(row, name) for name in SHOWN), f"{row['seconds']:.1f}",
            f"{row['forwards']:,.0f}",
        ]
        for row in found.summary(variant)
    ]  # fmt: skip
    table(["method", "ranked by", "recall@K", "average precision", "AUROC", "seconds", "forwards"], rows)


def _layers(found: Calibration, variant: str) -> None:
    mean = found.layers("recall")[0][found.variants.index(variant)]
    say(f"{variant}: recall@K with each layer ranked alone")
    rows = [
        [row["method"], *(_plain(float(v)) for v in mean[found.methods.index(row["method"]), found.rankings.index(row["ranking"])])]
        for row in found.summary(variant)
    ]  # fmt: skip
    table(["method", *(f"layer {layer}" for layer in range(mean.shape[-1]))], rows)


def _false(found: Calibration) -> None:
    if not found.origin.get("checks"):
        return
    say(
        "false positives: share of neurons called specific at the 5 % level where nothing is, mean over groups and seeds"
    )
    mean = found.false_positives.nanmean(dim=2)
    rows = [
        [method, *(_percent(float(mean[place, level, m])) for place in range(2) for level in range(2))]
        for m, method in enumerate(found.methods)
    ]
    table(["method", "shuffled labels", "each alone", "random weights", "each alone"], rows)


def _agreement(found: Calibration) -> None:
    agreed, count = found.agreement()
    if count:
        say(
            f"agreement with deletion curves on {found.origin.get('natural')}: Spearman {_plain(agreed)} over {count} methods "
            f"(recall by signed scores; {_plain(found.agreement(None)[0])} with each method's best ranking)"
        )


def _next(found: Calibration, model: str, data: str, out: Path) -> str:
    if found.best is None:
        return f"neuropolis report {out} --out report.html"
    from ..attribution.methods import method_named

    method, (by, _, contrast) = found.best[0], found.best[1].partition("/")
    objective = method_named(method).objective
    scored = f"neuropolis locate {model} --data {data} --method {method}"
    scored += f" --objective {objective}" * (objective is not None) + " --controls" * (contrast == "controls")
    return f"{scored} --out {out} && neuropolis select {out} --by {by} --contrast {contrast or 'none'}"


def _again(found: Calibration, context: typer.Context) -> str:
    """The same command with what may make a plant stand: more steps; statements, or more weight on other text where these were."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    told = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    told -= {"model", "form", "answers", "own_text", "steps", "recipe"}
    given = []
    for name in sorted(told, key=list(context.params).index):
        flag, value = f"--{name.replace('_', '-')}", context.params[name]
        given.append(
            f"{flag if value else '--no-' + flag[2:]}" if isinstance(value, bool) else f"{flag} {quote(str(value))}"
        )
    steps = max(800, 2 * max(plant["steps"] for plant in found.plants))
    recipe = key_values(context.params["recipe"])
    if found.origin["form"] == "statement":
        recipe["keep"] = 2 * recipe.get("keep", 12)
    changes = " ".join(f"--recipe {name}={value}" for name, value in ({"lr": 0.005, "keep": 50} | recipe).items())
    same = f"neuropolis calibrate {quote(context.params['model'])} {' '.join(given)}"
    return f"{same} --form statement --answers known --own-text --steps {steps} {changes}"


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _with(row: Mapping[str, Any], name: str) -> str:
    low, high = max(0.0, row[f"{name}_low"]), min(1.0, row[f"{name}_high"])
    return f"{row[name]:.3f}" + ("" if math.isnan(row[f"{name}_low"]) else f" ({low:.3f} to {high:.3f})")


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"
