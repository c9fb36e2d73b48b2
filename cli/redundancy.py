"""`neuropolis redundancy`: which neurons others predict, and what share of each set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    By,
    Data,
    Device,
    Memory,
    Offload,
    Split,
    StudyFile,
    chosen_split,
    open_corpus,
    open_model,
    percent,
    say,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..analysis.redundancy import Redundancy


FEW = 10  # tokens a predictor, below which the fit is called loose


def add(app: typer.Typer) -> None:
    app.command(name="redundancy", help="Which neurons' activations others of their layer predict; share of each set.")(
        redundancy
    )


def redundancy(
    study: StudyFile,
    data: Data,
    model: Annotated[str | None, typer.Option(help="Where the model is, when not where the study says.")] = None,
    predictors: Annotated[int, typer.Option(help="Neurons that a neuron is predicted from.")] = 16,
    threshold: Annotated[float, typer.Option(help="Share of held-out variance from which on it is redundant.")] = 0.9,
    tokens: Annotated[int, typer.Option(help="Tokens to fit on, and as many to measure on.")] = 4096,
    controls: Annotated[int, typer.Option(help="Matched random sets per set.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the halves, tokens and controls.")] = 0,
    by: By = None,
    split: Split = "auto",
    device: Device = None,
    offload: Offload = None,
    memory: Memory = None,
) -> None:
    from ..analysis.redundancy import redundancy as measure
    from ..analysis.study import load, save

    opened = load(study)
    sets = opened.sets
    subject = open_model(model or str(opened.subject.get("name", "")), device=device, offload=offload, memory=memory)
    opened.check(subject)
    found = measure(
        subject, open_corpus(data, by=by), sets, site=next(iter(sets.values())).site, predictors=predictors,
        threshold=threshold, tokens=tokens, controls=controls, seed=seed, split=chosen_split(split),
    )  # fmt: skip
    save(study, found, subject=subject)
    show(found)
    wrote(study, then=f"neuropolis report {study} --out report.html")


def show(found: Redundancy) -> None:
    """By layer, and by set."""
    say(
        f"neurons of which others of their layer predict {found.threshold:.0%} of the held-out variance: "
        f"{percent(found.whole)} % of site {found.site}"
    )
    fitted, measured = found.origin["tokens"]
    say(f"{found.origin['predictors']} predictors fitted on {fitted:,} tokens, measured on {measured:,} others")
    if fitted < FEW * found.origin["predictors"]:
        say(f"note: fewer than {FEW} tokens a predictor; what is said of single neurons would change with other texts")
    rows = [
        [layer, percent(float(above.float().mean())), f"{float(r2.nanmedian()):.2f}", f"{float(chance):.2f}",
         f"{float(correlation.abs().nanmedian()):.2f}"]
        for layer, (above, r2, chance, correlation) in enumerate(
            zip(found.redundant, found.r2, found.chance, found.correlation, strict=True)
        )
    ]  # fmt: skip
    table(["layer", "redundant %", "median r2", "97.5 % of chance", "median |r| with nearest"], rows)
    rows = []
    for name, size, share, random in zip(
        found.groups, found.sizes.tolist(), found.shares.tolist(), found.control_shares, strict=True
    ):
        low, high = (percent(float(end)) for end in (random.min(), random.max())) if len(random) else ("-", "-")
        mean = percent(float(random.mean())) if len(random) else "-"
        rows.append([name, size, percent(share), mean, f"{low} to {high}"])
    table(["set", "neurons", "redundant %", "random sets", "their range"], rows)
