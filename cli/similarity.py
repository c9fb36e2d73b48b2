"""`neuropolis similarity`: parameters of sets by layer, before and after training, and against measured transfer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compare import show_similarity
from .console import (
    Device,
    Memory,
    Offload,
    StudyFile,
    fail,
    key_pairs,
    open_model,
    p_value,
    say,
    several_groups,
    table,
    wrote,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..analysis.movement import Movement
    from ..analysis.similarity import Similarity
    from ..analysis.transfer import Transfer
    from ..neurons.subject import Subject


def add(app: typer.Typer) -> None:
    app.command(name="similarity", help="Parameter similarity of sets by layer, with every choice an option.")(
        similarity
    )


def similarity(
    study: StudyFile,
    model: Annotated[str | None, typer.Option(help="Where the model is, when not where the study says.")] = None,
    after: Annotated[
        str | None, typer.Option(help="A checkpoint trained from the model, or a delta: compare before and after.")
    ] = None,
    deltas: Annotated[
        bool, typer.Option("--deltas", help="With --after: compare what training changed, not the weights.")
    ] = False,
    align: Annotated[str, typer.Option(help="mean, pairs, index, score or match.")] = "mean",
    matrices: Annotated[str | None, typer.Option(help="gate, up, down, with commas; by default all.")] = None,
    center: Annotated[bool, typer.Option("--center", help="Take the mean of a layer's neurons off first.")] = False,
    gains: Annotated[
        Path | None,
        typer.Option(
            help="Study with a continual run of these groups, or a CSV (row learned, column asked), to hold similarity against."
        ),
    ] = None,
    each: Annotated[
        list[str] | None,
        typer.Option(
            help="With --gains: the checkpoint or delta trained on each group; similarity is then taken in each.",
            metavar="GROUP=CHECKPOINT",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="With --gains: the method whose transfer is taken.")] = "per-task",
    controls: Annotated[int, typer.Option(help="Matched random sets per set.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the controls.")] = 0,
    device: Device = None,
    offload: Offload = None,
    memory: Memory = None,
) -> None:
    from ..analysis.movement import movement
    from ..analysis.similarity import similarity as measure
    from ..analysis.study import load, save
    from ..analysis.trained import similarity_in_each as in_each
    from ..analysis.transfer import transfer

    opened = load(study)
    sets = opened.sets
    if after is None or gains is not None:
        several_groups(list(sets), study, "compared")
    models = _each(list(sets), each, gains)
    measured = None if gains is None else _gains(list(sets), gains, method)
    subject = open_model(model or str(opened.subject.get("name", "")), device=device, offload=offload, memory=memory)
    opened.check(subject)
    parts = None if matrices is None else [one.strip() for one in matrices.split(",")]
    scores = opened.scores if align == "score" else None
    loaders = {group: partial(_trained, place, subject, device) for group, place in models.items()}
    trained = None if after is None else _trained(after, subject, device)
    options = {
        "align": align,
        "matrices": parts,
        "center": center,
        "scores": scores,
        "controls": controls,
        "seed": seed,
    }
    found: dict[str, Similarity] = {}
    kept: list[Any] = []
    if len(sets) > 1:
        found["similarity"] = measure(subject, sets, **options)  # pyright: ignore[reportArgumentType]
        show_similarity(found["similarity"])
    if trained is not None:
        if len(sets) > 1:
            found["after"] = measure(trained, sets, base=subject, of="deltas" if deltas else "weights", **options)  # pyright: ignore[reportArgumentType]
            say(f"{'what training changed' if deltas else 'the same'} in {after}:")
            show_similarity(found["after"])
        moved = movement(subject, trained, sets, matrices=parts, controls=controls, seed=seed)
        show_movement(moved)
        kept.append(moved)
    if measured is not None:
        alike = found["similarity"] if not models else in_each(loaders, sets, base=subject, **options)
        given = _is_table(gains)
        source = str(gains) if given else f"{gains}, {method}"
        helped = transfer(alike, measured, given=given, seed=seed, source=source)
        show_transfer(helped)
        kept.append(helped)
    save(study, found, *kept, subject=subject)
    wrote(study, then=f"neuropolis report {study} --out report.html")


def _trained(name: str, subject: Subject, device: str | None) -> Subject:
    """The checkpoint of that name, or the model with the delta in that folder merged into a copy."""
    from ..finetune.delta_files import load_delta

    if (Path(name) / "delta.safetensors").is_file():
        return load_delta(name, subject=subject).merge(subject)
    return open_model(name, device=device)


def _each(groups: list[str], given: list[str] | None, gains: Path | None) -> dict[str, str]:
    """Where the model trained on each group is."""
    models = key_pairs(given, "--each", "GROUP=CHECKPOINT")
    if models and gains is None:
        fail("--each holds similarity in each trained model against what was measured of it; name that with --gains")
    if models and (missing := [group for group in groups if group not in models]):
        fail(f"--each names no checkpoint for {', '.join(missing)}; expected one for each of {', '.join(groups)}")
    return models


def _is_table(path: Path | None) -> bool:
    """Whether performance is given in a file of the user's, not in a study."""
    return path is not None and path.suffix.lower() in (".csv", ".tsv", ".json")


def _gains(groups: list[str], path: Path, method: str) -> Tensor:
    """The measured gains of these groups [learned, asked], checked before anything is computed."""
    from ..analysis.distances import load_performance
    from ..analysis.study import load
    from ..analysis.transfer import measured_gains

    if len(groups) < 3:
        fail(f"the study has the sets {', '.join(groups)}; a correlation with transfer needs three tasks or more")
    if _is_table(path):
        return load_performance(path, groups)
    result = load(path).continual
    missing = [group for group in groups if group not in result.tasks]
    if missing:
        fail(
            f"{path} has no task {', '.join(missing)}; its tasks are {', '.join(result.tasks)}: select sets of these tasks"
        )
    places = [result.tasks.index(group) for group in groups]
    return measured_gains(result, method=method)[places][:, places]


def show_movement(found: Movement) -> None:
    """How far each set moved, over all layers that hold some of it, beside its controls."""
    say("change of the sets' parameters, |after - before| / |before|, mean over layers; by matched random sets")
    rows = [
        [name, f"{float(change.nanmean()):.4f}", f"{float(random.nanmean()):.4f}", f"{float(cosine.nanmean()):.4f}"]
        for name, change, random, cosine in zip(
            found.groups, found.change, found.control_change, found.cosine, strict=True
        )
    ]
    table(["set", "change", "random sets", "cosine"], rows)


def show_transfer(found: Transfer) -> None:
    """The correlation over all layers."""
    for name, (r, low, high, p, *_) in zip(("Pearson", "Spearman"), found.overall.tolist(), strict=True):
        if r != r:
            say(
                f"{name}: nothing to correlate; gains or similarities do not vary, or one of them is missing for some pair"
            )
            continue
        say(
            f"similarity of parameters and transfer over {len(found.groups)} tasks: {name} {r:+.2f}, 95 % interval {low:+.2f} to "
            f"{high:+.2f} (bootstrap over tasks), p {p_value(p)}"
        )
