"""The command line: the whole path on a small model and table of one's own, and one clear line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.analysis.study import load
from neuropolis.attribution.located import PRESETS
from neuropolis.attribution.methods import METHODS
from neuropolis.attribution.objectives import OBJECTIVES
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


def test_several_methods_are_located_together_and_chosen_by_name(run: Run, folder: Path) -> None:
    printed = run(
        "locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--method", "taylor,mean", "--method", "lape",
        "--on-not-finite", "skip",
    )  # fmt: skip
    assert "next: neuropolis select study.h5 --method taylor --top 1%" in printed
    study = load("study.h5")
    assert study.names("scores") == ("taylor", "mean", "lape")
    message = run("select", "study.h5", fails=True)
    assert message == "error: study.h5 has several scores; choose with --method: taylor, mean, lape"
    assert "(mean, none contrast, top 100%)" in run(
        "select", "study.h5", "--method", "mean", "--contrast", "none", "--top", "100%"
    )
    assert len(load("study.h5").sets["north"]) == 3 * 48
    message = run("select", "study.h5", "--contrast", "nine", fails=True)
    assert message == "error: unknown contrast 'nine'; contrasts are others, ratio, controls, z, none"
    run("locate", "model", "--data", "my.jsonl", "--out", "sites.h5", "--site", "v,mlp")
    assert load("sites.h5").names("scores") == ("taylor/v", "taylor/mlp")
    assert "several scores of method 'taylor'" in run("select", "sites.h5", "--method", "taylor", fails=True)
    assert "no scores 'lape'" in run("select", "sites.h5", "--method", "lape", fails=True)
    assert "v neurons by layer" in run("select", "sites.h5", "--method", "taylor/v")
    run("locate", "model", "--data", "my.jsonl", "--out", "one.h5", "--method", "active")
    assert load("one.h5").names("scores") == ("scores",)
    assert "(active, others contrast" in run("select", "one.h5", "--method", "active")


def test_sets_of_several_methods_stand_beside_each_other(run: Run, folder: Path) -> None:
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--method", "taylor,mean", "--site", "mlp,v")
    run("select", "study.h5", "--method", "taylor/mlp", "--top", "5")
    first = load("study.h5").sets
    assert set(first) == {"north", "south", "east"}
    assert "these are named GROUP/mean" in run("select", "study.h5", "--method", "mean/mlp", "--top", "5")
    assert "GROUP/taylor.v" in run("select", "study.h5", "--method", "taylor/v", "--top", "5")
    both = load("study.h5").sets
    assert {"north", "north/mean", "north/taylor.v"} < set(both)
    assert len(both) == 9
    assert both["north"] == first["north"]
    assert (both["north/mean"].origin["method"], both["north/taylor.v"].site) == ("mean", "v")
    assert "note" not in run("select", "study.h5", "--method", "taylor/mlp", "--top", "7")
    assert len(load("study.h5").sets["north"]) == 7


def test_presets_are_located_with_their_sets(run: Run, folder: Path) -> None:
    printed = run(
        "locate", "model", "--data", "my.jsonl", "--out", "lape.h5", "--preset", "lape", "--option", "top=10%", "--option",
        "bar=0.8",
    )  # fmt: skip
    assert "next: neuropolis ablate model" in printed
    study = load("lape.h5")
    assert len(study.sets["north"] | study.sets["south"] | study.sets["east"]) == round(0.1 * 3 * 48)
    assert study.get("scores", "lape").origin["bar"] == 0.8
    run("ablate", "model", "--data", "my.jsonl", "--study", "lape.h5", "--controls", "1")
    printed = run(
        "locate", "model", "--data", "my.jsonl", "--out", "tsn.h5", "--preset", "tsn", "--option", 'site=["mlp", "v"]',
        "--option", "by=signed", "--option", "contrast=none",
    )  # fmt: skip
    assert "north/v" in printed
    assert "importance of each component" in run(
        "locate", "model", "--data", "my.jsonl", "--out", "fuxi.h5", "--preset", "fuxitranyu"
    )
    assert load("fuxi.h5").get("importance").values.shape == (3, 3, 7)
    culnig = ("locate", "model", "--data", "my.jsonl", "--out", "culnig.h5", "--preset", "culnig")
    assert "general/gate" in run(*culnig, "--option", "countries=my.jsonl", "--option", "z=0")


def test_help_names_what_the_registries_hold(run: Run) -> None:
    for words in (("locate", "--help"), ("select", "--help")):
        said = " ".join(run(*words).replace("│", " ").split())
        assert all(name in said for name in METHODS)
        assert "{" not in said.replace("{MODEL}", "").replace("{STUDY}", "")
    assert all(name in " ".join(run("locate", "--help").split()) for name in (*PRESETS, *OBJECTIVES))


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
        (
            ("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--method", "x"),
            "unknown method 'x'; methods are taylor",
        ),
        (
            ("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--preset", "x"),
            "unknown preset 'x'; presets are",
        ),
        (("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--on-not-finite", "x"), "is stop or skip"),
        (("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--option", "x"), "expected key=value"),
        (("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--option", "x=1"), "'x' is no option of taylor"),
        (
            ("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--preset", "tsn", "--option", "x=1"),
            "'x' is no option of preset 'tsn'; options are top",
        ),
        (
            ("locate", "model", "--data", "my.jsonl", "--out", "s.h5", "--preset", "lape", "--site", "mlp"),
            "--site does not go with --preset",
        ),
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


def test_measuring_on_the_questions_located_on_is_said(run: Run, corpus: Corpus, folder: Path) -> None:
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5")
    run("select", "study.h5", "--top", "5%")
    same = run("ablate", "model", "--data", "my.jsonl", "--study", "study.h5", "--controls", "1")
    assert "the very questions that they were measured on" in same
    write_jsonl(Corpus(tuple(e for row, e in enumerate(corpus) if row % 2)), folder / "other.jsonl")
    other = run("ablate", "model", "--data", "other.jsonl", "--study", "study.h5", "--controls", "1")
    assert "the very questions" not in other


def test_a_folder_is_no_file_to_write(run: Run, folder: Path) -> None:
    assert "it is a folder" in run("locate", "model", "--data", "my.jsonl", "--out", ".", fails=True)
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5")
    assert "it is a folder" in run("report", "study.h5", "--out", str(folder), fails=True)


def test_selection_by_permutation_and_by_stability(run: Run) -> None:
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--rows")
    assert "by permutation, correction none" in run("select", "study.h5", "--alpha", "0.2", "--correction", "none")
    assert "of 100 halves" in run("select", "study.h5", "--top", "5%", "--stable", "0.6")
    assert "give one" in run("select", "study.h5", "--alpha", "0.2", "--stable", "0.6", fails=True)
    assert "alpha is 7" in run("select", "study.h5", "--alpha", "7", fails=True)
    run("locate", "model", "--data", "my.jsonl", "--out", "bare.h5")
    assert "locate --rows" in run("select", "bare.h5", "--alpha", "0.2", fails=True)


def test_the_stability_of_a_selection(run: Run) -> None:
    printed = run("stability", "model", "--data", "my.jsonl", "--out", "study.h5", "--top", "5%", "--resamples", "2")
    assert "half 2" in printed
    assert "bfloat16" in printed
    assert "top x 2" in printed
    assert "stability" in run("info", "study.h5")
    assert "unknown axis" in run(
        "stability", "model", "--data", "my.jsonl", "--out", "study.h5", "--axes", "weather", fails=True
    )
