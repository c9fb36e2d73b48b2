"""`neuropolis locate` on long runs and large models: what an interruption leaves, and what goes on from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.analysis.study import load
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.jsonl import write_jsonl
from neuropolis.neurons.subject import Subject

LOCATE = ("locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--max-tokens", "100")
Run = Callable[..., str]


@pytest.fixture
def subject(make_subject: Any) -> Subject:
    return make_subject("llama")


@pytest.fixture
def run(
    subject: Subject,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command where a model and a table are; returns what it printed, or its last line when it failed."""
    from neuropolis.cli import main as cli

    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(corpus, tmp_path / "my.jsonl")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["neuropolis", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert bool(stopped.value.code) == fails, err or out
        return err.strip().splitlines()[-1] if fails else out

    return command


def interrupt_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuropolis.cli import locate

    @contextmanager
    def bar(_text: str) -> Iterator[Callable[[int, int], None]]:
        left = [batches]

        def step(_done: int, _total: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        yield step

    monkeypatch.setattr(locate, "progress", bar)


def test_the_same_command_goes_on_after_an_interruption(
    run: Run, subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        said = run(*LOCATE, "--checkpoint", "run", "--checkpoint-every", "0", fails=True)
    assert said == "stopped: the same command goes on from run"
    assert not (tmp_path / "study.h5").exists()
    said = run(*LOCATE, "--checkpoint", "run", "--tokens", "max", fails=True)
    assert "run is the checkpoint of another run: readings is ['taylor mlp sum'] there" in said
    assert "wrote study.h5" in run(*LOCATE, "--checkpoint", "run")
    assert torch.equal(load(tmp_path / "study.h5").scores.signed, attribute(subject, corpus, max_tokens=100).signed)
    assert not (tmp_path / "run").exists()


def test_an_interruption_before_anything_was_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(1, monkeypatch)
    said = run(*LOCATE, "--checkpoint", "run", fails=True)
    assert said == "stopped: study.h5 is as it was; nothing was kept in run yet, the same command starts over"
    interrupt_after(1, monkeypatch)
    said = run(*LOCATE, fails=True)
    assert said.startswith("stopped: study.h5 is as it was; --checkpoint FILE lets the same command go on")


def test_a_model_beyond_memory(run: Run, subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    assert "wrote study.h5" in run(*LOCATE, "--offload", "disk", "--memory", "50KB")
    assert torch.equal(load(tmp_path / "study.h5").scores.signed, attribute(subject, corpus, max_tokens=100).signed)
    said = run(*LOCATE, "--memory", "1GB", fails=True)
    assert said == "error: memory='1GB' says what stays of an offloaded model; give offload='disk' too"
    assert "wrote study.h5" in run(*LOCATE, "--recompute")


def test_a_preset_goes_on_after_an_interruption(
    run: Run, subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*LOCATE, "--preset", "tsn", "--rows", "--recompute", "--checkpoint", "run")
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        said = run(*command, "--checkpoint-every", "0", fails=True)
    assert said == "stopped: the same command goes on from run"
    assert "next: neuropolis ablate" in run(*command)
    assert not (tmp_path / "run").exists()
    scores = load(tmp_path / "study.h5").scores
    assert torch.equal(scores.signed, attribute(subject, corpus, max_tokens=100).signed)
    assert "level 0.5 by permutation" in run("select", "study.h5", "--alpha", "0.5", "--correction", "none")
    said = run(*LOCATE, "--preset", "tsn", "--option", "max_tokens=5", fails=True)
    assert said == "error: --option max_tokens=... does not go with --preset; give --max-tokens"


def test_sets_of_several_sites_end_in_a_command_that_works(run: Run) -> None:
    said = run(*LOCATE, "--preset", "tsn", "--option", 'site=["mlp","q"]')
    command = said.strip().splitlines()[-1].removeprefix("next: neuropolis ")
    assert command == "info study.h5"
    assert "north/q" in run(*command.split())


def test_the_completeness_gap_is_told(run: Run) -> None:
    said = run(*LOCATE, "--method", "ig,taylor", "--option", "steps=2")
    line = next(line for line in said.splitlines() if "completeness" in line)
    assert line.startswith("ig: completeness gap ")
    assert line in run("info", "study.h5")


def test_a_sample_is_selected_from_by_number(run: Run) -> None:
    said = run(*LOCATE, "--method", "exact", "--option", "sample=20")
    command = said.strip().splitlines()[-1].removeprefix("next: neuropolis ")
    assert command == "select study.h5 --top 2"
    assert "north" in run(*command.split())
