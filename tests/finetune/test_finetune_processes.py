"""Two processes that train together, talking over gloo, beside one that trains alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.corpora.jsonl import write_jsonl
from neuropolis.finetune.checkpoints import read_header
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.delta_files import load_delta
from neuropolis.finetune.training import finetune, finetune_full
from tiny_families import build, some, tiny_corpus

HERE = Path(__file__).parent
# 6 rows in batches of 5: processes with unequal shares, and a batch of one row of which one process has none
SETTINGS: dict[str, Any] = {
    "lr": 0.02, "steps": 8, "batch_size": 5, "weight_decay": 0.1, "clip": 0.5, "eval_split": "test", "eval_every": 3,
    "stop_diverged": False,  # whose losses would travel too
}  # fmt: skip

MEMBER = """
import json, os, sys
from pathlib import Path
here, work = sys.argv[1:]
sys.path.insert(0, here)
from tiny_families import build, some
from neuropolis.corpora.loading import load_corpus
from neuropolis.finetune import loop
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.processes import Team
from neuropolis.finetune.training import finetune, finetune_full
from torch import distributed

work = Path(work)
settings = json.loads((work / "settings.json").read_text())
rank = int(os.environ["RANK"])
corpus, subject = load_corpus(work / "rows.jsonl"), build("llama")
told = {"sent": 0}
plain = Team.sum

def counted(self, tensor):
    told["sent"] += tensor.numel()
    return plain(self, tensor)

Team.sum = counted
delta = finetune(subject, corpus, some(subject), **settings)
told["once"], told["numbers"] = told["sent"], delta.num_parameters
delta.save(work / f"slice-{rank}")
finetune_full(subject, corpus, **settings).save(work / f"full-{rank}")
finetune(subject, corpus, some(subject), **settings, accumulate=2).save(work / f"parts-{rank}")

def errors(**changed):
    try:
        finetune(subject, corpus, some(subject), **{**settings, **changed})
    except TuneError as error:
        return str(error)

told["other"] = errors(seed=rank)
def full(*_):
    raise OSError(28, "No space left on device")
keep = loop.write_checkpoint
from neuropolis.finetune import checkpoints
save, checkpoints._save = checkpoints._save, full
told["full"] = errors(checkpoint=work / "none", checkpoint_every=2)
checkpoints._save = save

class Stopped(Exception):
    pass
def stop(done, of):
    if done == 6:
        raise Stopped
try:
    finetune(subject, corpus, some(subject), **settings, checkpoint=work / "run", checkpoint_every=2, progress=stop)
except Stopped:
    pass
finetune(subject, corpus, some(subject), **settings, checkpoint=work / "run", checkpoint_every=2).save(work / f"resumed-{rank}")
(work / f"told-{rank}.json").write_text(json.dumps(told))
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder in which two processes have left their deltas."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    write_jsonl(tiny_corpus(), folder / "rows.jsonl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        command = [sys.executable, "-c", MEMBER, str(HERE), str(folder)]
        members.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for member in members:
        _, said = member.communicate(timeout=300)
        assert member.returncode == 0, said
    return folder


def near(one: Delta, other: Delta) -> None:
    assert one.history == pytest.approx(other.history, rel=1e-4)
    for (_, loss), (_, expected) in zip(
        one.origin["held_out"]["losses"], other.origin["held_out"]["losses"], strict=True
    ):
        assert loss == pytest.approx(expected, rel=1e-4)
    for key, values in one.values.items():
        assert torch.allclose(values, other.values[key], atol=2e-5), key
        assert not torch.equal(values, other.base[key])


@pytest.mark.parametrize("kind", ["slice", "full", "parts", "resumed"])
def test_two_processes_train_what_one_does(work: Path, kind: str) -> None:
    subject = build("llama")
    tune = finetune_full if kind == "full" else partial(finetune, neurons=some(subject))
    alone = tune(subject, tiny_corpus(), **SETTINGS)
    deltas = [load_delta(work / f"{kind}-{rank}", subject=subject) for rank in range(2)]
    for delta in deltas:
        near(delta, alone)
    for key in deltas[0].values:
        assert torch.equal(deltas[0].values[key], deltas[1].values[key])
    assert deltas[0].history == deltas[1].history


def test_resumed_processes_train_what_uninterrupted_ones_do(work: Path) -> None:
    one, other = load_delta(work / "resumed-0"), load_delta(work / "slice-0")
    assert all(torch.equal(one.values[key], other.values[key]) for key in one.values)
    assert one.history == other.history
    assert read_header(work / "run")["step"] == 8


def test_only_compact_gradients_travel(work: Path) -> None:
    """For each step the masters, one flag each and the loss; for each of four evaluations a loss."""
    told = json.loads((work / "told-0.json").read_text())
    subject = build("llama")
    entries = len(finetune(subject, tiny_corpus(), some(subject), steps=1).values)
    assert told["once"] == 8 * (told["numbers"] + entries + 1) + 4


def test_processes_that_disagree_or_fail_all_say_so(work: Path) -> None:
    for rank in range(2):
        told = json.loads((work / f"told-{rank}.json").read_text())
        assert "process 1 trains something else than process 0" in told["other"]
        assert "No space left on device" in told["full"]
