"""`neuropolis fidelity`: the table, the atlas, and one clear line for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from neuropolis.analysis.study import load
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.jsonl import write_jsonl


def test_fidelity_prints_a_table_and_writes_an_atlas(
    make_subject: Any,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from neuropolis.cli import main as cli

    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(corpus, tmp_path / "my.jsonl")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuropolis", "fidelity", "model", "--data", "my.jsonl", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    code, out, err = run("--out", "study.h5", "--methods", "taylor,gradient", "--sample", "6", "--shares", "0.1,1",
                         "--controls", "1")  # fmt: skip
    assert code == 0, err
    assert "rank correlation" in out
    assert "gradient" in out
    assert "random" in out
    assert "12 examples scored, 12 for the curves (the same ones: the corpus holds none out); 6 neurons" in out
    assert "next: neuropolis locate model --data my.jsonl --method" in out
    assert load(tmp_path / "study.h5").fidelity.methods == ("taylor", "gradient")
    code, _, err = run("--out", "study.h5", "--shares", "few")
    assert code == 1
    assert "cannot read 'few' as shares" in err
    code, _, err = run("--out", "study.h5", "--methods", "taylor,exact")
    assert code == 1
    assert "'exact' is what methods are held against" in err
