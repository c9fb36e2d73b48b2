"""`neuropolis overlap`: how much sets share, in numbers and in ranks, and whether that follows a distance known before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compare import show_overlap
from .console import StudyFile, key_pairs, p_value, say, several_groups, table, wrote

if TYPE_CHECKING:
    from ..analysis.ranks import RankAgreement
    from ..analysis.trees import Mantel, Tree


def add(app: typer.Typer) -> None:
    app.command(name="overlap", help="Overlap against chance, rank agreement, a tree of groups, and the Mantel test.")(
        overlap
    )


def overlap(
    study: StudyFile,
    join: Annotated[
        list[str] | None, typer.Option(help="A group of groups, as NAME=a,b,c; may be repeated.", metavar="NAME=a,b,c")
    ] = None,
    how: Annotated[str, typer.Option(help="With --join: union or intersection.")] = "union",
    uniform: Annotated[bool, typer.Option("--uniform", help="Chance over the site instead of layer by layer.")] = False,
    method: Annotated[str | None, typer.Option(help="Scores to rank, where the study has several.")] = None,
    contrast: Annotated[str, typer.Option(help="Contrast of the ranks: none, others, controls or z.")] = "none",
    distances: Annotated[
        Path | None,
        typer.Option(help="CSV of coordinates or of distances of the groups, or JSON, to hold overlap against."),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="With --distances: coordinates, distance or similarity.")] = None,
    columns: Annotated[str | None, typer.Option(help="With --distances: coordinates to use, with commas.")] = None,
    standardise: Annotated[bool, typer.Option("--standardise", help="Divide coordinates by their deviation.")] = False,
    name: Annotated[
        list[str] | None, typer.Option(help="With --distances: what a group is called there.", metavar="GROUP=NAME")
    ] = None,
    correlation: Annotated[str, typer.Option(help="Of the Mantel test: spearman or pearson.")] = "spearman",
    seed: Annotated[int, typer.Option(help="Seed of permutations.")] = 0,
) -> None:
    from ..analysis.distances import load_distances
    from ..analysis.overlap import combine
    from ..analysis.overlap import overlap as measure
    from ..analysis.ranks import rank_agreement
    from ..analysis.study import load, save
    from ..analysis.trees import mantel, tree

    opened = load(study)
    groups = key_pairs(join, "--join", "NAME=a,b,c")
    label = "joined" if groups else "overlap"
    sets = opened.sets
    if groups:
        sets = combine(sets, {key: [m.strip() for m in text.split(",")] for key, text in groups.items()}, how=how)  # pyright: ignore[reportArgumentType]
    several_groups(list(sets), study, "compared")
    shared = measure(sets, uniform=uniform)
    given = None if distances is None else load_distances(
        distances, shared.groups, kind=kind, names=key_pairs(name, "--name", "GROUP=NAME"), standardise=standardise,  # pyright: ignore[reportArgumentType]
        columns=None if columns is None else [column.strip() for column in columns.split(",")],
    )  # fmt: skip
    show_overlap(shared)
    found: dict[str, Any] = {label: shared}
    if bool((shared.sizes > 0).all()):
        found["tree" if label == "overlap" else "joined tree"] = tree(shared)
        show_tree(found["tree" if label == "overlap" else "joined tree"])
    if given is not None:
        tested = mantel(shared, given, method=correlation, seed=seed, source=str(distances))  # pyright: ignore[reportArgumentType]
        found["mantel" if label == "overlap" else "joined mantel"] = tested
        show_mantel(tested)
    if not groups and opened.has("scores"):
        scores = opened.get("scores", method)
        if len(scores.groups) > 1:
            agreed = rank_agreement(scores, contrast=None if contrast == "none" else contrast, seed=seed)
            found["ranks"] = agreed
            show_ranks(agreed)
    save(study, found)
    wrote(study, then=f"neuropolis report {study} --out report.html")


def show_tree(found: Tree) -> None:
    """The leaves in order, and the joins."""
    leaves = ", ".join(found.groups[place] for place in found.order.tolist())
    kept = "" if found.cophenetic != found.cophenetic else f", cophenetic correlation {found.cophenetic:.2f}"
    say(f"tree by {found.origin['index']} ({found.origin['linkage']} linkage{kept}): {leaves}")
    named = dict(enumerate(found.groups))
    for step, (first, second, height, _) in enumerate(found.linkage.tolist()):
        named[len(found.groups) + step] = f"({named[int(first)]} {named[int(second)]})"
        say(f"  {height:.3f}  {named[len(found.groups) + step]}")


def show_mantel(found: Mantel) -> None:
    """The test in one line."""
    one = found.agreement
    say(
        f"Mantel test of {len(found.groups)} groups ({found.origin['method']}): r {one.r:+.2f}, 95 % interval {one.low:+.2f} to "
        f"{one.high:+.2f} (bootstrap over groups), p {p_value(one.p)}; by chance {one.null_low:+.2f} to {one.null_high:+.2f}"
    )


def show_ranks(found: RankAgreement, *, most: int = 10) -> None:
    """The pairs that agree most on the first ranks."""
    count = len(found.groups)
    pairs = sorted(((a, b) for a in range(count) for b in range(a + 1, count)), key=lambda p: -float(found.rbo[p]))
    mean, low, high = found.rbo_chance.tolist()
    say(
        f"agreement of ranks, {found.origin['method']} (chance: RBO {mean:.3f}, 95 % {low:.3f} to {high:.3f}; Spearman 0 -/+ "
        f"{found.spearman_reach:.3f})"
    )
    rows = [
        [
            f"{found.groups[a]} - {found.groups[b]}", f"{float(found.rbo[a, b]):.3f}", p_value(float(found.rbo_p_corrected[a, b])),
            f"{float(found.spearman[a, b]):+.3f}", p_value(float(found.spearman_p_corrected[a, b])),
        ]
        for a, b in pairs[:most]
    ]  # fmt: skip
    table(["pair", "RBO", "p (Holm)", "Spearman", "p (Holm)"], rows)
