"""`neuropolis fidelity`: how far scores of each method can be trusted on a model."""

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
    by_leader,
    fail,
    open_corpus,
    open_model,
    progress,
    say,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..attribution.fidelity_result import Fidelity

TIES = 0.05


def add(app: typer.Typer) -> None:
    app.command(name="fidelity", help="Hold methods' scores against what silencing neurons does.")(fidelity)


def fidelity(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    methods: Annotated[str, typer.Option(help="Methods to compare, with commas.")] = "taylor,ig,relp",
    site: Annotated[str, typer.Option(help="mlp, gate, up, mlp_out, q, k, v or attn.")] = "mlp",
    objective: Annotated[str, typer.Option(help="loss, loss_all, probability or logit_difference.")] = "loss",
    sample: Annotated[int, typer.Option(help="Neurons whose exact scores are taken.")] = 128,
    shares: Annotated[str, typer.Option(help="Shares of neurons for the curves, with commas, ascending.")] = (
        "0.001,0.003,0.01,0.03,0.1,0.3,1"
    ),
    controls: Annotated[int, typer.Option(help="Random orders to compare with.")] = 3,
    by: By = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the random orders.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Tokens in a batch; lower it when memory runs out.")] = 4096,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.study import save
    from ..attribution.fidelity import fidelity as measure
    from ..neurons.atlas import check_target

    try:
        grid = [float(share) for share in shares.split(",")]
    except ValueError:
        fail(f"cannot read {shares!r} as shares; expected numbers with commas, such as 0.01,0.1,1")
    corpus = open_corpus(data, by=by)
    subject = open_model(model, dtype=dtype, device=device)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    with progress("scoring, then silencing") as bar:
        found = measure(
            subject, corpus, methods=[name.strip() for name in methods.split(",")], site=site, objective=objective,  # pyright: ignore[reportArgumentType]
            sample=sample, shares=grid, controls=controls, seed=seed, max_tokens=max_tokens, progress=bar,
        )  # fmt: skip
    by_leader(lambda: save(out, found, subject=subject))
    show(found)
    best = max(found.summary()[:-1], key=lambda row: row["correlation"])["method"]
    wrote(out, then=f"neuropolis locate {model} --data {data} --method {best} --out {out}")


def show(found: Fidelity) -> None:
    """The table of methods."""
    origin = found.origin
    say(
        f"{origin['num_scored']} examples scored, {origin['num_held_out']} "
        f"{'held out' if origin['held_out'] else 'for the curves (the same ones: the corpus holds none out)'}; "
        f"{len(found.neurons)} neurons scored exactly; means over {len(found.groups)} groups"
    )
    table(
        [
            "method", "rank correlation", "95% interval", "deletion", "above random", "95% interval", "insertion",
            "below random", "95% interval",
        ],
        [
            [
                r["method"], _number(r["correlation"]), _span(r["low"], r["high"]),
                _number(r["deletion"]), _number(r["deletion_better"]), _span(r["deletion_low"], r["deletion_high"]),
                _number(r["insertion"]), _number(r["insertion_better"]), _span(r["insertion_low"], r["insertion_high"]),
            ]
            for r in found.summary()
        ],
    )  # fmt: skip
    if found.unresolved > TIES:
        say(
            f"note: {found.unresolved:.0%} of the exact scores are zero, below what the model's dtype resolves, which lowers the "
            "correlations; --dtype float64 resolves more"
        )
    say(
        f"areas are means over the log of the share, in units of the {found.objective} that is lost: of deletion the larger is "
        "better, of insertion the smaller"
    )


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _span(low: float, high: float) -> str:
    return "-" if low != low else f"{low:.3f} to {high:.3f}"
