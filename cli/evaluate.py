"""`neuropolis evaluate`: tasks of lm-evaluation-harness, intact, with sets switched off, and tuned."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    By,
    Device,
    Dtype,
    Model,
    Split,
    chosen_split,
    fail,
    open_corpus,
    open_model,
    p_value,
    progress,
    say,
    several,
    table,
    wrote,
)
from .effects import Factor, KindName, MatchBy, references, scores_to_match

if TYPE_CHECKING:
    from ..analysis.evaluation import Evaluation
    from ..neurons.sets import NeuronSet

TASKS_HELP = "Tasks of lm-evaluation-harness: names with commas, or YAML files. Repeat the option for more."
OFF_HELP = "Switch off a set: FILE:GROUP, or FILE for each of its sets. Each is a run of its own; repeat for more."
ASK_HELP = "With --corpus: choices (accuracy), answer (likelihood), generate (exact match) or text (perplexity)."


def add(app: typer.Typer) -> None:
    app.command(name="evaluate", help="Run lm-evaluation-harness tasks: intact, with sets switched off, tuned.")(
        evaluate
    )


def evaluate(
    model: Model,
    tasks: Annotated[list[str] | None, typer.Option("--tasks", help=TASKS_HELP)] = None,
    corpus: Annotated[str | None, typer.Option(help="Or a corpus as a task: a .jsonl file or bundled:polis.")] = None,
    ask: Annotated[str, typer.Option(help=ASK_HELP)] = "choices",
    per_group: Annotated[bool, typer.Option("--per-group", help="With --corpus: one task for each group.")] = False,
    write: Annotated[Path | None, typer.Option(help="With --corpus: keep the task's files in this folder.")] = None,
    off: Annotated[list[str] | None, typer.Option("--off", help=OFF_HELP)] = None,
    delta: Annotated[list[Path] | None, typer.Option("--delta", help="Folder of a delta: a run tuned by it.")] = None,
    controls: Annotated[int, typer.Option(help="Runs with matched random sets, for each set.")] = 0,
    match: MatchBy = "layer",
    kind: KindName = "zero",
    factor: Factor = 2.0,
    reference: Annotated[
        str | None, typer.Option(help="Corpus that mean, resample and noise draw from, and --match activation.")
    ] = None,
    reference_group: Annotated[
        str | None, typer.Option("--reference-group", help="Only this group of it (or of --corpus).")
    ] = None,
    include: Annotated[list[Path] | None, typer.Option(help="Folder with YAML files of further tasks.")] = None,
    limit: Annotated[float | None, typer.Option(help="Documents of each task: a number, or a share below 1.")] = None,
    fewshot: Annotated[int | None, typer.Option(help="Solved examples before each question.")] = None,
    batch_size: Annotated[int, typer.Option(help="Requests in a batch.")] = 8,
    study: Annotated[Path | None, typer.Option(help="Atlas to write to; by default that of the first --off.")] = None,
    name: Annotated[str, typer.Option(help="Name of the result in the atlas.")] = "evaluation",
    by: By = None,
    split: Split = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the controls and of drawn activations.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars would run through ours
    from ..analysis.harness import evaluate as measure
    from ..analysis.harness_loading import the_harness
    from ..analysis.study import load, save
    from ..neurons.atlas import check_target
    from ..neurons.interventions import check_words

    asked: list[Any] = several(tasks, "") if tasks else []
    if not asked and corpus is None:
        fail("nothing to evaluate; give --tasks (names or YAML files) or --corpus (a .jsonl file, bundled:polis)")
    the_harness()
    check_words(kind)
    sets = _sets(off or [])
    deltas = _deltas(delta or [])
    target = study or (Path(_parted(off[0])[0]) if off else None)
    subject = open_model(model, dtype=dtype, device=device)
    if target is not None:
        check_target(target, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    sites = list(dict.fromkeys(one.site for one in sets.values()))
    known = references(
        subject, None if corpus is None else open_corpus(corpus, by=by), kind, source=reference, group=reference_group,
        sites=sites, option="--corpus", matched=match == "activation",
    )  # fmt: skip
    first = load(_parted(off[0])[0]) if off else None
    with tempfile.TemporaryDirectory() as scratch, progress("evaluating") as bar:
        if corpus is not None:
            asked.append(_task(corpus, by, write or Path(scratch), ask, per_group, split))
        found = measure(
            subject, asked, off=sets, deltas=deltas, kind=kind, factor=factor,  # pyright: ignore[reportArgumentType]
            reference=known, controls=controls, match=match, seed=seed, include=include or [],  # pyright: ignore[reportArgumentType]
            scores=None if first is None else scores_to_match(first, match, sites), others=_others(off or [], match),
            limit=limit if limit is None or limit < 1 else int(limit), num_fewshot=fewshot, batch_size=batch_size,
            progress=bar,
        )  # fmt: skip
    show(found)
    if write is not None and corpus is not None:
        wrote(asked[-1])
        say(f"the harness itself takes it with: lm_eval run --include_path {write} --tasks {asked[-1].stem} ...")
    if target is not None:
        save(target, subject=subject, **{name: found})
        wrote(target, then=f"neuropolis info {target}")
    else:
        say("not kept: name an atlas with --study FILE")


def _parted(text: str) -> tuple[str, str | None]:
    """FILE:GROUP or FILE."""
    if Path(text).is_file() or ":" not in text:
        return text, None
    file, _, group = text.rpartition(":")
    return file, group


def _sets(off: list[str]) -> dict[str, NeuronSet]:
    """The sets by their groups; where several files have different sets of a group, the files are in the names."""
    from ..analysis.study import load

    given: dict[str, dict[str, tuple[str, NeuronSet]]] = {}
    for text in off:
        file, group = _parted(text)
        opened = load(file)
        for name, neurons in (opened.sets if group is None else {group: opened.get("set", group)}).items():
            given.setdefault(name, {}).setdefault(neurons.digest, (file, neurons))
    found = {}
    for name, sets in given.items():
        files = _told_apart([file for file, _ in sets.values()])
        for place, (file, neurons) in enumerate(sets.values()):
            label = name if len(sets) == 1 else f"{files[file]}:{name}"
            found[label if label not in found else f"{label} ({place + 1})"] = neurons
    return found


def _told_apart(paths: Sequence[str | Path]) -> dict[str, str]:
    """Every path by its last part, or as it was given where these are the same."""
    short = {str(path): Path(path).stem if Path(path).suffix == ".h5" else Path(path).name for path in paths}
    return short if len(set(short.values())) == len(short) else {path: path for path in short}


def _others(off: list[str], match: str) -> dict[str, NeuronSet] | None:
    """The sets that `--match groups` draws controls from: all of the studies' that --off names."""
    from ..analysis.study import load

    if match != "groups":
        return None
    files = dict.fromkeys(_parted(text)[0] for text in off)
    return {f"{file}:{name}": neurons for file in files for name, neurons in load(file).sets.items()}


def _deltas(folders: list[Path]) -> dict[str, Any]:
    from ..finetune.delta_files import load_delta

    names = _told_apart(folders)
    return {f"tuned {names[str(folder)]}": load_delta(folder) for folder in folders}


def _task(corpus: str, by: str | None, folder: Path, ask: str, per_group: bool, split: str) -> Path:
    from ..analysis.harness_tasks import harness_task

    return harness_task(
        open_corpus(corpus, by=by), folder, ask=ask, per_group=per_group, split=chosen_split(split)  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def show(found: Evaluation) -> None:
    """One row for each metric and run."""
    rows = found.summary()
    controlled = any(row["num_controls"] for row in rows)
    say("results of lm-evaluation-harness with its standard errors; change: against intact, with its 95% interval")
    header = ["task", "version", "n", "shots", "metric", "run", "value", "stderr", "change", "interval"]
    table(
        header + ["controls", "lowest", "highest", "p ctrl"] * controlled,
        [
            [
                row["task"], row["version"], row["samples"], row["fewshot"], _metric(row), row["run"],
                _number(row["value"]), _number(row["stderr"]),
                *(["-", "-"] if row["condition"] == "intact" else [_number(row["change"], "+"), _interval(row)]),
                *([_number(row["controls"]), _number(row["controls_low"]), _number(row["controls_high"]),
                   p_value(row["p_controls"])] if controlled else []),
            ]
            for row in rows
        ],
    )  # fmt: skip
    if controlled:
        count = max(row["num_controls"] for row in rows)
        say(
            f"controls: mean, lowest and highest of {count} random sets with as many neurons in each layer; p: that the set "
            "harms no more than they do (sign flips over documents, Holm-corrected over the table)"
        )


def _metric(row: dict[str, Any]) -> str:
    return row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"


def _number(value: float, sign: str = "") -> str:
    return "-" if value != value else f"{value:{sign}.4g}"


def _interval(row: dict[str, Any]) -> str:
    return "-" if row["low"] != row["low"] else f"{row['low']:+.3f} to {row['high']:+.3f}"
