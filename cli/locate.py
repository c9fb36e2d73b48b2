"""`neuropolis locate`: score every neuron for every group."""

from __future__ import annotations

import time
from functools import reduce
from operator import add as add_corpora
from pathlib import Path
from typing import Annotated

import typer

from .console import (
    DATA_HELP,
    By,
    Device,
    Dtype,
    Model,
    Split,
    chosen_split,
    open_corpus,
    open_model,
    progress,
    say,
    wrote,
)


def add(app: typer.Typer) -> None:
    app.command(name="locate", help="Score every neuron for every group of a corpus, in one pass.")(locate)


def locate(
    model: Model,
    data: Annotated[list[str], typer.Option("--data", help=DATA_HELP + " Repeat it to score several together.")],
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    site: Annotated[str, typer.Option(help="mlp, gate, up, mlp_out, q, k, v or attn.")] = "mlp",
    method: Annotated[
        str, typer.Option(help="taylor, gradient, ig, conductance, smoothgrad, relp or exact.")
    ] = "taylor",
    objective: Annotated[str, typer.Option(help="loss, loss_all, probability or logit_difference.")] = "loss",
    tokens: Annotated[str, typer.Option(help="Reduction over tokens: sum, abs, mean or max.")] = "sum",
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Score the control twins too.")] = False,
    by: By = None,
    split: Split = "auto",
    max_tokens: Annotated[int, typer.Option(help="Tokens in a batch; lower it when memory runs out.")] = 4096,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.study import save
    from ..attribution.attribute import attribute
    from ..neurons.atlas import check_target

    corpus = reduce(add_corpora, (open_corpus(source, by=by) for source in data))
    subject = open_model(model, dtype=dtype, device=device)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    began = time.monotonic()
    with progress("scoring") as bar:
        scores = attribute(
            subject, corpus, method=method, site=site, objective=objective, tokens=tokens, controls=controls,  # pyright: ignore[reportCallIssue, reportArgumentType]
            split=chosen_split(split), max_tokens=max_tokens, progress=bar,
        )  # fmt: skip
    save(out, scores, subject=subject)
    groups, layers, width = scores.values.shape
    say(
        f"{int(scores.counts.sum())} examples of {groups} groups, {layers * width} {site} neurons in {layers} layers, "
        f"{time.monotonic() - began:.1f} s"
    )
    if not corpus.splits:
        say(
            "note: the corpus has no splits; tag rows with split train and test to measure effects on questions not located with"
        )
    wrote(out, then=f"neuropolis select {out} --top 1%")
