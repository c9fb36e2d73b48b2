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
    progress,
    say,
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
    sets_to_match,
    sites_of,
    unit,
)

if TYPE_CHECKING:
    from ..analysis.effects import Effects

WIDEST = 12  # groups whose matrix is printed; the report shows larger ones


def add(app: typer.Typer) -> None:
    app.command(name="ablate", help="Switch each set off; accuracy on every group next to matched random sets.")(ablate)


def ablate(
    model: Model,
    data: Data,
    study: Annotated[Path, typer.Option("--study", help="Atlas that holds the sets; effects are added to it.")],
    controls: Annotated[int, typer.Option(help="Matched random sets per set.")] = 20,
    kind: KindName = "zero",
    metric: Metric = "accuracy",
    on: OnWhat = "both",
    match: MatchBy = "layer",
    twins: Twins = False,
    factor: Factor = 2.0,
    reference: ReferenceData = None,
    reference_group: ReferenceGroup = None,
    group: Groups = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="For exact_match, rouge_l and chrf: tokens generated at most.")
    ] = 32,
    name: Annotated[str, typer.Option("--name", help="Name of the effects in the atlas.")] = "effects",
    by: By = None,
    split: Split = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the controls.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.ablate import ablate as measure
    from ..analysis.study import load, save

    corpus = open_corpus(data, by=by)
    opened = load(study)
    sets = chosen_sets(opened, group)
    subject = open_model(model, dtype=dtype, device=device)
    opened.check(subject)
    sites = sites_of(sets)
    known = references(subject, corpus, kind, source=reference, group=reference_group, sites=sites)
    with progress("ablating") as bar:
        effects = measure(
            subject, corpus, sets, kind=kind, metric=metric, on=on, controls=controls, match=match, twins=twins,  # pyright: ignore[reportArgumentType]
            scores=scores_to_match(opened, match, sites), others=sets_to_match(opened, match), seed=seed, reference=known,
            factor=factor,
            split=chosen_split(split), max_new_tokens=max_new_tokens, progress=bar,
        )  # fmt: skip
    save(study, subject=subject, **{name: effects})
    show(effects)
    measured = corpus.part(chosen_split(split), auto="test").hash
    if any(one.origin.get("corpus_hash") == measured for parts in sets.values() for one in parts):
        say(
            "note: the sets were located on the very questions that they were measured on, which flatters them; tag rows with "
            "split train and test, or give other data"
        )
    wrote(study, then=f"neuropolis compare {study}")


def show(effects: Effects) -> None:
    """The table of own effects."""
    rows = effects.summary()
    state = "kept and all else off" if effects.kind == "keep" else "off"
    say(
        f"{unit(effects)}: on the set's own group and on the mean of the others, with the set {state}, and with its controls "
        f"{state} (matched by {effects.origin.get('match', 'layer')})"
    )
    table(
        [
            "set", "neurons", "own on", "own off", "95% interval of change", "controls off", "others on", "others off",
            "effect size", "p ctrl", "p others", "specific",
        ],
        [
            [
                r["set"], r["size"], number(r["base"], effects), number(r["ablated"], effects),
                f"{number(r['low'], effects)} to {number(r['high'], effects)}", number(r["controls"], effects),
                number(r["others_base"], effects), number(r["others"], effects),
                "-" if r["dominance"] != r["dominance"] else f"{r['dominance']:+.2f}",
                p_value(r["p_controls"]), p_value(r["p_others"]), "yes" if r["specific"] else "no",
            ]
            for r in rows
        ],
    )  # fmt: skip
    _tell_matrix(effects)
    power(effects)
    _tell_closeness(effects)
    if effects.twins is not None:
        _tell_twins(effects)
    more = "hurt" if effects.expect == "worse" else "spare"
    if len(effects.groups) == 1:
        found = sum(r["p_controls"] < 0.05 for r in rows)
        say(
            f"{found} of {len(rows)} sets {more} their own group more than their controls (Holm-corrected p below 0.05); there is "
            "no other group, so whether they are specific cannot be said"
        )
        return
    found = sum(r["specific"] for r in rows)
    say(
        f"{found} of {len(rows)} sets are specific: they {more} their own group more than the mean of the others and more than "
        "their controls (the larger of the two p-values, Holm-corrected, below 0.05)"
    )


def _tell_matrix(effects: Effects) -> None:
    """Every set on every group, where that fits on a page."""
    if not 1 < len(effects.groups) <= WIDEST:
        return
    p = effects.corrected(cells="all", correction="benjamini_hochberg")[0]
    table(
        ["set", *effects.groups],
        [
            [
                name,
                *(
                    number(float(change), effects, sign=True) + ("*" if float(p[s, g]) < 0.05 else "")
                    for g, change in enumerate(effects.effect[s])
                ),
            ]
            for s, name in enumerate(effects.sets)
        ],
        title=f"change of {unit(effects)}, sets on groups (* beyond controls: Benjamini-Hochberg over all cells, 0.05)",
    )  # fmt: skip


def _tell_closeness(effects: Effects) -> None:
    known = [value for value in (effects.origin.get("closeness") or {}).values() if value is not None]
    if known:
        say(
            f"controls' mean {effects.origin['match']} over the sets': {min(known):.2f} to {max(known):.2f} (1 is a perfect match)"
        )


def _tell_twins(effects: Effects) -> None:
    """What silencing does to the knowledge-free twins."""
    rows = [r for r in effects.summary() if r["group"] is not None]
    table(
        ["set", "own on", "own off", "twins on", "twins off", "p twins"],
        [
            [
                r["set"], number(r["base"], effects), number(r["ablated"], effects), number(r["twin_base"], effects),
                number(r["twin_ablated"], effects), p_value(r["p_twins"]),
            ]
            for r in rows
        ],
        title="questions beside their knowledge-free twins",
    )  # fmt: skip
    shown = sum(r["p_twins"] < 0.05 for r in rows)
    say(
        f"{shown} of {len(rows)} sets hurt their group's questions more than the twins (sign-flip over items, Holm, 0.05)"
    )
