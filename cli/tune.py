"""`neuropolis tune`: train only a set's neurons on a group."""

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
    chosen_split,
    fail,
    open_corpus,
    open_model,
    percent,
    progress,
    say,
    table,
    wrote,
)  # fmt: skip

if TYPE_CHECKING:
    from ..finetune.retention import Retention


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
    weight_decay: Annotated[float, typer.Option(help="AdamW's; it acts on the slice alone.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the order of examples.")] = 0,
    by: By = None,
    split: Split = "auto",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.choices import answer_correct
    from ..analysis.study import load, save
    from ..finetune.retention import compare_tuning
    from ..finetune.training import finetune

    corpus = open_corpus(data, by=by).only(group)
    opened = load(study)
    neurons = opened.get("set", group)
    if out.exists() and not (out / "config.json").is_file():
        fail(f"{out} exists and is not a delta; choose another --out")
    subject = open_model(model, dtype=dtype, device=device)
    opened.check(subject)
    training = {"epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay, "seed": seed}
    with progress(f"tuning {len(neurons)} neurons") as bar:
        delta = finetune(subject, corpus, neurons, lr=lr, split=chosen_split(split), progress=bar, **training)
    delta.save(out)
    say(
        f"{delta.num_parameters} of {subject.num_parameters} parameters trained in {len(delta.history)} steps, "
        f"loss {delta.history[0]:.3f} to {delta.history[-1]:.3f}"
    )
    if old is not None:
        retention = compare_tuning(
            subject, corpus, open_corpus(old, by=by), neurons, group=group, accuracy=answer_correct,
            methods=("neurons", "random", "full"), lr=lr, full_lr=full_lr, trained={"neurons": delta},
            split=chosen_split(split), **training,
        )  # fmt: skip
        save(study, retention, subject=subject)
        show(retention)
        wrote(study)
    wrote(out, then=f"neuropolis report {study} --out report.html")


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
