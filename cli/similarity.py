"""`neuropolis similarity`: parameters of sets by layer, before and after training, and against measured transfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .compare import show_similarity
from .console import Device, Memory, Offload, StudyFile, open_model, p_value, say, table, wrote

if TYPE_CHECKING:
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
        Path | None, typer.Option(help="Study with a continual run of these groups, to hold similarity against.")
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

    opened = load(study)
    sets = opened.sets
    subject = open_model(model or str(opened.subject.get("name", "")), device=device, offload=offload, memory=memory)
    opened.check(subject)
    parts = None if matrices is None else [one.strip() for one in matrices.split(",")]
    scores = opened.scores if align == "score" else None
    trained = None if after is None else _trained(after, subject, device)
    options = {
        "align": align,
        "matrices": parts,
        "center": center,
        "scores": scores,
        "controls": controls,
        "seed": seed,
    }
    found = {"similarity": measure(subject, sets, **options)}  # pyright: ignore[reportArgumentType]
    show_similarity(found["similarity"])
    if trained is not None:
        found["after"] = measure(trained, sets, base=subject, of="deltas" if deltas else "weights", **options)  # pyright: ignore[reportArgumentType]
        say(f"{'what training changed' if deltas else 'the same'} in {after}:")
        show_similarity(found["after"])
        moved = movement(subject, trained, sets, matrices=parts, controls=controls, seed=seed)
        show_movement(moved)
        save(study, found, moved, subject=subject)
    if gains is not None:
        helped = _transfer(found["similarity"], gains, method, seed)
        show_transfer(helped)
        save(study, helped)
    save(study, found, subject=subject)
    wrote(study, then=f"neuropolis report {study} --out report.html")


def _trained(name: str, subject: Subject, device: str | None) -> Subject:
    """The checkpoint of that name, or the model with the delta in that folder merged into a copy."""
    from ..finetune.delta_files import load_delta

    if (Path(name) / "delta.safetensors").is_file():
        return load_delta(name, subject=subject).merge(subject)
    return open_model(name, device=device)


def _transfer(alike: Similarity, path: Path, method: str, seed: int) -> Transfer:
    from ..analysis.study import load
    from ..analysis.transfer import measured_gains, transfer
    from ..neurons.errors import SetError

    result = load(path).continual
    missing = [group for group in alike.groups if group not in result.tasks]
    if missing:
        raise SetError(
            f"{path} has no task {', '.join(missing)}; its tasks are {', '.join(result.tasks)}: select sets of these tasks"
        )
    places = [result.tasks.index(group) for group in alike.groups]
    gains = measured_gains(result, method=method)[places][:, places]
    return transfer(alike, gains, seed=seed, source=f"{path}, {method}")


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
        say(
            f"similarity of parameters and transfer over {len(found.groups)} tasks: {name} {r:+.2f}, 95 % interval {low:+.2f} to "
            f"{high:+.2f} (bootstrap over tasks), p {p_value(p)}"
        )
