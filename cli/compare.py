"""`neuropolis compare`: the sets of one study with one another, or two studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Device, StudyFile, fail, open_model, p_value, say, several_groups, table, wrote

if TYPE_CHECKING:
    from ..analysis.comparison import Comparison
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity


HELP = (
    "One study: overlap of its sets against chance, and similarity of their parameters by layer. Two studies: sets in "
    "common, agreement of ranks, effects beside one another."
)


def add(app: typer.Typer) -> None:
    app.command(name="compare", help=HELP)(compare)


def compare(
    study: StudyFile,
    other: Annotated[
        Path | None, typer.Argument(help="A second atlas, to set beside the first.", metavar="[OTHER]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Page to write, with a second atlas.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is, when not where the study says.")] = None,
    controls: Annotated[int, typer.Option(help="Matched random sets per set, for the similarity's chance level.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the controls.")] = 0,
    device: Device = None,
) -> None:
    if other is not None:
        _side_by_side(study, other, out)
    elif out is not None:
        fail(
            f"--out writes the page of two studies; give a second atlas, or write the report of one: neuropolis report {study}"
        )
    else:
        _one_study(study, model, controls, seed, device)


def _one_study(study: Path, model: str | None, controls: int, seed: int, device: str | None) -> None:
    from ..analysis.overlap import overlap
    from ..analysis.similarity import similarity
    from ..analysis.study import load, save
    from ..neurons.errors import SubjectError

    opened = load(study)
    sets = opened.sets
    several_groups(list(sets), study, "compared")
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


def _side_by_side(study: Path, other: Path, out: Path | None) -> None:
    from ..analysis.comparison import compare_studies
    from ..analysis.study import load
    from ..figures.comparison import compare_page

    found = compare_studies(load(study), load(other))
    show_comparison(found)
    if out is None:
        say(f"next: neuropolis compare {study} {other} --out comparison.html")
    else:
        wrote(compare_page(found, out))


def show_comparison(found: Comparison) -> None:
    """Two studies side by side: words, then a table of sets, of ranks and of effects."""
    from ..figures.comparison import words_of
    from ..figures.tables import written

    said = words_of(found)
    if found.sets:
        say(f"sets in common: {' '.join(said['sets'])}")
        rows = [
            [pair.name, *(f"{size:,}" for size in pair.sizes), "-" if pair.shared is None else f"{pair.shared:,}",
             written(pair.jaccard, ".3f"), written(pair.expected, ".3f"), p_value(pair.p)]
            for pair in found.sets
        ]  # fmt: skip
        table(
            ["set", *(f"neurons, {name}" for name in found.names), "shared", "Jaccard", "by chance", "p (Holm)"], rows
        )
    for sentence, ranks in zip(said["ranks"], found.ranks, strict=True):
        say(f"\nagreement of ranks: {sentence}")
        rows = zip(ranks.groups, ranks.correlation[:, 0, 1], ranks.jaccard[:, 0, 1], strict=True)
        heads = ["group", "rank correlation", f"Jaccard of the top {100 * ranks.top:g} %"]
        table(heads, [[group, f"{rank:.3f}", f"{top:.3f}"] for group, rank, top in rows])
    if found.effects:
        unit = "points" if found.unit == "share" else found.unit
        say(f"\neffects, {unit} of {found.metric}: {' '.join(said['effects'])}")
        rows = [
            [pair.set, *(_change(found, pair.change[i], pair.low[i], pair.high[i]) for i in (0, 1)),
             _change(found, pair.difference, pair.difference_low, pair.difference_high)]
            for pair in found.own
        ]  # fmt: skip
        table(["set on its own group", *found.names, "difference"], rows)
    for note in said["notes"]:
        say(f"note: {note}")


def _change(found: Comparison, value: float, low: float, high: float) -> str:
    """A change with its interval, in the metric's unit."""
    from ..figures.comparison import change_of

    shown = [change_of(found, one).replace("\u2212", "-").replace("\u2013", "-") for one in (value, low, high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


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
