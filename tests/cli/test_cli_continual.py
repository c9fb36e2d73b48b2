"""The verbs `continual`, `proportion` and `overlap-study` on a small model and table of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from neuropolis.analysis.study import load
from neuropolis.cli import continual as verb
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.jsonl import write_jsonl

Run = Callable[..., str]
STREAM = ("continual", "model", "--data", "my.jsonl", "--out", "s.h5", "--share", "8", "--steps", "1", "--seeds", "2")


@pytest.fixture
def run(make_subject: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    from neuropolis.cli import main as cli

    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    rows = [replace(e, tags={"split": "test" if e.id.endswith("3") else "train"}) for e in corpus]
    write_jsonl(Corpus(tuple(rows)), tmp_path / "my.jsonl")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["neuropolis", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert bool(stopped.value.code) == fails, err or out
        return err.strip().splitlines()[-1] if fails else out

    return command


def test_a_stream_from_the_command_line(run: Run, tmp_path: Path) -> None:
    further = (
        "--methods", "ncft,w-ncft", "--order", "seeded", "--known", "my.jsonl", "--reference", "my.jsonl", "--layers",
        "1-2", "--apart", "--lr", "ncft=1e-3", "--option", "w-ncft.of=changes", "--option", "w-ncft.layers=[1]",
    )  # fmt: skip
    printed = run(*STREAM, *further)
    assert "go on from s-state" in printed.replace("goes", "go")
    assert "ncft, seed 1:" in printed
    assert "next: neuropolis report s.h5" in printed
    found = load(tmp_path / "s.h5").continual
    assert (found.methods, found.tasks, found.seeds) == (("ncft", "w-ncft"), ("north", "south", "east"), (0, 1))
    assert found.origin["lrs"]["ncft"] == 1e-3
    assert found.origin["options"]["w-ncft"]["of"] == "changes"
    assert found.origin["location"]["layers"] == [1, 2]
    assert found.origin["num_questions"] == {"north": 1, "south": 1, "east": 1}
    again = run(*STREAM, *further)
    assert again.splitlines()[-8:] == printed.splitlines()[-8:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "sgd"), "error: unknown method 'sgd'; methods are"),
        (("--lr", "ncft"), "cannot read --lr 'ncft'; expected name=value"),
        (("--option", "weight=3"), "expected method.option=value"),
        (("--option", "lora.size=3", "--methods", "lora"), "method 'lora' has no option 'size'; it has rank, alpha"),
        (("--order", "order-1"), "there is no task"),
        (("--order", "north,west"), "the order needs task 'west', the stream has north"),
        (("--contrast", "foo"), "unknown contrast 'foo'"),
        (("--option", "ewc.weight=abc", "--methods", "ncft, ewc"), "option ewc.weight must be a number, got 'abc'"),
        (("--state", "my.jsonl", "--methods", "ncft"), "my.jsonl is a file; the state is a folder"),
        (("--questions", "0"), "numbers of rows, expected 1 or more, got 0"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in run(*STREAM, *arguments, fails=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0"), "give at least one seed"),
        (("--steps", "0"), "steps must be above 0, got 0"),
        (("--lr", "ncft=1e40", "--methods", "ncft"), "lr must lie between 0 and 1e+30"),
        (("--option", "replay.known=4", "--methods", "replay"), "option replay.known takes rows of the reference"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_loaded(
    run: Run, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(verb, "open_model", never)
    assert message in run(*STREAM, *arguments, fails=True)


def test_a_stopped_stream_says_that_it_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "planned_accuracy", stop)
    line = run(*STREAM, "--methods", "ncft", fails=True)
    assert line == "stopped: s-state holds every task that was finished; give the same command again to go on"


def test_the_two_studies_are_one_command_each(run: Run, tmp_path: Path) -> None:
    common = ("model", "--data", "my.jsonl", "--train", "north,south", "--test", "east", "--steps", "1", "--seeds", "2")
    printed = run("proportion", *common, "--out", "p.h5", "--shares", "10%,100%")
    assert "share 10%" in printed
    assert "overlap in each layer" in printed
    assert load(tmp_path / "p.h5").sweep("proportion").sizes[1, 0] == 144
    run("proportion", *common, "--out", "p.h5", "--shares", "10%", "--sets", "mean", "--train", "north, south")
    assert load(tmp_path / "p.h5").sweep("proportion").sizes[:, 0].tolist() == [14]
    printed = run("overlap-study", *common, "--out", "p.h5", "--shares", "10%", "--overlaps", "50%,100%")
    assert "overlap natural" in printed
    found = load(tmp_path / "p.h5").sweep("overlap")
    assert [setting["overlap"] for setting in found.settings] == ["natural", 0.5, 1.0]
    assert "group 'north' is trained on and tested" in run(
        "proportion", *common, "--test", "north", "--out", "q.h5", fails=True
    )
    assert "expected 1 or more" in run("overlap-study", *common, "--seeds", "0", "--out", "q.h5", fails=True)


def test_rates_are_searched_with_the_same_effort(run: Run) -> None:
    options = ("--test-split", "train", "--rates", "ncft=1e-3,1e-2", "--rates", "full=1e-4,1e-3")
    printed = run(*STREAM, *options)
    assert printed.count("best") == 2
    assert "next: the same without --rates, with --lr ncft=" in printed
    assert "add --test-split dev" in run(*STREAM, *options[2:], fails=True)
    assert "got ncft 2, full 1" in run(*STREAM, *options[:4], "--rates", "full=1e-4", fails=True)
