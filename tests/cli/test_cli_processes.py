"""Commands under torchrun: one process writes, and the others clean up only when it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from neuropolis.attribution import processes
from neuropolis.cli import main as cli


class Stub(processes.Team):
    """One process of a team that takes down what it is asked; `end` looks whether a file is there."""

    def __init__(self, rank: int, looked_at: Path) -> None:
        super().__init__(rank, 1)
        self.looked_at = looked_at
        self.seen: list[Any] = []

    def end(self) -> None:
        self.seen.append(self.looked_at.exists())

    def failed(self, error: Exception, *, what: Any = None) -> None:
        self.seen.append(error)


def run_as(rank: int, monkeypatch: pytest.MonkeyPatch, looked_at: Path, *arguments: str) -> Stub:
    import sys

    stub = Stub(rank, looked_at)
    monkeypatch.setattr(processes, "join_team", lambda: stub)  # the scoring pass has its own name for it
    monkeypatch.setattr(sys, "argv", ["neuropolis", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    return stub


@pytest.mark.parametrize("rank", [0, 1])
def test_checkpoints_stay_until_the_result_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.chdir(folder)
    command = ("locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--checkpoint", "run")
    assert run_as(rank, monkeypatch, folder / "run", *command).seen == [True]
    assert not (folder / "run").exists()
    assert (folder / "study.h5").exists() == (rank == 0)


@pytest.mark.parametrize(
    "command",
    [
        ("stability", "--axes", "threshold"),
        ("fidelity", "--methods", "taylor", "--sample", "2", "--shares", "1", "--controls", "1"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_writes(folder: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], rank: int) -> None:
    monkeypatch.chdir(folder)
    verb, *options = command
    arguments = (verb, "model", "--data", "my.jsonl", "--out", "study.h5", *options)
    assert run_as(rank, monkeypatch, folder / "study.h5", *arguments).seen == [rank == 0]
    assert (folder / "study.h5").exists() == (rank == 0)


def test_what_the_writer_raised_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuropolis.cli import console

    stub = Stub(0, folder)
    monkeypatch.setattr(processes, "join_team", lambda: stub)

    def write() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        console.by_leader(write)
    assert [str(error) for error in stub.seen] == ["the disk is full"]
