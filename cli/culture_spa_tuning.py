"""`neuropolis culture-spa tune` and `evaluate`: learn what was collected, and see whose values the answers are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    DATA_HELP,
    Device,
    Dtype,
    fail,
    open_corpus,
    open_model,
    percent,
    progress,
    say,
    several,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..analysis.value_alignment import Alignment
    from ..corpora.examples import Corpus
    from ..finetune.culture_spa.tuning import Tuned
    from ..neurons.sets import NeuronSet
    from ..neurons.subject import Subject


def add(app: typer.Typer) -> None:
    for name, verb in {"tune": tune, "evaluate": evaluate}.items():
        app.command(name=name, help=(verb.__doc__ or "").splitlines()[0])(verb)


def tune(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or bundled:polis.")],
    data: Annotated[str, typer.Option("--data", help="What culture-spa collect wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for what is trained.")],
    way: Annotated[str, typer.Option(help="lora, full, or neurons (with --study).")] = "lora",
    each: Annotated[bool, typer.Option("--each/--joint", help="One for each culture, or one for all.")] = False,
    study: Annotated[Path | None, typer.Option(help="Atlas with a set for every culture.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA adapters.")] = 8,
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default the way's own.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the instances.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Instances in a step.")] = 128,
    accumulate: Annotated[int, typer.Option(help="Parts that a step is computed in, to save memory.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the order and of the adapters.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Learn the collected instances, all cultures together or each on its own."""
    from ..finetune.culture_spa.tuning import RATES, tune_cultures
    from ..finetune.recipe import Recipe

    corpus = open_corpus(data)
    if way not in RATES:
        fail(f"unknown way of tuning {way!r}; expected {', '.join(RATES)}")
    recipe = Recipe(lr or RATES[way], epochs=epochs, batch_size=batch_size, accumulate=accumulate, seed=seed)
    sets = _sets(study, corpus) if way == "neurons" else None
    tune_cultures(
        open_model(model, dtype=dtype, device=device), corpus, out, way=way, each=each, sets=sets, rank=rank, recipe=recipe,  # pyright: ignore[reportArgumentType]
        tell=lambda member, count: say(f"tuned {member}: {count} numbers trained"),
    )  # fmt: skip
    wrote(
        out, then=f"neuropolis culture-spa evaluate --model {model} --tuned {out} --survey SURVEY --answers tuned.jsonl"
    )


def evaluate(
    survey: Annotated[Path, typer.Option("--survey", help="Folder with the survey's files.")],
    answers: Annotated[Path, typer.Option("--answers", help="File of answers; what is missing in it is asked first.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Model to ask; without one the answers are scored as they are.")
    ] = None,
    tuned: Annotated[Path | None, typer.Option(help="What culture-spa tune wrote.")] = None,
    asking: Annotated[str, typer.Option(help="unaware, aware or thinking.")] = "aware",
    culture: Annotated[list[str] | None, typer.Option("--culture", help="Only these cultures.")] = None,
    general: Annotated[str | None, typer.Option(help="What the model should still know. " + DATA_HELP)] = None,
    study: Annotated[Path | None, typer.Option(help="Atlas to write the scores to.")] = None,
    name: Annotated[str, typer.Option(help="Name of the scores in the atlas.")] = "alignment",
    config: Annotated[Path | None, typer.Option("--config", help="TOML with cultures, topics and wording.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens with this share.")] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a reply.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the replies.")] = 42,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Score answers to the survey's own questions against each culture's majority."""
    from ..analysis.value_alignment import alignment
    from ..attribution.generators import LocalGenerator, Sampling
    from ..finetune.culture_spa.answers import answer_questions, answers_by_culture, read_answers
    from ..finetune.culture_spa.tuning import answer_tuned, load_tuned
    from .culture_spa import going_on, opened_survey, told

    opened = opened_survey(survey, config)
    keys = several(culture, "") if culture else list(opened.cultures)
    if model is None and (tuned or general or study):
        fail("--tuned, --general and --study are about a model; name it with --model")
    subject = None if model is None else open_model(model, dtype=dtype, device=device)
    parts = None if tuned is None else load_tuned(tuned)
    if subject is not None:
        with going_on(answers), progress("answering") as bar:
            common = {
                "cultures": keys, "sampling": Sampling(temperature, top_p, max_new_tokens), "batch_size": batch_size,
                "seed": seed, "tell": told, "progress": bar,
            }  # fmt: skip
            if parts is None:
                speaker = LocalGenerator(subject, batch_size)
                answer_questions(opened, opened.questions, speaker, answers, askings=(asking,), **common)  # pyright: ignore[reportArgumentType]
            else:
                answer_tuned(subject, parts, opened, answers, asking=asking, rows=batch_size, **common)  # pyright: ignore[reportArgumentType]
    said = answers_by_culture(opened, read_answers(answers), asking=asking, cultures=keys)  # pyright: ignore[reportArgumentType]
    found = alignment(opened, said, subject=subject.fingerprint if subject else "")
    show(found)
    if subject is not None and general is not None:
        _general(subject, parts, open_corpus(general))
    if study is not None:
        from ..analysis.study import save

        save(study, **{name: found}, subject=subject)
        wrote(study)
    wrote(answers)


def show(found: Alignment) -> None:
    """Scores by culture with their valid counts."""
    say(
        "alignment with each culture's majority (100: the same answers), 95% interval, and what answers without values get"
    )
    rows = [
        [group, f"{value:.2f}", f"{low:.2f} to {high:.2f}", f"{chance:.2f}", f"{middle:.2f}", f"{valid} of {asked}"]
        for group, value, low, high, chance, middle, valid, asked in zip(
            found.groups,
            found.values,
            found.low,
            found.high,
            found.chance,
            found.middle,
            found.valid,
            found.asked,
            strict=True,
        )
    ]
    total = f"{int(found.valid.sum())} of {int(found.asked.sum())}"
    table(
        ["culture", "alignment", "95% interval", "random", "middle", "valid answers"],
        [
            *rows,
            [
                "mean",
                f"{found.mean:.2f}",
                "",
                f"{float(found.chance.mean()):.2f}",
                f"{float(found.middle.mean()):.2f}",
                total,
            ],
        ],
    )


def _sets(study: Path | None, corpus: Corpus) -> Mapping[str, NeuronSet]:
    from ..analysis.study import load

    if study is None:
        fail(
            "tuning neurons needs their sets; locate and select them on the instances, and give the atlas with --study"
        )
    opened = load(study)
    return {group: opened.get("set", group) for group in corpus.groups}


def _general(subject: Subject, parts: Tuned | None, corpus: Corpus) -> None:
    """Accuracy by lowest-loss choice on what the model should still know, before and after."""
    from ..analysis.choices import answer_correct, encode_choices

    plan = encode_choices(subject, corpus.part("auto", auto="test"))
    before = float(answer_correct(subject, plan).float().mean())
    say(f"general ability: {percent(before)} % of {len(plan)} questions of {corpus.name} right before tuning")
    for member in parts.members if parts else ():
        assert parts is not None
        with parts.applied(subject, member):
            after = float(answer_correct(subject, plan).float().mean())
        say(f"  {member}: {percent(after)} % after, {100 * (before - after):+.1f} points lost")
