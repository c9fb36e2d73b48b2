"""The verbs of overlap and similarity on a small model and table, and one clear line for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from neuropolis.analysis.study import load

Run = Callable[..., str]


@pytest.fixture
def study(run: Run) -> str:
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5")
    run("select", "study.h5", "--top", "20%", "--contrast", "none")
    return "study.h5"


def test_overlap_of_groups_and_of_unions(run: Run, study: str, folder: Path) -> None:
    (folder / "places.csv").write_text("name,x,y\nNorth,0,1\nSouth,0,-1\nEast,1,0\n")
    printed = run("overlap", study, "--distances", "places.csv")
    for words in ("overlap (Jaccard) of 3 pairs", "tree by jaccard", "Mantel test of 3 groups", "RBO"):
        assert words in printed
    opened = load(study)
    assert {kind for kind, _ in opened.keys} >= {"overlap", "tree", "mantel", "ranks"}
    assert opened.get("mantel").given[0, 1].item() == 2
    assert "overlap (Jaccard) of 1 pairs" in run("overlap", study, "--join", "poles=north,south", "--join", "rest=east")
    assert load(study).get("overlap", "joined").groups == ("poles", "rest")
    assert load(study).overlap.groups == ("north", "south", "east")  # the plain one stays
    for arguments, message in {
        ("--join", "poles"): "cannot read 'poles'; expected --join NAME=a,b,c",
        ("--join", "poles=up"): "'poles' has no set 'up'; name some of north, south, east",
        ("--distances", "none.csv"): "cannot read none.csv",
        ("--distances", "places.csv", "--name", "east=Ost"): "places.csv has no row for Ost; it has North, South, East",
    }.items():
        assert message in run("overlap", study, *arguments, fails=True)


def test_similarity_before_and_after(run: Run, study: str) -> None:
    printed = run("similarity", study, "--align", "pairs", "--matrices", "gate,down", "--controls", "2")
    assert "parameter similarity by layer" in printed
    assert load(study).similarity.origin["align"] == "pairs"
    run(
        "tune",
        "model",
        "--data",
        "my.jsonl",
        "--study",
        study,
        "--group",
        "north",
        "--out",
        "north-delta",
        "--epochs",
        "1",
    )
    printed = run("similarity", study, "--after", "north-delta", "--deltas", "--controls", "2")
    assert "what training changed in north-delta" in printed
    moved = load(study).get("movement")
    assert moved.change[0].nanmean() > moved.control_change[0].nanmean()  # the set that was trained
    assert load(study).get("similarity", "after").origin["of"] == "deltas"
    assert "name some of gate, up, down" in run("similarity", study, "--matrices", "in", fails=True)
    assert "unknown align 'order'" in run("similarity", study, "--align", "order", fails=True)


def test_represent_and_redundancy(run: Run, study: str) -> None:
    printed = run("represent", "model", "--data", "my.jsonl", "--out", study)
    assert "embedding" in printed
    assert "no CKA" in printed
    assert load(study).get("representations").groups == ("north", "south", "east")
    printed = run("redundancy", study, "--data", "my.jsonl", "--predictors", "4", "--controls", "2")
    assert "random sets" in printed
    assert load(study).get("redundancy").groups == ("north", "south", "east")
    assert "4 predictors fitted on" in printed
    few = ("--data", "my.jsonl", "--predictors", "30")
    assert "note: fewer than 10 tokens a predictor" in run("redundancy", study, *few, "--controls", "1")
    assert "next: neuropolis report study.h5" in run("represent", "model", "--data", "my.jsonl", "--out", study)
    assert "next: neuropolis locate model" in run("represent", "model", "--data", "my.jsonl", "--out", "new.h5")
    assert "expected 1 to 47" in run("redundancy", study, "--data", "my.jsonl", "--predictors", "99", fails=True)


def test_cards(run: Run, study: str) -> None:
    printed = run("neuron", study, "mlp:1:7", "--data", "my.jsonl")
    for words in ("neuron mlp:1:7", "promotes:", "suppresses:", "nearest by weights:", "taylor (rank)"):
        assert words in printed
    assert load(study).get("cards", "mlp:1:7").neurons == ("mlp:1:7",)
    assert "cards of site mlp" in run("neuron", study, "--group", "all", "--count", "2", "--data", "my.jsonl")
    cards = load(study).get("cards", "cards")
    scores = load(study).scores
    best = scores.of("north").masked_fill(~load(study).sets["north"].mask, -1).flatten().argmax()
    assert cards.neurons[0] == f"mlp:{best // 48}:{best % 48}"
    for arguments, message in {
        ("mlp:1",): "expected SITE:LAYER:INDEX", ("mlp:9:1",): "outside the 3 layers",
        (): "give one neuron", ("--group", "up"): "no set 'up'; it has north, south, east",
    }.items():  # fmt: skip
        assert message in run("neuron", study, *arguments, "--data", "my.jsonl", fails=True)
    assert "does not name a bundled corpus" in run("neuron", study, "mlp:1:7", fails=True)


def test_one_group_alone_is_one_clear_line(run: Run, folder: Path) -> None:
    rows = (folder / "my.jsonl").read_text().splitlines()
    (folder / "one.jsonl").write_text("\n".join(row for row in rows if '"north"' in row))
    run("locate", "model", "--data", "one.jsonl", "--out", "one.h5")
    run("select", "one.h5", "--top", "20%", "--contrast", "none")
    before = load("one.h5").keys
    for verb in ("overlap", "compare", "similarity"):
        assert "one.h5 has one group alone, north; two or more are compared" in run(verb, "one.h5", fails=True)
    represent = ("represent", "model", "--data", "one.jsonl", "--out", "one.h5")
    assert "one.jsonl has one group alone, north" in run(*represent, fails=True)
    assert load("one.h5").keys == before
    tuned = (
        "tune",
        "model",
        "--data",
        "one.jsonl",
        "--study",
        "one.h5",
        "--group",
        "north",
        "--out",
        "d",
        "--epochs",
        "1",
    )
    run(*tuned)
    printed = run("similarity", "one.h5", "--after", "d", "--controls", "1")
    assert "change of the sets' parameters" in printed
    assert "parameter similarity" not in printed
    assert load("one.h5").has("movement")
    assert not load("one.h5").has("similarity")


def test_gains_are_looked_at_before_anything_is_computed(
    run: Run, study: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neuropolis.analysis.similarity as home

    monkeypatch.setattr(home, "similarity", lambda *_args, **_options: pytest.fail("computed"))
    assert "has no continual" in run("similarity", study, "--gains", study, fails=True)


def test_similarity_in_each_trained_model_against_its_performance(run: Run, study: str, folder: Path) -> None:
    groups = ("north", "south", "east")
    for group in groups:
        run(
            "tune",
            "model",
            "--data",
            "my.jsonl",
            "--study",
            study,
            "--group",
            group,
            "--out",
            f"d-{group}",
            "--epochs",
            "1",
        )
    (folder / "seen.csv").write_text("m,north,south,east\nnorth,9,1,2\nsouth,3,9,5\neast,6,2,9\n")
    each = [part for group in groups for part in ("--each", f"{group}=d-{group}")]
    printed = run("similarity", study, "--gains", "seen.csv", *each, "--controls", "0")
    assert "similarity of parameters and transfer over 3 tasks: Pearson" in printed
    found = load(study).get("transfer")
    assert found.gains.tolist() == [[9, 1, 2], [3, 9, 5], [6, 2, 9]]
    assert set(found.origin["similarity"]["each"]) == set(groups)
    assert not found.similar.nan_to_num().allclose(found.similar.nan_to_num().transpose(0, 1))
    for arguments, message in {
        tuple(each): "name that with --gains", (*each[:4], "--gains", "seen.csv"): "--each names no checkpoint for east",
        ("--each", "north", "--gains", "seen.csv"): "expected --each GROUP=CHECKPOINT",
    }.items():  # fmt: skip
        assert message in run("similarity", study, *arguments, fails=True)
