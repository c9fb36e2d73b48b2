"""`neuropolis stability`: how far a selection moves when one thing about it is changed."""

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
    by_leader,
    chosen_split,
    open_corpus,
    open_model,
    say,
    share,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..attribution.stability import Stability


def add(app: typer.Typer) -> None:
    app.command(name="stability", help="Select again with one thing changed at a time, and compare the sets.")(
        stability
    )


def stability(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    axes: Annotated[
        str, typer.Option(help="What to change, with commas: items, seed, template, dtype, threshold.")
    ] = "items,dtype,threshold",
    template: Annotated[str | None, typer.Option(help="Tag that names a question's template, for that axis.")] = None,
    top: Annotated[str, typer.Option(help="Share (1%) or number (100) of neurons per group.")] = "1%",
    contrast: Annotated[str, typer.Option(help="none, others or z.")] = "others",
    method: Annotated[str, typer.Option(help="Method of the scores.")] = "taylor",
    site: Annotated[str, typer.Option(help="Site of the neurons.")] = "mlp",
    resamples: Annotated[int, typer.Option(help="Halves of the items, and seeds, to try.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the halves.")] = 0,
    by: By = None,
    split: Split = "auto",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.study import save
    from ..attribution.stability import stability as measure
    from ..neurons.atlas import check_target

    corpus = open_corpus(data, by=by)
    subject = open_model(model, dtype=dtype, device=device)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    found = measure(
        subject, corpus, axes=[axis.strip() for axis in axes.split(",")], template=template, top=share(top),
        contrast=None if contrast == "none" else contrast, method=method, site=site, resamples=resamples, seed=seed,
        split=chosen_split(split),
    )  # fmt: skip
    by_leader(lambda: save(out, found, subject=subject))
    show(found)
    wrote(out, then=f"neuropolis locate {model} --data {data} --out {out} --rows")


def show(found: Stability) -> None:
    """The table of what was changed."""
    say("Jaccard of each group's set with the one of the settings given (1: the same neurons), over groups")
    rows = zip(found.axes, found.variants, found.jaccard, found.chance, strict=True)
    table(
        ["changed", "to", "mean", "lowest", "by chance"],
        [[a, v, f"{j.mean():.3f}", f"{j.min():.3f}", f"{c.mean():.3f}"] for a, v, j, c in rows],
    )
