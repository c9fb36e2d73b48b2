"""`neuropolis locate`: score every neuron for every group, or run a published pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import reduce
from operator import add as add_corpora
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    DATA_HELP,
    By,
    Device,
    Dtype,
    Listing,
    Memory,
    Model,
    Offload,
    Split,
    by_leader,
    chosen_split,
    completeness,
    fail,
    key_values,
    open_corpus,
    open_model,
    progress,
    say,
    several,
    stopped,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..attribution.located import Located
    from ..neurons.scores import Scores

FIXED = ("site", "method", "objective", "tokens", "controls")  # what a preset decides for itself


def add(app: typer.Typer) -> None:
    app.command(name="locate", cls=Listing, help="Score every neuron for every group of a corpus, in one pass.")(locate)


def locate(
    context: typer.Context,
    model: Model,
    data: Annotated[list[str], typer.Option("--data", help=DATA_HELP + " Repeat it to score several together.")],
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    site: Annotated[
        list[str] | None,
        typer.Option(help="{sites}. Several share the pass: repeat it, or use commas; mlp by default."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="{methods}. Several share the pass: repeat it, or use commas; taylor by default."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A published pipeline, score and selection together: {presets}.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="key=value of the preset or the methods; repeat it. Presets: {preset_options}."),
    ] = None,
    objective: Annotated[str, typer.Option(help="{objectives}.")] = "loss",
    tokens: Annotated[str, typer.Option(help="Reduction over tokens: {reductions}.")] = "sum",
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Score the control twins too.")] = False,
    rows: Annotated[
        bool, typer.Option("--rows/--no-rows", help="Keep every example's scores too, for permutation and stability.")
    ] = False,
    by: By = None,
    split: Split = "auto",
    max_tokens: Annotated[int, typer.Option(help="Tokens in a batch; lower it when memory runs out.")] = 4096,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File that keeps the state, so that the same command goes on after an interruption."),
    ] = None,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two writings of the checkpoint.")] = 30.0,
    recompute: Annotated[
        bool | None, typer.Option("--recompute/--no-recompute", help="Long contexts: compute blocks twice, keep less.")
    ] = None,
    on_not_finite: Annotated[
        str, typer.Option(help="When an example's objective or score is NaN or infinite: {rules}.")
    ] = "stop",
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = None,
    memory: Memory = None,
) -> None:
    from ..analysis.study import save
    from ..attribution.attribute import attribute
    from ..attribution.presets import preset as run_preset
    from ..attribution.resume import Checkpoint
    from ..neurons.atlas import check_target

    options = key_values(option)
    if on_not_finite not in ("stop", "skip"):
        fail(f"unknown rule {on_not_finite!r}; --on-not-finite is stop or skip")
    if preset is not None:
        _check_preset(context)
    corpus = reduce(add_corpora, (open_corpus(source, by=by) for source in data))
    keeper = None if checkpoint is None else Checkpoint(checkpoint, every=checkpoint_every, keep=True)
    subject = open_model(model, dtype=dtype, device=device, offload=offload, memory=memory)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    passing: dict[str, Any] = {
        "split": chosen_split(split), "max_tokens": max_tokens, "on_not_finite": on_not_finite, "keep_rows": rows,
        "recompute": recompute, "checkpoint": keeper,
    }  # fmt: skip
    if preset is not None and (twice := [key for key in options if key in (*passing, "progress")]):
        fail(f"--option {twice[0]}=... does not go with --preset; give --{twice[0].replace('_', '-')}")
    sites = several(site, "mlp")
    located: Located | None = None
    began = time.monotonic()
    try:
        with progress("scoring") as bar:
            if preset is not None:
                located = run_preset(preset, subject, corpus, **options, **passing, progress=bar)
                scores = dict(located.scores)
            else:
                scores = attribute(
                    subject, corpus, methods=several(method, "taylor"), site=sites[0] if len(sites) == 1 else sites,
                    objective=objective, tokens=tokens, controls=controls, options=options, **passing, progress=bar,  # pyright: ignore[reportArgumentType]
                )  # fmt: skip
    except KeyboardInterrupt:
        if keeper is not None and keeper.written:
            stopped(f"the same command goes on from {checkpoint}")
        if keeper is not None:
            stopped(f"{out} is as it was; nothing was kept in {checkpoint} yet, the same command starts over")
        stopped(f"{out} is as it was; --checkpoint FILE lets the same command go on after an interruption")
    taken = time.monotonic() - began
    if located is not None:
        tables = () if located.importance is None else (located.importance,)
        by_leader(lambda: save(out, scores, dict(located.sets), *tables, subject=subject))
    else:
        by_leader(lambda: save(out, scores if len(scores) > 1 else next(iter(scores.values())), subject=subject))
    if keeper is not None:
        keeper.remove()
    _tell(scores, taken)
    if not corpus.splits:
        say(
            "note: the corpus has no splits; tag rows with split train and test to measure effects on questions not located with"
        )
    if located is not None:
        show(located)
        # ablate takes sets of one site
        then = f"ablate {model} --data DATA --study {out}" if len(located.sites) == 1 else f"info {out}"
        wrote(out, then=f"neuropolis {then}")
    else:
        first = next(iter(scores.values()))
        name = f" --method {next(iter(scores))}" if len(scores) > 1 else ""
        # of neurons that were sampled, a share of the whole site may be more than there are
        sampled = first.origin.get("evaluated")
        top = "1%" if sampled is None else max(1, sum(map(len, sampled.values())) // 10)
        wrote(out, then=f"neuropolis select {out}{name} --top {top}")


def show(located: Located) -> None:
    """What a preset found: neurons of each set by layer, or the importance of components."""
    if located.importance is not None:
        found = located.importance
        say("importance of each component, summed over layers")
        rows = [[g, *(f"{float(v):.4g}" for v in found.of_components[i])] for i, g in enumerate(found.groups)]
        table(["group", *found.components], rows)
    if located.sets:
        say(f"neurons of each set by layer (preset {located.preset})")
        depth = next(iter(located.sets.values())).num_layers
        rows = [[row["set"], row["site"], row["neurons"], *row["layers"]] for row in located.summary]
        table(["set", "site", "all", *map(str, range(depth))], rows)


def _tell(scores: Mapping[str, Scores], seconds: float) -> None:
    first = next(iter(scores.values()))
    neurons = {one.site: one.num_layers * one.width for one in scores.values()}
    skipped = len(first.origin.get("skipped", ()))
    say(
        f"{int(first.counts.sum())} examples of {len(first.groups)} groups, "
        + ", ".join(f"{count} {site} neurons" for site, count in neurons.items())
        + f" in {first.num_layers} layers, "
        + (f"scores {', '.join(scores)}, " if len(scores) > 1 else "")
        + (f"{skipped} examples skipped that are not finite, " if skipped else "")
        + f"{seconds:.1f} s"
    )
    for name, one in scores.items():
        if gap := completeness(one):
            say(f"{name}: {gap}")


def _check_preset(context: typer.Context) -> None:
    """A preset decides these itself; given beside it they would be silently ignored."""
    for name in FIXED:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            fail(
                f"--{name} does not go with --preset, which decides it; where the preset has the option, give --option {name}=..."
            )
