"""The verbs `corpus check`, `split`, `score` and `pick`, from file to file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from neuropolis.corpora.jsonl import read_jsonl

Run = Callable[..., str]


def test_check_tells_and_writes(run: Run, folder: Path) -> None:
    said = run("corpus", "check", "my.jsonl", "--model", "model", "--out", "check.json")
    for words in (
        "rows (items)",
        "duplicates",
        "right answers by place",
        "pick the",
        "tokens of model",
        "wrote check.json",
    ):
        assert words in said
    told = json.loads((folder / "check.json").read_text())
    assert [one["rows"] for one in told["counts"]] == [4, 4, 4]
    assert told["fertility"][0]["per_character"] == 1.0
    assert all(f"problem: {one}" in said for one in told["problems"])


def test_check_is_strict_when_asked(run: Run, folder: Path) -> None:
    path = folder / "my.jsonl"
    path.write_text(path.read_text().replace('"control": "Q: say it: A:", ', "", 1))
    assert "problem: rows without a control twin: 1 of 12" in run("corpus", "check", "my.jsonl")
    assert "my.jsonl: problems found:" in run("corpus", "check", "my.jsonl", "--strict", fails=True)


def test_check_tells_every_bad_line(run: Run, folder: Path) -> None:
    path = folder / "my.jsonl"
    path.write_bytes(path.read_bytes() + "é\n".encode("latin-1") + b'{"id": "cut')
    said = run("corpus", "check", "my.jsonl", fails=True)
    assert (
        "my.jsonl: 2 of 14 lines cannot be read (1 not UTF-8, 1 cut off at the end); the other lines are UTF-8" in said
    )


def test_split_by_item(run: Run, folder: Path) -> None:
    said = run("corpus", "split", "my.jsonl", "--share", "train=0.75", "--share", "test=0.25", "--out", "parted.jsonl")
    assert "note: no row has the tag 'item'" in said
    assert {group: len(read_jsonl(folder / "parted.jsonl").only(group, split="test")) for group in ("north", "south", "east")} == {
        "north": 1, "south": 1, "east": 1,
    }  # fmt: skip
    assert "expected a number, such as train=0.8" in run(
        "corpus", "split", "my.jsonl", "--share", "train=a", "--out", "o.jsonl", fails=True
    )


def test_score_then_pick(run: Run, folder: Path, make_subject: Callable) -> None:
    other = make_subject("gpt2", seed=3)
    other.model.save_pretrained(folder / "other")
    other.tokenizer.save_pretrained(folder / "other")
    said = run("corpus", "score", "my.jsonl", "--small", "other", "--large", "model", "--out", "scored.jsonl")
    assert "ifd_small" in said
    scored = read_jsonl(folder / "scored.jsonl")
    duals = [float(one.tags["dual"]) for one in scored]
    assert max(duals) == 1
    assert not list(folder.glob(".*part"))
    said = run("corpus", "pick", "scored.jsonl", "--out", "picked.jsonl")
    picked = read_jsonl(folder / "picked.jsonl")
    assert picked.counts == {"north": 2, "south": 2, "east": 2}
    for group in picked.groups:
        best = sorted((float(one.tags["dual"]) for one in scored.only(group)), reverse=True)[:2]
        assert sorted((float(one.tags["dual"]) for one in picked.only(group)), reverse=True) == best


def test_a_stopped_score_says_how_to_go_on(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuropolis.attribution import difficulty

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(difficulty, "_means", stop)
        said = run(
            "corpus", "score", "my.jsonl", "--small", "model", "--large", "model", "--out", "scored.jsonl", fails=True
        )
    assert said == "stopped: what was scored stands in .scored.jsonl.small.part; give the same command again to go on"
    assert (folder / ".scored.jsonl.small.part").exists()
    run("corpus", "score", "my.jsonl", "--small", "model", "--large", "model", "--out", "scored.jsonl")
    assert not (folder / ".scored.jsonl.small.part").exists()


def test_two_times_the_same_model_has_no_dual_score(run: Run, folder: Path) -> None:
    said = run("corpus", "score", "my.jsonl", "--small", "model", "--large", "model", "--out", "scored.jsonl")
    assert "no dual score: no prompt helps the large model more than the small one" in said
    assert "ifd_large" in read_jsonl(folder / "scored.jsonl")[0].tags
    assert "no row has a score in the tag 'dual'" in run(
        "corpus", "pick", "scored.jsonl", "--out", "p.jsonl", fails=True
    )


def test_a_place_that_is_no_file_is_refused_before_any_work(run: Run) -> None:
    for verb in (("check", "my.jsonl"), ("split", "my.jsonl")):
        assert "there is no folder" in run("corpus", *verb, "--out", "none/x.jsonl", fails=True)


VERBS = {
    "check": ("check", "my.jsonl"),
    "split": ("split", "my.jsonl"),
    "score": ("score", "my.jsonl", "--small", "model", "--large", "model"),
    "pick": ("pick", "my.jsonl", "--by", "quality"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_is_there_is_replaced_by_force_alone(run: Run, folder: Path, verb: str) -> None:
    _with_a_score(folder / "my.jsonl")
    (folder / "mine.jsonl").write_text("precious")
    said = run("corpus", *VERBS[verb], "--out", "mine.jsonl", fails=True)
    assert "mine.jsonl: the file exists already; give another name, or --force to replace it" in said
    assert (folder / "mine.jsonl").read_text() == "precious"
    run("corpus", *VERBS[verb], "--out", "mine.jsonl", "--force")
    assert "precious" not in (folder / "mine.jsonl").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_the_file_that_is_read_is_never_written_to(run: Run, folder: Path, verb: str) -> None:
    _with_a_score(folder / "my.jsonl")
    before = (folder / "my.jsonl").read_bytes()
    (folder / "other.jsonl").symlink_to("my.jsonl")
    for name in ("my.jsonl", "./my.jsonl", "other.jsonl"):
        said = run("corpus", *VERBS[verb], "--out", name, "--force", fails=True)
        assert "it is the file that is read; give another name" in said
    assert (folder / "my.jsonl").read_bytes() == before


def test_a_report_that_cannot_be_written_whole_leaves_what_was_there(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.corpora import jsonl

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (folder / "check.json").write_text("precious")
    with monkeypatch.context() as patched:
        patched.setattr(jsonl.os, "fsync", full)
        run("corpus", "check", "my.jsonl", "--out", "check.json", "--force", fails=True)
    assert (folder / "check.json").read_text() == "precious"


def _with_a_score(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["tags"] = {**row.get("tags", {}), "quality": str(number)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
