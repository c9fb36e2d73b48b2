"""`neuropolis culture-spa`: write survey questions, filter them, answer them, collect what a culture changes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import culture_spa_tuning
from .console import Device, Dtype, check_out, fail, open_model, progress, say, several, stopped, table, wrote

if TYPE_CHECKING:
    from ..attribution.generators import Generator, Sampling
    from ..corpora.survey import Question, Survey

app = typer.Typer(
    help="CultureSPA's loop: generate, filter, answer, collect, tune, evaluate. Each stage goes on where it stopped.",
    no_args_is_help=True,
)
Model = Annotated[
    str, typer.Argument(help="Hub id, local folder, or bundled:polis; with --server the server's name of the model.")
]
SurveyFolder = Annotated[Path, typer.Option("--survey", help="Folder with the survey's files (CultureSPA's data).")]
Config = Annotated[
    Path | None, typer.Option("--config", help="TOML with cultures, topics and wording; by default the WVS's.")
]
Server = Annotated[str | None, typer.Option("--server", help="Address of an OpenAI-compatible server, up to /v1.")]
KeyEnv = Annotated[str, typer.Option("--key-env", help="Environment variable that holds the server's key.")]
Workers = Annotated[int, typer.Option("--workers", help="Requests to the server at once.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds that the server has for a whole reply.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the most probable token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the most probable tokens with this share.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Tokens of a reply.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Prompts at once; a stopped run loses one batch at most.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of prompts and replies.")]
Useless = Annotated[float, typer.Option("--useless", help="Stop when more than this share of replies is of no use.")]
Cultures = Annotated[list[str] | None, typer.Option("--culture", help="Only these cultures; all by default.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that is there.")]
Questions = Annotated[Path | None, typer.Option("--questions", help="Filtered questions; without it the survey's own.")]


def add(parent: typer.Typer) -> None:
    for name, verb in {"generate": generate, "filter": filter_, "answer": answer, "collect": collect}.items():
        app.command(name=name, help=(verb.__doc__ or "").splitlines()[0])(verb)
    culture_spa_tuning.add(app)
    parent.add_typer(app, name="culture-spa")


def generate(
    model: Model,
    survey: SurveyFolder,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file of the questions.")],
    per_topic: Annotated[int, typer.Option(help="Questions on every topic, at least.")] = 1000,
    topic: Annotated[list[str] | None, typer.Option(help="Only these topics; all by default.")] = None,
    config: Config = None,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    max_new_tokens: NewTokens = 256,
    batch_size: BatchSize = 64,
    seed: Seed = 42,
    useless: Useless = 0.8,
    server: Server = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    workers: Workers = 8,
    timeout: Timeout = 60.0,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Write new survey questions on every topic, after examples (self-instruct)."""
    from ..finetune.culture_spa.questions import generate_questions
    from ..finetune.culture_spa.watch import Patience

    asked = opened_survey(survey, config)
    sampling = _sampling(temperature, top_p, max_new_tokens)
    speaker = generator(model, server, key_env, workers, timeout, device, dtype, batch_size)
    with going_on(out), progress("writing questions") as bar:
        generate_questions(
            asked, speaker, out, per_topic=per_topic, topics=topic, sampling=sampling, batch_size=batch_size, seed=seed,
            patience=Patience(useless), tell=told, progress=bar,
        )  # fmt: skip
    counted(out, "generate")
    wrote(out, then=f"neuropolis culture-spa filter {out} --survey {survey} --out filtered.jsonl")


def filter_(
    source: Annotated[Path, typer.Argument(help="What culture-spa generate wrote.")],
    survey: SurveyFolder,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file; dropped questions stay in it with the reason.")],
    config: Config = None,
    force: Force = False,
) -> None:
    """Drop duplicates and questions that cannot be answered by a number; mend options."""
    from ..finetune.culture_spa.questions import filter_questions

    check_out(out, force=force, source=source)
    counts = filter_questions(opened_survey(survey, config), source, out)
    table(["questions", "number"], [[reason, count] for reason, count in counts.most_common()])
    wrote(out, then=f"neuropolis culture-spa answer MODEL --survey {survey} --questions {out} --out answers.jsonl")


def answer(
    model: Model,
    survey: SurveyFolder,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file of the answers.")],
    questions: Questions = None,
    culture: Cultures = None,
    asking: Annotated[str, typer.Option(help="unaware, aware, thinking; with commas.")] = "unaware,aware",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what has failed.")] = False,
    config: Config = None,
    temperature: Temperature = 0.6,
    top_p: TopP = 0.9,
    max_new_tokens: NewTokens = 16,
    batch_size: BatchSize = 64,
    seed: Seed = 42,
    useless: Useless = 0.8,
    server: Server = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    workers: Workers = 8,
    timeout: Timeout = 60.0,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer questions as a person of no culture, of each culture, or of one that is compared with others."""
    from ..finetune.culture_spa.answers import answer_questions
    from ..finetune.culture_spa.watch import Patience

    opened = opened_survey(survey, config)
    asked = opened_questions(opened, questions)
    sampling = _sampling(temperature, top_p, max_new_tokens)
    speaker = generator(model, server, key_env, workers, timeout, device, dtype, batch_size)
    with going_on(out), progress("answering") as bar:
        answer_questions(
            opened, asked, speaker, out, cultures=_cultures(culture), askings=several([asking], ""), sampling=sampling,  # pyright: ignore[reportArgumentType]
            batch_size=batch_size, seed=seed, retry_failed=retry_failed, patience=Patience(useless), tell=told, progress=bar,
        )  # fmt: skip
    counted(out, "answer")
    named = f" --questions {questions}" if questions else ""
    plain = " --plain" if server is None and not has_template(speaker) else ""
    wrote(out, then=f"neuropolis culture-spa collect {out} --survey {survey}{named}{plain} --out instances.jsonl")


def collect(
    answers: Annotated[Path, typer.Argument(help="What culture-spa answer wrote.")],
    survey: SurveyFolder,
    out: Annotated[Path, typer.Option("--out", help="Corpus (.jsonl) of the instances.")],
    questions: Questions = None,
    culture: Cultures = None,
    asking: Annotated[str, typer.Option(help="aware or thinking: where the culture's answers are from.")] = "aware",
    strict: Annotated[
        bool, typer.Option("--strict/--authors", help="Both answers must be options, or any number from 0 to 15.")
    ] = True,
    chat: Annotated[
        bool, typer.Option("--chat/--plain", help="Chat messages, or texts for a model without a template.")
    ] = True,
    config: Config = None,
    force: Force = False,
) -> None:
    """Keep the answers that a culture changes, as a corpus to locate, tune and evaluate with."""
    from ..finetune.culture_spa.answers import collect_instances

    for source in (answers, questions):
        check_out(out, force=force, source=source)
    opened = opened_survey(survey, config)
    counts = collect_instances(
        opened, opened_questions(opened, questions), answers, out, asking=asking, cultures=_cultures(culture), strict=strict,  # pyright: ignore[reportArgumentType]
        chat=chat,
    )  # fmt: skip
    table(
        ["culture", "compared", "different", "not valid"],
        [[key, one.compared, one.different, one.invalid] for key, one in counts.items()],
    )
    wrote(out, then=f"neuropolis culture-spa tune MODEL --data {out} --out tuned")


def opened_survey(folder: Path, config: Path | None) -> Survey:
    """The survey that a command names."""
    from ..corpora.wvs import read_survey

    return read_survey(folder, config=config)


def opened_questions(survey: Survey, path: Path | None) -> tuple[Question, ...]:
    """The filtered questions of a file, or the survey's own."""
    from ..finetune.culture_spa.questions import read_questions

    return survey.questions if path is None else read_questions(path)


def generator(
    model: str,
    server: str | None,
    key_env: str,
    workers: int,
    timeout: float,
    device: str | None,
    dtype: str | None,
    rows: int,
) -> Generator:
    """What speaks: a server, or a model on this machine."""
    from ..attribution.generators import LocalGenerator
    from ..attribution.server import ServerGenerator

    if server is not None:
        return ServerGenerator(server, model, os.environ.get(key_env), workers=workers, timeout=timeout)
    return LocalGenerator(open_model(model, dtype=dtype, device=device), rows)


def told(note: str) -> None:
    """Say what was repaired, if anything was."""
    if note:
        say(note)


def counted(out: Path, stage: str) -> None:
    """Say how many replies of a file are of use, and stop where none is."""
    from ..corpora.journal import read_journal
    from ..finetune.culture_spa.answers import read_answers

    rows = list(read_answers(out).values()) if stage == "answer" else read_journal(out, stage=stage)
    bad = [row["failed"] for row in rows if "failed" in row]
    again = "; --retry-failed asks them again" if stage == "answer" and bad else ""
    common = f", most often: {Counter(bad).most_common(1)[0][0]}" if bad else ""
    if len(bad) == len(rows):
        fail(f"{out}: none of {len(rows)} replies is of use{common}{again}")
    say(
        f"{len(rows) - len(bad)} of {len(rows)} replies in {out} are of use{f'; {len(bad)} are not{common}' if bad else ''}{again}"
    )


def has_template(speaker: Generator) -> bool:
    """Whether what speaks on this machine takes chat messages."""
    return bool(speaker.subject.tokenizer.chat_template)  # pyright: ignore[reportAttributeAccessIssue]


class going_on:  # noqa: N801
    """After Ctrl-C, say that the file holds what was finished."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        if self.out.exists():
            say(f"going on with {self.out}")

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is KeyboardInterrupt:
            stopped(f"{self.out} holds every batch that was finished; give the same command again to go on")


def _sampling(temperature: float, top_p: float, max_new_tokens: int) -> Sampling:
    from ..attribution.generators import Sampling

    return Sampling(temperature, top_p, max_new_tokens)


def _cultures(given: list[str] | None) -> list[str] | None:
    return None if given is None else several(given, "")
