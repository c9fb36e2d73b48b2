"""`neuropolis evaluate`: the table, the atlas, and one clear line for each mistake."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from neuropolis.analysis.study import load, save
from neuropolis.corpora.loading import load_corpus
from neuropolis.finetune.training import finetune
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import load_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: the extra 'harness' has it")

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def study(folder: Path) -> NeuronSet:
    """A study with two sets, and a delta, beside the model and the table."""
    subject = load_model(folder / "model")
    half = NeuronSet.from_indices(subject, site="mlp", indices={0: range(24), 2: range(24)})
    save(folder / "study.h5", {"north": half, "south": ~half}, subject=subject)
    finetune(subject, load_corpus(folder / "my.jsonl"), half, lr=3e-2, epochs=1).save(folder / "delta")
    return half


def test_evaluate_prints_a_table_and_writes_the_study(run: Run, folder: Path, study: NeuronSet) -> None:
    out = run("evaluate", "model", "--corpus", "my.jsonl", "--per-group", "--off", "study.h5:north", "--controls", "2",
              "--delta", "delta", "--limit", "3", "--write", "tasks")  # fmt: skip
    assert "north control" not in out
    rows = [line.split() for line in out.splitlines() if line.startswith("my::south")]
    assert [row[:6] for row in rows[:2]] == [["my::south", "1.0", "3", "0", "acc", run] for run in ("intact", "north")]
    assert "mean, lowest and highest of 2 random sets" in out
    assert "next: neuropolis info study.h5" in out
    found = load(folder / "study.h5").evaluation
    assert found.runs == ("intact", "north", "north control 1", "north control 2", "tuned delta")
    assert found.origin["sets"]["north"] == study.digest
    assert (folder / "tasks" / "my.yaml").exists()
    out = run("evaluate", "model", "--tasks", "tasks/my.yaml", "--off", "study.h5", "--name", "again", "--limit", "1")
    assert "controls" not in out
    assert load(folder / "study.h5").get("evaluation", "again").runs == ("intact", "north", "south")
    assert "evaluation" in run("info", "study.h5")


def test_sets_of_a_name_from_three_files_are_three_runs(run: Run, folder: Path, study: NeuronSet) -> None:
    subject = load_model(folder / "model")
    for place, inside in enumerate("abc"):
        (folder / inside).mkdir()
        one = NeuronSet.from_indices(subject, site="mlp", indices={1: [place]})
        save(folder / inside / "study.h5", {"north": one}, subject=subject)
    off = [part for inside in "abca" for part in ("--off", f"{inside}/study.h5:north")]
    run(
        "evaluate",
        "model",
        "--corpus",
        "my.jsonl",
        "--limit",
        "1",
        "--study",
        "out.h5",
        *off,
        "--off",
        "study.h5:south",
    )
    runs = [f"{inside}/study.h5:north" for inside in "abc"]
    found = load(folder / "out.h5").evaluation
    assert found.runs == ("intact", *runs, "south")
    assert len({found.origin["sets"][name] for name in runs}) == 3


def test_files_of_other_names_and_deltas_are_told_apart(folder: Path, study: NeuronSet) -> None:
    from neuropolis.cli.evaluate import _deltas, _sets

    save(folder / "other.h5", {"north": ~study}, subject=load_model(folder / "model"))
    assert list(_sets([str(folder / "study.h5:north"), str(folder / "other.h5:north")])) == [
        "study:north",
        "other:north",
    ]
    (folder / "late").mkdir()
    shutil.copytree(folder / "delta", folder / "late" / "delta")
    assert list(_deltas([folder / "delta"])) == ["tuned delta"]
    both = [folder / "delta", folder / "late" / "delta"]
    assert list(_deltas(both)) == [f"tuned {path}" for path in both]


def test_kinds_controls_and_references_are_those_of_ablate(run: Run, folder: Path, study: NeuronSet) -> None:
    asked = ("evaluate", "model", "--corpus", "my.jsonl", "--limit", "1", "--off", "study.h5:north")
    run(*asked, "--kind", "keep", "--controls", "1", "--match", "groups")
    found = load(folder / "study.h5").evaluation
    assert found.origin["kind"] == "keep"
    assert found.origin["match"] == "groups"
    # north and south are each other's whole rest, and keeping one is silencing the other
    assert found.runs == ("intact", "north", "north control 1")
    run(*asked, "--kind", "mean", "--reference-group", "east", "--controls", "1", "--match", "activation")
    origin = load(folder / "study.h5").evaluation.origin
    assert (origin["kind"], origin["match"]) == ("mean", "activation")
    assert origin["reference"]
    assert "--match activation needs a reference" in run(*asked, "--match", "activation", fails=True)
    assert "at site 'mlp' needs scores" in run(*asked, "--controls", "1", "--match", "score", fails=True)


def test_nothing_is_kept_without_a_study(run: Run, folder: Path) -> None:
    out = run("evaluate", "model", "--corpus", "my.jsonl", "--ask", "text", "--limit", "2")
    assert "bits_per_byte" in out
    assert "not kept: name an atlas with --study FILE" in out


def test_mistakes_have_one_clear_line(run: Run, study: NeuronSet) -> None:
    assert "give --tasks" in run("evaluate", "model", fails=True)
    corpus = ("--corpus", "my.jsonl")
    assert "has no 'west'" in run("evaluate", "model", *corpus, "--off", "study.h5:west", fails=True)
    assert "no atlas at none.h5" in run("evaluate", "model", *corpus, "--off", "none.h5:west", fails=True)
    assert "unknown ask 'who'" in run("evaluate", "model", *corpus, "--ask", "who", fails=True)
    assert "no task file none.yaml" in run("evaluate", "model", "--tasks", "none.yaml", fails=True)
    assert "unknown kind" in run("evaluate", "model", *corpus, "--off", "study.h5:north", "--kind", "x", fails=True)
    assert "limit is 0; expected a number of documents" in run("evaluate", "model", *corpus, "--limit", "0", fails=True)
    assert "no delta" in run("evaluate", "model", *corpus, "--delta", "none", fails=True)
