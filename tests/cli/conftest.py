"""A small model and a table of one's own in a folder, and a way to run commands there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.jsonl import write_jsonl

Run = Callable[..., str]


@pytest.fixture
def folder(make_subject: Any, corpus: Corpus, tmp_path: Path) -> Path:
    """A model on disk and a table beside it."""
    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(corpus, tmp_path / "my.jsonl")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder; returns what it printed, with the error line last when it failed."""
    from neuropolis.cli import main as cli

    monkeypatch.chdir(folder)

    def command(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["neuropolis", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert bool(stopped.value.code) == fails, err or out
        return err.strip().splitlines()[-1] if fails else out

    return command
