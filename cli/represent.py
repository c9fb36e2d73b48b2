"""`neuropolis represent`: how alike the hidden states of groups are, by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    By,
    Data,
    Device,
    Dtype,
    Memory,
    Model,
    Offload,
    Split,
    chosen_split,
    open_corpus,
    open_model,
    say,
    several_groups,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..analysis.representations import Representations


def add(app: typer.Typer) -> None:
    app.command(name="represent", help="Similarity of groups' hidden states by layer: cosine of means, linear CKA.")(
        represent
    )


def represent(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    at: Annotated[str, typer.Option(help="The last token of the text, or of the prompt.")] = "text",
    match: Annotated[
        str, typer.Option(help="Tag that says which examples of two groups say the same, for CKA.")
    ] = "item",
    center: Annotated[bool, typer.Option("--center", help="Take the mean over groups off before the cosine.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of intervals and permutations.")] = 0,
    by: By = None,
    split: Split = "all",
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = None,
    memory: Memory = None,
) -> None:
    from ..analysis.representations import representations
    from ..analysis.study import load, save
    from ..neurons.atlas import check_target

    corpus = open_corpus(data, by=by)
    several_groups(corpus.groups, data, "compared")
    subject = open_model(model, dtype=dtype, device=device, offload=offload, memory=memory)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    found = representations(
        subject, corpus, at=at, match=match, center=center, seed=seed, split=chosen_split(split),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    save(out, found, subject=subject)
    show(found)
    scored = load(out).has("scores")
    wrote(out, then=f"neuropolis {f'report {out}' if scored else f'locate {model} --data {data} --out {out}'}")


def show(found: Representations) -> None:
    """Mean over pairs by layer."""
    import torch

    upper = torch.triu(torch.ones(len(found.groups), len(found.groups), dtype=torch.bool), diagonal=1)
    pairs = int(upper.sum())
    say(f"similarity of last-token states, mean over {pairs} pairs of groups, and the lowest and highest of them")

    def cells(values: torch.Tensor) -> list[str]:
        known = values[upper & ~values.isnan()]
        return [f"{known.mean():.3f}", f"{known.min():.3f} to {known.max():.3f}"] if len(known) else ["-", "-"]

    rows = [
        [
            "embedding" if state == 0 else f"layer {state - 1}",
            *cells(found.cosine[..., state]),
            *cells(found.cka[..., state]),
        ]
        for state in range(found.cosine.shape[-1])
    ]
    table(["behind", "cosine", "pairs", "CKA", "pairs"], rows)
    if int(found.matched[upper].max()) < 4:
        say(
            f"no CKA: fewer than four examples of two groups have one {found.origin['match']}; --match names another tag"
        )
