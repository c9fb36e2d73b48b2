"""`neuropolis tune`: train only a set's neurons on a group."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    By,
    Data,
    Device,
    Dtype,
    Model,
    Split,
    chosen_split,
    fail,
    open_corpus,
    open_model,
    percent,
    progress,
    say,
    stopped,
    table,
    wrote,
)  # fmt: skip

if TYPE_CHECKING:
    from ..corpora.examples import Corpus
    from ..finetune.delta import Delta
    from ..finetune.retention import Retention
    from ..neurons.sets import NeuronSet
    from ..neurons.subject import Subject

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="File that keeps the run. Where it is there, the run goes on from it; removed when all is saved."
    ),
]
RESUME_HELP = "With a checkpoint there: same (the same run only), changed (with other arguments), never (start over)."


def add(app: typer.Typer) -> None:
    app.command(name="tune", help="Train only the neurons of a group's set; everything else stays bit for bit.")(tune)


def tune(
    model: Model,
    data: Data,
    study: Annotated[Path, typer.Option("--study", help="Atlas that holds the set.")],
    group: Annotated[str, typer.Option(help="Train this group's set on this group's examples.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the delta.")],
    old: Annotated[
        str | None, typer.Option(help="Corpus of what the model knew: measure forgetting, beside full fine-tuning.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of the slice.")] = 3e-4,
    full_lr: Annotated[float, typer.Option(help="Learning rate of full fine-tuning (with --old).")] = 3e-5,
    epochs: Annotated[int, typer.Option(help="Passes over the examples.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Examples in a step.")] = 16,
    accumulate: Annotated[int, typer.Option(help="Parts that a step is computed in, to save memory.")] = 1,
    precision: Annotated[str, typer.Option(help="model (its own dtype) or bf16 (products in bfloat16).")] = "model",
    weight_decay: Annotated[float, typer.Option(help="AdamW's; it acts on the slice alone.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the order of examples.")] = 0,
    eval_split: Annotated[str | None, typer.Option(help="Follow the loss of the rows of this split, e.g. dev.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower held-out loss; keep the lowest.")
    ] = None,
    stop_diverged: Annotated[bool, typer.Option(help="Stop a run whose loss says that it diverged.")] = True,
    checkpoint: Checkpoint = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    resume: Annotated[str, typer.Option(help=RESUME_HELP)] = "same",
    export: Annotated[Path | None, typer.Option(help="Folder for the tuned model as a plain checkpoint.")] = None,
    peft: Annotated[Path | None, typer.Option(help="Folder for the delta as a PEFT adapter.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture of the loss by step: .svg, .png or .pdf.")] = None,
    by: By = None,
    split: Split = "auto",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.study import load
    from ..finetune.delta_files import delta_target, folder_for
    from ..finetune.processes import own_device
    from ..finetune.recipe import Recipe

    corpus = open_corpus(data, by=by).only(group)
    known = None if old is None else _known(old, by, group)
    opened = load(study)
    neurons = opened.get("set", group)
    delta_target(out)
    for folder, what in ((export, "the checkpoint"), (peft, "the adapter")):
        if folder is not None:
            folder_for(folder, what)
    if peft is not None and neurons.site == "expert":
        fail("PEFT has no form for single units of experts; leave --peft out, --export writes a plain checkpoint")
    if figure is not None:
        from ..figures.saving import check_figure_path

        check_figure_path(figure)
    training: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay, "seed": seed,
        "accumulate": accumulate, "precision": precision, "stop_diverged": stop_diverged,
    }  # fmt: skip
    Recipe(lr, **training)
    if checkpoint is None and resume != "same":
        fail(f"--resume {resume} says what to do about a checkpoint; name it with --checkpoint FILE")
    subject = open_model(model, dtype=dtype, device=device or own_device())
    opened.check(subject)
    followed = {"eval_split": eval_split, "patience": patience}
    kept = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "resume": resume}
    training["split"] = chosen_split(split)
    delta = _trained(subject, corpus, neurons, {"lr": lr, **training, **followed, **kept})
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes, the first one writes
        return
    delta.save(out)
    _tell(delta, subject)
    if export is not None:
        wrote(delta.export(subject, export))
    if peft is not None:
        wrote(delta.export_peft(subject, peft))
    if figure is not None:
        _draw(delta, figure)
    if checkpoint is not None:
        checkpoint.unlink()
    if known is not None:
        _measure(subject, corpus, known, neurons, group, study, {"neurons": delta}, lr, full_lr, training)
    wrote(out, then=f"neuropolis report {study} --out report.html")


def _known(old: str, by: str | None, group: str) -> Corpus:
    """The corpus of what the model knew, checked before anything is trained."""
    known = open_corpus(old, by=by)
    if group in known.groups:
        fail(f"group {group!r} is in {old} too; --old is for groups other than the one that is learned")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fail("--old measures in one process; train with several first, then give the command without torchrun")
    return known


def _trained(subject: Subject, corpus: Corpus, neurons: NeuronSet, training: dict[str, Any]) -> Delta:
    from ..finetune.checkpoints import read_header
    from ..finetune.training import finetune

    path = training["checkpoint"]
    try:
        if int(os.environ.get("RANK", "0")) > 0:
            return finetune(subject, corpus, neurons, **training)
        with progress(f"tuning {len(neurons)} neurons") as bar:
            return finetune(subject, corpus, neurons, **training, progress=bar)
    except KeyboardInterrupt:
        if path is None:
            stopped("nothing was written; with --checkpoint FILE a run can go on where it stopped")
        if not path.exists():
            stopped(f"before the first checkpoint; {path} was not written, give the same command to start over")
        header = read_header(path)
        stopped(f"{path} holds step {header['step']} of {header['num_steps']}; give the same command again to go on")


def _tell(delta: Delta, subject: Subject) -> None:
    """What was trained, in a line or two."""
    say(
        f"{delta.num_parameters} of {subject.num_parameters} parameters trained in {len(delta.history)} steps, "
        f"loss {delta.history[0]:.3f} to {delta.history[-1]:.3f}"
    )
    told = delta.origin.get("held_out")
    if told is not None:
        losses = dict(map(tuple, told["losses"]))
        best = told["best_step"]
        kept = "kept" if delta.origin["recipe"]["patience"] is not None else "not kept without --patience"
        say(f"held-out loss {losses[0]:.3f} before, lowest {losses[best]:.3f} after step {best} ({kept})")


def _draw(delta: Delta, path: Path) -> None:
    from ..figures.saving import save_figure
    from ..figures.training import training

    wrote(save_figure(training(delta), path))


def _measure(
    subject: Subject,
    corpus: Corpus,
    known: Corpus,
    neurons: NeuronSet,
    group: str,
    study: Path,
    trained: dict[str, Delta],
    lr: float,
    full_lr: float,
    training: dict[str, Any],
) -> None:
    from ..analysis.choices import answer_correct
    from ..analysis.study import save
    from ..finetune.retention import compare_tuning

    retention = compare_tuning(
        subject, corpus, known, neurons, group=group, accuracy=answer_correct, methods=("neurons", "random", "full"),
        lr=lr, full_lr=full_lr, trained=trained, **training,
    )  # fmt: skip
    save(study, retention, subject=subject)
    show(retention)
    wrote(study)


def show(retention: Retention) -> None:
    """What each method learned and forgot."""
    new = retention.groups.index(retention.group)
    old = [retention.groups.index(g) for g in retention.trained_groups]
    say(f"accuracy in %: on {retention.group} (new) and on the mean of {len(old)} groups that the model knew")
    table(
        ["trained", "numbers", "new before", "new after", "95% interval", "known before", "known after", "forgotten"],
        [
            [
                {"neurons": "the set's neurons", "random": "random neurons", "full": "all parameters"}[name],
                int(retention.trainable[m]), percent(float(retention.before[new])), percent(float(retention.after[m, new])),
                f"{percent(float(retention.after_low[m, new]))} to {percent(float(retention.after_high[m, new]))}",
                percent(float(retention.before[old].mean())), percent(float(retention.after[m, old].mean())),
                percent(float(retention.forgetting[m])),
            ]
            for m, name in enumerate(retention.methods)
        ],
    )  # fmt: skip
