"""Two processes on one machine give the single process's scores, and what goes wrong in one is told by both."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import neuropolis
import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus

ROOT = Path(neuropolis.__file__).parent
SETUP = """
    import os, pickle, sys
    from pathlib import Path
    from types import SimpleNamespace
    import torch
    folder = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    from conftest import character_tokenizer, tiny_model
    from neuropolis.attribution import engine
    from neuropolis.attribution.attribute import attribute
    from neuropolis.neurons.subject import load_model
    corpus = pickle.loads((folder / "corpus").read_bytes())
    subject = load_model((tiny_model("llama"), character_tokenizer()))
    def plain_scores(scores):
        return SimpleNamespace(**{**vars(scores), "origin": dict(scores.origin)})
    def tell(thing):
        (folder / f"told.{rank}").write_bytes(pickle.dumps(thing))
"""


def run_two(arguments: list[str], folder: Path) -> list[str]:
    """What each of two processes printed; their environment is the one that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT.parent}:{ROOT / 'tests'}", "WORLD_SIZE": "2",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    return [out for out, _ in said]


def in_two(code: str, folder: Path, corpus: Corpus) -> list[Any]:
    """What each of two processes told."""
    (folder / "corpus").write_bytes(pickle.dumps(corpus))
    (folder / "run.py").write_text(textwrap.dedent(SETUP) + textwrap.dedent(code))
    run_two(["run.py", str(folder)], folder)
    return [pickle.loads((folder / f"told.{rank}").read_bytes()) for rank in range(2)]


def test_two_processes_give_the_scores_of_one(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    told = in_two(
        """
        sizes, seen = [], []
        plain = engine.forward
        def forward(subject, batch):
            sizes.append(len(batch.rows))
            return plain(subject, batch)
        engine.forward = forward
        found = attribute(
            subject, corpus, methods=("taylor", "gradient"), site=("mlp", "q"), controls=True, keep_rows=True, max_tokens=100,
            progress=lambda done, total: seen.append(done),
        )

        # two of the examples are not finite, and left out by whichever process has them
        def poisoned(subject, batch):
            bad = (batch.rows == 2) | (batch.rows == 7)
            return plain(subject, batch).masked_fill(bad[:, None, None], torch.nan)
        engine.forward = poisoned
        skipping = attribute(subject, corpus, on_not_finite="skip", keep_rows=True, max_tokens=100)
        errors = []
        try:
            attribute(subject, corpus, max_tokens=100)
        except Exception as error:
            errors.append((type(error).__name__, str(error)))

        def failing(subject, batch):
            if rank == 1:
                raise RuntimeError("a cosmic ray")
            return plain(subject, batch)
        engine.forward = failing
        try:
            attribute(subject, corpus, max_tokens=100)
        except Exception as error:
            errors.append((type(error).__name__, str(error)))
        engine.forward = plain
        try:
            attribute(subject, corpus, max_tokens=100 + rank)
        except Exception as error:
            errors.append((type(error).__name__, str(error)))

        # interrupted and resumed, each process from its own file; then another number of processes is refused
        class Interrupted(BaseException):
            pass
        def after(subject, batch, left=[3]):
            left[0] -= 1
            if left[0] == 0:
                raise Interrupted
            return plain(subject, batch)
        engine.forward = after
        work = dict(controls=True, max_tokens=100, checkpoint=folder / "checkpoint", checkpoint_every=0)
        try:
            attribute(subject, corpus, **work)
        except Interrupted:
            pass
        engine.forward = plain
        torch.distributed.barrier()
        files = sorted(p.name for p in folder.glob("checkpoint*"))
        kept = (folder / f"checkpoint.{rank}-of-2").read_bytes()
        torch.distributed.barrier()
        resumed = attribute(subject, corpus, **work)
        (folder / f"checkpoint.{rank}-of-2").write_bytes(kept)
        tell({"found": {name: plain_scores(one) for name, one in found.items()}, "sizes": sizes, "seen": seen,
              "skipping": plain_scores(skipping), "errors": errors, "files": files, "resumed": plain_scores(resumed)})
        """,
        tmp_path,
        corpus,
    )  # fmt: skip
    subject = make_subject("llama")
    alone = attribute(
        subject,
        corpus,
        methods=("taylor", "gradient"),
        site=("mlp", "q"),
        controls=True,
        keep_rows=True,
        max_tokens=100,
    )
    assert sum(sum(one["sizes"]) for one in told) == 24
    assert all(one["sizes"] for one in told)
    assert told[0]["seen"][-1] == 24
    assert told[1]["seen"] == []
    for one in told:
        for name, expected in alone.items():
            found = one["found"][name]
            assert torch.equal(found.counts, expected.counts)
            assert found.origin["examples"] == expected.origin["examples"]
            for part in ("values", "signed", "squares", "control_values", "rows"):
                torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-5, atol=1e-6)
        assert torch.equal(one["resumed"].signed, one["found"]["taylor/mlp"].signed)
        assert one["files"] == ["checkpoint.0-of-2", "checkpoint.1-of-2"]
        skipping = one["skipping"]
        assert skipping.origin["skipped"] == [corpus[2].id, corpus[7].id]
        assert skipping.counts.tolist() == [3, 3, 4]
        assert torch.equal(skipping.rows.isfinite().all(dim=(1, 2)), torch.ones(10, dtype=torch.bool))
        (first, text), (_, ray), (_, different) = one["errors"]
        assert first == "CorpusError"
        assert repr(corpus[2].id) in text or repr(corpus[7].id) in text
        assert "a cosmic ray" in ray
        assert "process 1 scores something else than process 0: max_tokens is 101, not 100" in different
    assert told[0]["errors"][1] == ("Elsewhere", "process 1 failed: RuntimeError: a cosmic ray")
    assert told[1]["errors"][1][0] == "RuntimeError"
    with pytest.raises(ValueError, match="checkpoint of a run by 2 processes, and this one has 1"):
        attribute(subject, corpus, controls=True, max_tokens=100, checkpoint=tmp_path / "checkpoint")


def test_only_one_process_of_the_command_line_writes(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    from neuropolis.analysis.study import load
    from neuropolis.corpora.jsonl import write_jsonl

    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(corpus, tmp_path / "my.jsonl")
    said = run_two(
        ["-m", "neuropolis.cli.main", "locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--checkpoint", "run",
         "--max-tokens", "100"], tmp_path,
    )  # fmt: skip
    assert "wrote study.h5" in said[0]
    assert said[1] == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "my.jsonl", "study.h5"]
    found = load(tmp_path / "study.h5").scores
    torch.testing.assert_close(found.values, attribute(subject, corpus).values, rtol=1e-5, atol=1e-6)
