"""`neuropolis proportion` and `neuropolis overlap-study`: how many neurons are tuned, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    By,
    Data,
    Device,
    Dtype,
    Model,
    fail,
    layer_range,
    names,
    open_corpus,
    open_model,
    percent,
    progress,
    say,
    share,
    table,
    wrote,
)
from .continual import planned_accuracy

if TYPE_CHECKING:
    from ..finetune.sweep import Sweep

Out = Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")]
Train = Annotated[str, typer.Option("--train", help="Groups to train on, with commas.")]
Test = Annotated[str, typer.Option("--test", help="Groups to test on that are not trained on, with commas.")]
Shares = Annotated[str, typer.Option("--shares", help="Shares of the neurons, with commas.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Runs of each setting, with seeds from 0.")]
Layers = Annotated[str | None, typer.Option("--layers", help="Only neurons of these layers, such as 2-3.")]
Rate = Annotated[float, typer.Option("--lr", help="Learning rate, the same for every setting.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training rows.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Steps, instead of epochs.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Examples in a step.")]
StopDiverged = Annotated[
    bool, typer.Option("--stop-diverged/--no-stop-diverged", help="Stop when a loss says that training diverged.")
]


def add(app: typer.Typer) -> None:
    app.command(name="proportion", help="Tune more and more neurons: groups trained on against others.")(proportion)
    app.command(name="overlap-study", help="Tune sets of one size that share more and more with other groups'.")(
        overlap_study
    )


def proportion(
    model: Model, data: Data, train: Train, test: Test, out: Out, shares: Shares = "10%,30%,50%,70%,100%",
    seeds: Seeds = 3, layers: Layers = None, lr: Rate = 3e-4, epochs: Epochs = 3, steps: Steps = None,
    batch_size: BatchSize = 16,
    sets: Annotated[str, typer.Option(help="Set of several groups: union (of their sets) or mean (of their scores).")]
    = "union",
    stop_diverged: StopDiverged = True, by: By = None, device: Device = None, dtype: Dtype = None,
) -> None:  # fmt: skip
    from ..finetune.studies import proportion as run

    _study(
        run, model, data, train, test, out, by, device, dtype, layers, shares=_shares(shares), seeds=range(seeds),
        lr=lr, epochs=epochs, steps=steps, batch_size=batch_size, sets=sets, stop_diverged=stop_diverged,
    )  # fmt: skip


def overlap_study(
    model: Model, data: Data, train: Train, test: Test, out: Out, shares: Shares = "10%,30%,50%",
    overlaps: Annotated[str, typer.Option(help="Shares of the set that are the tested groups' own.")]
    = "10%,30%,50%,70%,100%",
    seeds: Seeds = 3, layers: Layers = None, lr: Rate = 3e-4, epochs: Epochs = 3, steps: Steps = None,
    batch_size: BatchSize = 16, stop_diverged: StopDiverged = True, by: By = None, device: Device = None, dtype: Dtype = None,
) -> None:  # fmt: skip
    from ..finetune.studies import overlap_ablation

    _study(
        overlap_ablation, model, data, train, test, out, by, device, dtype, layers, shares=_shares(shares),
        overlaps=_shares(overlaps), seeds=range(seeds), lr=lr, epochs=epochs, steps=steps, batch_size=batch_size,
        stop_diverged=stop_diverged,
    )  # fmt: skip


def show(found: Sweep) -> None:
    """Accuracy on both sides at every setting."""
    say(
        f"accuracy in % on {', '.join(found.in_domain)} (trained on) and {', '.join(found.out_of_domain)} (not), mean over "
        f"{len(found.seeds)} seeds with the 95 % t interval; overlap (Jaccard) of the tuned set with the latter's own, of "
        "which the neurons are counted too; by chance: random sets with as many neurons in every layer"
    )
    sides = [found.interval(groups) for groups in (found.in_domain, found.out_of_domain)]
    places = [[found.groups.index(group) for group in side] for side in (found.in_domain, found.out_of_domain)]
    before = [percent(float(found.untouched[side].mean())) for side in places]
    rows: list[list[Any]] = [["untouched", "-", "-", *before, "-", "-"]]
    for row, setting in enumerate(found.settings):
        cells = [
            f"{percent(float(mean[row]))} ({percent(float(low[row]))} to {percent(float(high[row]))})"
            for mean, low, high in sides
        ]
        shown = _setting(setting)
        rows.append(
            [
                shown, int(found.sizes[row, 0]), "-" if found.tested_sizes is None else int(found.tested_sizes[row]),
                *cells, percent(float(found.jaccard[row].mean())),
                percent(float(found.chance[row])),
            ]
        )  # fmt: skip
    table(["tuned", "neurons", "others' own", "trained groups", "other groups", "overlap", "by chance"], rows)
    if found.by_layer is not None:
        _by_layer(found)


def _by_layer(found: Sweep) -> None:
    say("overlap in each layer in %, and by chance for random sets of these sizes there")
    layers = [
        [f"{percent(float(one))} ({percent(float(chance))})" for one, chance in pair.T]
        for pair in found.by_layer  # pyright: ignore[reportOptionalIterable]
    ]
    settings = [_setting(setting) for setting in found.settings]
    table(["layer", *settings], [[number, *row] for number, row in enumerate(zip(*layers, strict=True))])


def _setting(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else f'{value:.0%}'}" for key, value in setting.items())


def _study(
    run: Any, model: str, data: str, train: str, test: str, out: Path, by: str | None, device: str | None,
    dtype: str | None, layers: str | None, **arguments: Any,
) -> None:  # fmt: skip
    from ..analysis.study import save
    from ..finetune.location import Location
    from ..finetune.recipe import Recipe
    from ..neurons.atlas import check_target

    corpus, chosen = open_corpus(data, by=by), layer_range(layers)
    if not arguments["seeds"]:
        fail("--seeds is a number of runs, expected 1 or more")
    Recipe(**{key: arguments[key] for key in ("lr", "epochs", "steps", "batch_size")})
    where = Location(layers=None if chosen is None else tuple(chosen))
    subject = open_model(model, dtype=dtype, device=device)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    with progress("tuning") as bar:
        found = run(
            subject, corpus, train_on=names(train), test_on=names(test), accuracy=planned_accuracy(),
            location=where, progress=bar, **arguments,
        )  # fmt: skip
    save(out, found, subject=subject)
    show(found)
    wrote(out, then=f"neuropolis info {out}")


def _shares(text: str) -> list[float]:
    return [float(share(part)) for part in names(text)]
