"""`neuropolis compare`: overlap of the sets against chance, and similarity of their parameters by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import Device, StudyFile, open_model, p_value, say, table, wrote

if TYPE_CHECKING:
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity


def add(app: typer.Typer) -> None:
    app.command(name="compare", help="Overlap of the sets against chance; similarity of their parameters by layer.")(
        compare
    )


def compare(
    study: StudyFile,
    model: Annotated[str | None, typer.Option(help="Where the model is, when not where the study says.")] = None,
    controls: Annotated[int, typer.Option(help="Matched random sets per set, for the similarity's chance level.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the controls.")] = 0,
    device: Device = None,
) -> None:
    from ..analysis.overlap import overlap
    from ..analysis.similarity import similarity
    from ..analysis.study import load, save
    from ..neurons.errors import SubjectError

    opened = load(study)
    sets = opened.sets
    shared = overlap(sets)
    show_overlap(shared)
    save(study, shared)
    name = model or str(opened.subject.get("name", ""))
    try:
        subject = open_model(name, device=device)
    except SubjectError as error:
        if model:
            raise
        say(f"note: no parameter similarity, since the study's model cannot be loaded ({error}); name it with --model")
    else:
        opened.check(subject)
        alike = similarity(subject, sets, controls=controls, seed=seed)
        save(study, alike, subject=subject)
        show_similarity(alike)
    wrote(study, then=f"neuropolis report {study} --out report.html")


def show_overlap(shared: Overlap, *, most: int = 10) -> None:
    """The pairs with the largest overlap."""
    count = len(shared.groups)
    pairs = sorted(((a, b) for a in range(count) for b in range(a + 1, count)), key=lambda p: -float(shared.jaccard[p]))
    say(
        f"overlap (Jaccard) of {len(pairs)} pairs of sets, largest first; chance: random sets of the same sizes per layer"
    )
    rows = [
        [
            f"{shared.groups[a]} - {shared.groups[b]}", int(shared.intersections[a, b]), f"{float(shared.jaccard[a, b]):.3f}",
            f"{float(shared.expected[a, b]):.3f}", f"{float(shared.low[a, b]):.3f} to {float(shared.high[a, b]):.3f}",
            p_value(float(shared.p_corrected[a, b])),
        ]
        for a, b in pairs[:most]
    ]  # fmt: skip
    table(["pair", "shared", "Jaccard", "chance", "95% of chance", "p (Holm)"], rows)


def show_similarity(alike: Similarity) -> None:
    """Mean over pairs by layer."""
    import torch

    count = len(alike.groups)
    upper = torch.triu(torch.ones(count, count, dtype=torch.bool), diagonal=1)
    align = alike.origin.get("align", "mean")
    measure = "cosine of mean parameters" if align == "mean" else f"cosine of parameters, align {align}"
    say(f"parameter similarity by layer ({measure}, mean over pairs): all, without shared neurons, chance")

    def mean(values: torch.Tensor) -> list[str]:
        picked = values[upper]
        return [f"{float(v):.3f}" if v == v else "-" for v in picked.nanmean(dim=0)]

    rows = zip(mean(alike.values), mean(alike.values_unshared), mean(alike.chance), strict=True)
    table(["layer", "all", "unshared", "chance"], [[layer, *row] for layer, row in enumerate(rows)])
