"""`neuropolis continual`: learn tasks one after another by several methods, and measure what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    DATA_HELP,
    By,
    Device,
    Dtype,
    Model,
    chosen_split,
    fail,
    layer_range,
    names,
    open_corpus,
    open_model,
    percent,
    progress,
    say,
    share,
    stopped,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..finetune.continual_result import Continual

METHODS_HELP = "Comma-separated: ncft, w-ncft, guarded, random, full, lora, o-lora, ewc, replay, per-task, joint."
COLUMNS = {
    "average_accuracy": "average at end", "forgetting": "forgotten", "backward_transfer": "backward",
    "forward_transfer": "forward", "retention_ratio": "FG", "known_forgetting": "known forgotten",
}  # fmt: skip


def add(app: typer.Typer) -> None:
    app.command(name="continual", help="Learn tasks one after another by several methods; measure what is kept.")(
        continual
    )


def continual(
    model: Model,
    data: Annotated[
        list[str],
        typer.Option("--data", help=DATA_HELP + " Or a folder in O-LoRA's layout. Repeat it for several."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Atlas to write; one that is there keeps its other contents.")],
    methods: Annotated[str, typer.Option(help=METHODS_HELP)] = "ncft,random,full,lora",
    order: Annotated[
        str, typer.Option(help="given, seeded (one per seed), order-1 to order-6, or task names with commas.")
    ] = "given",
    seeds: Annotated[int, typer.Option(help="Runs of every method, with seeds from 0.")] = 5,
    each: Annotated[str, typer.Option(help="What is a task: every group, or every corpus.")] = "group",
    known: Annotated[str | None, typer.Option(help="Corpus of what the model knew: measure what it forgets.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Corpus whose groups a task's neurons are contrasted with (training rows).")
    ] = None,
    top: Annotated[str, typer.Option("--share", help="Neurons of a task: a share (5%) or a number.")] = "5%",
    layers: Annotated[str | None, typer.Option(help="Only neurons of these layers, such as 2-3 or 0,5.")] = None,
    contrast: Annotated[str, typer.Option(help="others, z or none: with the groups seen so far.")] = "others",
    apart: Annotated[bool, typer.Option("--apart", help="Sets of different tasks share no neuron.")] = False,
    site: Annotated[str, typer.Option(help="mlp, gate, up, mlp_out, q, k, v or attn.")] = "mlp",
    objective: Annotated[str, typer.Option(help="loss, loss_all, probability or logit_difference.")] = "loss",
    epochs: Annotated[int, typer.Option(help="Passes over a task's rows.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Steps for each task, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a step.")] = 16,
    stop_diverged: Annotated[bool, typer.Option(help="Stop when a loss says that training diverged.")] = True,
    lr: Annotated[
        list[str] | None, typer.Option(help="Learning rate of a method, as full=1e-4; repeat it for others.")
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(help="Try these rates of a method, as full=3e-5,1e-4; say which is best, and stop."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A method's option, as ewc.weight=100 or w-ncft.of=changes; repeat it.")
    ] = None,
    questions: Annotated[int | None, typer.Option(help="At most so many test questions of each task.")] = None,
    known_questions: Annotated[int | None, typer.Option(help="At most so many questions of each known group.")] = None,
    test_split: Annotated[str, typer.Option(help="Rows to ask, by their tag 'split'.")] = "auto",
    state: Annotated[Path | None, typer.Option(help="Folder to resume from; by default beside --out.")] = None,
    by: By = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    from ..analysis.study import save
    from ..finetune.continual import continual as run
    from ..finetune.continual import planned
    from ..finetune.location import Location
    from ..finetune.recipe import Recipe
    from ..finetune.streams import sampled, tasks_of
    from ..neurons.atlas import check_target

    lrs = {name: _rate(value) for name, value in _pairs(lr, "lr")}
    tried = {name: [_rate(one) for one in value.split(",")] for name, value in _pairs(rates, "rates")}
    if tried and test_split in ("auto", "test"):
        fail("rates are chosen on rows that the methods are not compared on; add --test-split dev")
    chosen, further = names(methods), _options(option)
    named = order if order in ("given", "seeded") or order.startswith("order-") else names(order)
    tasks = tasks_of(
        [open_corpus(source, by=by) for source in data], each=each, test_split=chosen_split(test_split),
        questions=questions, order=named,
    )  # fmt: skip
    asked = known and sampled(open_corpus(known, by=by).part(chosen_split(test_split), auto="test"), known_questions)
    against = reference and open_corpus(reference, by=by).part("auto", auto="train")
    depth = layer_range(layers)
    where = Location(
        top=share(top), layers=None if depth is None else tuple(depth), apart=apart, site=site, objective=objective,
        contrast=None if contrast == "none" else contrast,
    )  # fmt: skip
    training = {"steps": steps, "epochs": epochs, "batch_size": batch_size, "stop_diverged": stop_diverged}
    recipe = Recipe(1.0, **training)  # pyright: ignore[reportArgumentType]
    planned(chosen, range(seeds), recipe=recipe, lrs=lrs, options=further, reference=against or None)
    subject = open_model(model, dtype=dtype, device=device)
    check_target(out, subject={"fingerprint": subject.fingerprint, "name": subject.name})
    folder = state or out.with_name(f"{out.stem}-state")
    say(f"tasks: {', '.join(task.name for task in tasks)}; interrupted, the same command goes on from {folder}")
    try:
        arguments: dict[str, Any] = {
            "accuracy": planned_accuracy(), "order": named, "seeds": range(seeds), "reference": against or None,
            "location": where, "options": further, "state": folder, "tell": say, **training,
        }  # fmt: skip
        if tried:
            _search(subject, tasks, tried, arguments)
            return
        with progress(f"learning {len(tasks)} tasks by {len(chosen)} methods") as bar:
            found = run(subject, tasks, methods=chosen, known=asked or None, lrs=lrs, progress=bar, **arguments)
    except KeyboardInterrupt:
        stopped(f"{folder} holds every task that was finished; give the same command again to go on")
    save(out, found, subject=subject)
    show(found)
    wrote(out, then=f"neuropolis report {out} --out report.html")


def _search(subject: Any, tasks: Any, tried: dict[str, list[float]], arguments: dict[str, Any]) -> None:
    """Try the rates, and print them beside what they gave."""
    from ..finetune.rates import search_rates

    found = search_rates(subject, tasks, rates=tried, **arguments)
    rows = [
        [name, f"{rate:g}", percent(mean), percent(found.forgotten[name][rate]), "best" if rate == best else ""]
        for name, best in found.best.items()
        for rate, mean in found.average[name].items()
    ]
    say(f"in %, mean over {len(arguments['seeds'])} seeds")
    table(["method", "rate", "average at end", "forgotten", ""], rows)
    say(
        "next: the same without --rates, with " + " ".join(f"--lr {name}={best:g}" for name, best in found.best.items())
    )


def planned_accuracy() -> Any:
    """`answer_correct` that encodes the questions of a corpus once."""
    from ..analysis.choices import answer_correct, encode_choices

    plans: dict[int, Any] = {}

    def accuracy(subject: Any, corpus: Any) -> Any:
        if id(corpus) not in plans:
            plans[id(corpus)] = (
                corpus,
                encode_choices(subject, corpus),
            )  # the corpus is held, so that its id stays its own
        return answer_correct(subject, plans[id(corpus)][1])

    return accuracy


def show(found: Continual) -> None:
    """What each method knew at the end, and what it forgot on the way."""
    say(f"in %, mean over {len(found.seeds)} seeds, with the 95 % t interval over seeds; FG needs the method per-task")
    cells = {name: found.interval(name) for name in COLUMNS}
    table(
        ["method", "numbers", *COLUMNS.values()],
        [
            [
                name, int(found.trainable[m]),
                *(_cell(*(float(part[m]) for part in cells[column])) for column in COLUMNS),
            ]
            for m, name in enumerate(found.methods)
        ],
    )  # fmt: skip


def _cell(mean: float, low: float, high: float) -> str:
    if low != low:
        return percent(mean)
    return f"{percent(mean)} ({percent(low)} to {percent(high)})"


def _pairs(given: list[str] | None, what: str) -> list[tuple[str, str]]:
    found = []
    for text in given or []:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            fail(f"cannot read --{what} {text!r}; expected name=value")
        found.append((name, value))
    return found


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        fail(f"cannot read {text!r} as a learning rate; expected a number such as 1e-4")


def _options(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """{method: {option: value}}; a value is read as JSON where it is, else as text."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in _pairs(given, "option"):
        method, dot, key = name.partition(".")
        if not dot:
            fail(f"cannot read --option {name}={value}; expected method.option=value")
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value
        found.setdefault(method, {})[key] = tuple(read) if isinstance(read, list) else read
    return found
