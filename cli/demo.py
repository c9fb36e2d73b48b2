"""`neuropolis demo`: the main job from end to end on the bundled model and corpus."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .console import progress, say, wrote


def add(app: typer.Typer) -> None:
    app.command(name="demo", help="Run the main job from end to end on the bundled model and corpus.")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the atlas, the delta and the report.")] = Path("demo"),
    controls: Annotated[int, typer.Option(help="Matched random sets per culture.")] = 20,
    group: Annotated[
        str, typer.Option(help="The new culture to learn: ethiopia, georgia, thailand or vietnam.")
    ] = "thailand",
) -> None:
    from ..analysis.ablate import ablate
    from ..analysis.choices import answer_correct
    from ..analysis.overlap import overlap
    from ..analysis.similarity import similarity
    from ..analysis.study import save
    from ..attribution.attribute import attribute
    from ..attribution.selection import select
    from ..figures.report import report
    from ..finetune.retention import compare_tuning
    from ..finetune.training import finetune
    from . import ablate as ablating
    from . import compare, tune
    from .console import open_corpus, open_model

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    subject, corpus = open_model("bundled:polis"), open_corpus("bundled:polis")
    new = open_corpus("bundled:polis-new").only(group)
    say(
        f"model {subject.name}: {subject.num_parameters:,} parameters; corpus: {len(corpus)} questions of {len(corpus.groups)} cultures"
    )

    say("\n1. locate: which neurons does each culture depend on? (training questions)")
    with progress("scoring") as bar:
        scores = attribute(subject, corpus, progress=bar)
    sets = select(scores, top=0.01, contrast="others")
    for culture, neurons in sets.items():
        say(f"{culture:>8}: {len(neurons)} neurons, by layer {neurons.per_layer.tolist()}")

    say("\n2. ablate: what happens when they are switched off? (test questions, asked in ways never trained on)")
    with progress("ablating") as bar:
        effects = ablate(subject, corpus, sets, controls=controls, progress=bar)
    ablating.show(effects)

    say(f"\n3. tune: learn {group} with 5 % of the FFN neurons, with as many random ones, and with all parameters")
    chosen = select(attribute(subject, new), top=0.05)[group]
    recipe = {"epochs": tune.EPOCHS, "batch_size": tune.BATCH_SIZE}
    delta = finetune(subject, new, chosen, lr=tune.SLICE_RATE, **recipe)
    with progress("tuning"):
        retention = compare_tuning(
            subject, new, corpus, chosen, group=group, accuracy=answer_correct, methods=("neurons", "random", "full"),
            lr=tune.SLICE_RATE, full_lr=tune.FULL_RATE, **recipe,
        )  # fmt: skip
    tune.show(retention)

    say("\n4. compare: do the sets overlap more than by chance, and are their parameters alike?")
    shared = overlap(sets)
    alike = similarity(subject, sets)
    compare.show_overlap(shared)
    compare.show_similarity(alike)

    say(f"\n5. keep: atlas, delta, report ({time.monotonic() - began:.0f} s in all)")
    study = save(out / "study.h5", scores, sets, effects, shared, alike, retention, subject=subject)
    say(f"wrote {study}")
    wrote(delta.save(out / f"{group}-delta"))
    wrote(report(study, out / "report.html"), then=f"neuropolis info {study}")
