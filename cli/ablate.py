"""`neuropolis ablate`: switch each set off and measure every group, next to matched random sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    By,
    Data,
    Device,
    Dtype,
    Model,
    Split,
    chosen_split,
    open_corpus,
    open_model,
    p_value,
    percent,
    progress,
    say,
    table,
    wrote,
)  # fmt: skip

if TYPE_CHECKING:
    from ..analysis.effects import Effects


def add(app: typer.Typer) -> None:
    app.command(name="ablate", help="Switch each set off; accuracy on every group next to matched random sets.")(ablate)


def ablate(
    model: Model,
    data: Data,
    study: Annotated[Path, typer.Option("--study", help="Atlas that holds the sets; effects are added to it.")],
    controls: Annotated[int, typer.Option(help="Matched random sets per set.")] = 20,
    kind: Annotated[str, typer.Option(help="zero, mean, scale, resample or noise.")] = "zero",
    factor: Annotated[float, typer.Option(help="For scale and noise.")] = 2.0,
    reference: Annotated[str | None, typer.Option(help="Corpus that mean, resample and noise draw from.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only the sets of these groups (repeat the option).")] = None,
    by: By = None,
    split: Split = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the controls.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.ablate import ablate as measure
    from ..analysis.study import load, save
    from ..attribution.activations import reference as gather

    corpus = open_corpus(data, by=by)
    opened = load(study)
    sets = {g: opened.get("set", g) for g in group} if group else opened.sets
    subject = open_model(model, dtype=dtype, device=device)
    opened.check(subject)
    site = next(iter(sets.values())).site
    known = gather(subject, open_corpus(reference), site=site) if reference else None
    with progress("ablating") as bar:
        effects = measure(
            subject, corpus, sets, kind=kind, controls=controls, seed=seed, reference=known, factor=factor,  # pyright: ignore[reportArgumentType]
            split=chosen_split(split), progress=bar,
        )  # fmt: skip
    save(study, effects, subject=subject)
    show(effects)
    measured = corpus.part(chosen_split(split), auto="test").hash
    if any(one.origin.get("corpus_hash") == measured for one in sets.values()):
        say(
            "note: the sets were located on the very questions that they were measured on, which flatters them; tag rows with "
            "split train and test, or give other data"
        )
    wrote(study, then=f"neuropolis compare {study}")


def show(effects: Effects) -> None:
    """The table of own effects."""
    rows = effects.summary()
    say(
        "accuracy in %: on the set's own group and on the mean of the others, with the set off, and with matched random sets off"
    )
    table(
        [
            "set", "neurons", "own on", "own off", "95% interval of change", "controls off", "others on", "others off",
            "p ctrl", "p others", "specific",
        ],
        [
            [
                r["set"], r["size"], percent(r["base"]), percent(r["ablated"]), f"{percent(r['low'])} to {percent(r['high'])}",
                percent(r["controls"]), percent(r["others_base"]), percent(r["others"]), p_value(r["p_controls"]),
                p_value(r["p_others"]), "yes" if r["specific"] else "no",
            ]
            for r in rows
        ],
    )  # fmt: skip
    found = sum(r["specific"] for r in rows)
    say(
        f"{found} of {len(rows)} sets are specific: they hurt their own group more than the mean of the others and more than "
        "matched controls (the larger of the two p-values, Holm-corrected, below 0.05)"
    )
