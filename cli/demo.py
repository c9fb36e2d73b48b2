"""`neuropolis demo`: the main job from end to end on the bundled model and corpus."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import ablate as ablating
from . import compare as comparing
from . import tune as tuning
from .console import open_corpus, open_model, progress, say, wrote

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..corpora.examples import Corpus
    from ..finetune.delta import Delta
    from ..finetune.retention import Retention
    from ..neurons.sets import NeuronSet
    from ..neurons.subject import Subject

# From the dev split: rates at which each way learns nearly all it can and forgets little (docs/first-results.md).
SLICE_RATE, FULL_RATE, EPOCHS = 3e-4, 5e-5, 10
WORDING = "t7"  # one of the two test wordings of every topic, so that the demo takes minutes
MAX_TOKENS = 1024


def add(app: typer.Typer) -> None:
    app.command(name="demo", help="Run the main job from end to end on the bundled model and corpus.")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the atlas, the delta and the report.")] = Path("demo"),
    controls: Annotated[int, typer.Option(help="Matched random sets per culture.")] = 5,
    group: Annotated[str, typer.Option(help="The new culture: ethiopia, georgia, thailand or vietnam.")] = "thailand",
    quick: Annotated[
        bool, typer.Option("--quick", help="Three cultures, one control, one epoch: whether everything runs, no more.")
    ] = False,
) -> None:
    from ..analysis.overlap import overlap
    from ..analysis.similarity import similarity
    from ..analysis.study import save
    from ..attribution.attribute import attribute
    from ..attribution.selection import select
    from ..figures.report import report

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    subject, corpus = open_model("bundled:polis"), open_corpus("bundled:polis")
    new = open_corpus("bundled:polis-new").only(group)
    epochs = EPOCHS
    if quick:
        corpus, controls, epochs = corpus.only(corpus.groups[:3]), 1, 1
    say(f"model {subject.name}: {subject.num_parameters:,} parameters")
    say(f"corpus {corpus.name}: {len(corpus)} questions of {len(corpus.groups)} cultures in three languages")

    say(
        "\n1. locate: which neurons does each culture depend on? (training questions; top 1 %, contrast with the others)"
    )
    with progress("scoring") as bar:
        scores = attribute(subject, corpus, progress=bar)
    sets = select(scores, top=0.01, contrast="others")
    for culture, neurons in sets.items():
        say(f"{culture:>8}: {len(neurons)} neurons, by layer {neurons.per_layer.tolist()}")

    say("\n2. ablate: what happens when they are switched off? (test questions, in wordings never trained on)")
    effects = _ablated(subject, corpus, sets, controls)
    ablating.show(effects)

    say(f"\n3. tune: learn {group} with 5 % of the FFN neurons, with as many random ones, and with all parameters")
    delta, retention = _tuned(subject, corpus, new, group, epochs)
    tuning.show(retention)

    say("\n4. compare: do the sets overlap more than by chance, and are their parameters alike?")
    shared, alike = overlap(sets), similarity(subject, sets)
    comparing.show_overlap(shared)
    comparing.show_similarity(alike)

    say(f"\n5. keep: atlas, delta and report ({time.monotonic() - began:.0f} s until here)")
    study = save(out / "study.h5", scores, sets, effects, shared, alike, retention, subject=subject)
    wrote(study)
    wrote(delta.save(out / f"{group}-delta"))
    wrote(report(study, out / "report.html"), then=f"neuropolis info {study}")


def _ablated(subject: Subject, corpus: Corpus, sets: dict[str, NeuronSet], controls: int) -> Effects:
    from ..analysis.ablate import ablate

    asked = corpus.only(split="test", template=WORDING)
    with progress("ablating") as bar:
        return ablate(subject, asked, sets, controls=controls, max_tokens=MAX_TOKENS, progress=bar)


def _tuned(subject: Subject, known: Corpus, new: Corpus, group: str, epochs: int) -> tuple[Delta, Retention]:
    """Train the upper layers' neurons that the new culture uses more than the known ones do."""
    from ..analysis.choices import answer_correct
    from ..attribution.attribute import attribute
    from ..attribution.selection import select
    from ..finetune.retention import compare_tuning
    from ..finetune.training import finetune

    upper = range(subject.num_layers // 2, subject.num_layers)
    with progress("scoring new and known") as bar:
        scores = attribute(subject, known + new, progress=bar)
    neurons = select(scores, top=0.05, contrast="others", layers=upper)[group]
    with progress(f"tuning {len(neurons)} neurons") as bar:
        delta = finetune(subject, new, neurons, lr=SLICE_RATE, epochs=epochs, progress=bar)
    with progress("tuning the others") as bar:
        retention = compare_tuning(
            subject, new, known, neurons, group=group, accuracy=answer_correct, methods=("neurons", "random", "full"),
            lr=SLICE_RATE, full_lr=FULL_RATE, epochs=epochs, trained={"neurons": delta}, progress=bar,
        )  # fmt: skip
    return delta, retention
