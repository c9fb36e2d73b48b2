"""The command line: the whole path on a small model and table of one's own, and one clear line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.jsonl import write_jsonl

Run = Callable[..., str]


def test_the_whole_path(run: Run, folder: Path) -> None:
    assert "next: neuropolis select study.h5" in run(
        "locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--controls"
    )
    assert "north" in run("select", "study.h5", "--top", "5%", "--contrast", "controls")
    printed = run("ablate", "model", "--data", "my.jsonl", "--study", "study.h5", "--controls", "3")
    assert "of 3 sets are specific" in printed
    printed = run(
        "tune",
        "model",
        "--data",
        "my.jsonl",
        "--study",
        "study.h5",
        "--group",
        "north",
        "--out",
        "north-delta",
        "--epochs",
        "1",
    )
    assert "wrote north-delta" in printed
    printed = run("compare", "study.h5")
    assert "Jaccard" in printed
    assert "parameter similarity by layer" in printed
    run("report", "study.h5", "--out", "page.html")
    page = (folder / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    assert "north" in page
    printed = run("info", "study.h5")
    assert all(kind in printed for kind in ("scores", "set", "effects", "overlap", "similarity"))
    assert "model.layers.0.mlp.down_proj" in run("info", "model")


def test_learning_beside_what_was_known(run: Run, folder: Path, corpus: Corpus) -> None:
    write_jsonl(corpus.only(("south", "east")), folder / "old.jsonl")
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5")
    run("select", "study.h5", "--top", "10")
    printed = run(
        "tune", "model", "--data", "my.jsonl", "--study", "study.h5", "--group", "north", "--out", "delta", "--old", "old.jsonl",
        "--epochs", "1",
    )  # fmt: skip
    assert "random neurons" in printed
    assert "retention" in run("info", "study.h5")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("locate", "nowhere", "--data", "my.jsonl", "--out", "s.h5"), "cannot load model 'nowhere'"),
        (("locate", "./nowhere", "--data", "my.jsonl", "--out", "s.h5"), "no model in './nowhere'"),
        (("locate", "model", "--data", "none.jsonl", "--out", "s.h5"), "none.jsonl"),
        (("locate", "model", "--data", "empty.jsonl", "--out", "s.h5"), "empty"),
        (("locate", "model", "--data", "answerless.jsonl", "--out", "s.h5"), "answerless.jsonl"),
        (("locate", "model", "--data", "single.jsonl", "--out", "s.h5"), "has 1 example"),
        (("locate", "model", "--data", "range.jsonl", "--out", "s.h5"), "answer_index"),
        (("locate", "model", "--data", "my.jsonl", "--out", "nowhere/s.h5"), "no folder"),
        (("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--site", "ffn"), "unknown site 'ffn'"),
        (("locate", "model", "--data", "my.jsonl", "--out", "my.jsonl"), "not a neuropolis atlas"),
        (("select", "study.h5", "--top", "many"), "cannot read 'many' as an amount"),
        (("select", "missing.h5"), "no atlas at missing.h5"),
        (("select", "cut.h5"), "truncated"),
        (("select", "flipped.h5"), "damaged"),
        (("ablate", "other", "--data", "my.jsonl", "--study", "study.h5"), "is about subject"),
        (("ablate", "model", "--data", "my.jsonl", "--study", "bare.h5"), "neuropolis select"),
        (
            ("tune", "model", "--data", "my.jsonl", "--study", "study.h5", "--group", "west", "--out", "d"),
            "no group 'west'",
        ),
        (
            ("tune", "model", "--data", "my.jsonl", "--study", "study.h5", "--group", "north", "--out", "my.jsonl"),
            "is no delta",
        ),
        (("report", "study.h5", "--out", "nowhere/page.html"), "nowhere"),
        (("info", "missing.h5"), "no atlas at missing.h5"),
    ],
)
def test_a_mistake_is_one_clear_line_and_nothing_is_lost(
    run: Run, folder: Path, make_subject: Any, arguments: tuple[str, ...], line: str
) -> None:
    run("locate", "model", "--data", "my.jsonl", "--out", "bare.h5")
    run("select", "bare.h5", "--top", "5%", "--out", "study.h5")
    whole = (folder / "study.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[:-100])
    (folder / "flipped.h5").write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    (folder / "empty.jsonl").write_text("")
    (folder / "answerless.jsonl").write_text('{"group": "a", "prompt": "x"}\n')
    (folder / "single.jsonl").write_text('{"group": "a", "prompt": "x", "answer": " y"}\n')
    (folder / "range.jsonl").write_text(
        '{"group": "a", "prompt": "x", "answer": " y", "choices": [" y", " z"], "answer_index": 2}\n'
    )
    other = make_subject("llama", seed=1)
    other.model.save_pretrained(folder / "other")
    other.tokenizer.save_pretrained(folder / "other")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = run(*arguments, fails=True)
    assert message.startswith("error: ")
    assert line in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_nan_in_the_forward_pass_is_named(run: Run, folder: Path, make_subject: Any) -> None:
    broken = make_subject("llama")
    with torch.no_grad():
        broken.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    broken.model.save_pretrained(folder / "broken")
    broken.tokenizer.save_pretrained(folder / "broken")
    message = run("locate", "broken", "--data", "my.jsonl", "--out", "s.h5", fails=True)
    assert "not finite" in message
    assert "north/0" in message or "east" in message or "south" in message
    assert not (folder / "s.h5").exists()


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['neuropolis', '--help']\n"
        "from neuropolis.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "locate" in done.stdout
