"""Kill -9 a scoring pass at random moments, go on from its checkpoint, and compare with a pass that nobody interrupted.

A pass is killed again and again until it ends; then its scores must equal the uninterrupted ones bit for bit, and no file
may be left. The checkpoint is written after every batch, so that many kills fall into the writing.

    python benchmarks/kill_and_resume.py --kills 200
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_TOKENS = 600
TAKES = {"ig": ["steps"], "conductance": ["steps"], "smoothgrad": ["samples"], "exact": ["sample"]}


OPTIONS = {"steps": 1, "samples": 1, "sample": 8}


def score(subject: Any, corpus: Any, methods: list[str], folder: Path, checkpoint: Path | None) -> None:
    """One pass; what it found goes into a file that appears whole."""
    import torch
    from neuropolis.attribution.attribute import attribute

    options = {key: value for key, value in OPTIONS.items() if any(key in TAKES.get(m, ()) for m in methods)}
    found = attribute(
        subject, corpus, methods=methods, keep_rows=True, max_tokens=MAX_TOKENS, checkpoint=checkpoint,
        checkpoint_every=0, options=options,
    )  # fmt: skip
    tensors = {
        f"{m} {n}": getattr(s, n) for m, s in found.items() for n in ("values", "signed", "squares", "counts", "rows")
    }
    torch.save(tensors, folder / "found.part")
    (folder / "found.part").rename(folder / "found")


def in_child(*arguments: Any) -> int:
    """The process number of a forked child that scores."""
    child = os.fork()
    if child == 0:
        try:
            score(*arguments)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--examples", type=int, default=12, help="examples of each group")
    parser.add_argument("--methods", default="taylor,gradient", help="with commas")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch
    from neuropolis.corpora.examples import Corpus
    from neuropolis.corpora.loading import load_corpus
    from neuropolis.neurons.subject import load_model

    torch.set_num_threads(1)  # a forked child has no other threads
    subject = load_model("bundled:polis")
    corpus = load_corpus("bundled:polis").part("auto", auto="train")
    corpus = Corpus(tuple(e for g in corpus.groups for e in list(corpus.only(g))[: arguments.examples]))
    subject.site("mlp")
    draw = random.Random(arguments.seed)
    methods = arguments.methods.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint = Path(name), Path(name) / "run.checkpoint"
        began = time.monotonic()
        os.waitpid(in_child(subject, corpus, methods, folder, checkpoint), 0)  # with writing, as the killed runs do
        duration = time.monotonic() - began
        (folder / "found").unlink()
        os.waitpid(in_child(subject, corpus, methods, folder, None), 0)
        (folder / "found").rename(folder / "expected")
        expected = torch.load(folder / "expected")
        kills = writing = runs = 0
        while kills < arguments.kills or checkpoint.exists():
            child = in_child(subject, corpus, methods, folder, checkpoint)
            if kills < arguments.kills:
                time.sleep(draw.uniform(0, duration))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise SystemExit("a run failed; its message stands above")
            kills += int(os.WIFSIGNALED(status))
            writing += int(any(folder.glob(f".{checkpoint.name}*.part")))
            if (folder / "found").exists():
                runs += 1
                compare(torch.load(folder / "found"), expected)
                (folder / "found").unlink()
        left = [path.name for path in folder.iterdir() if path.name not in ("expected", "found.part")]
        if left:
            raise SystemExit(f"files are left: {left}")
        print(
            f"{kills} kills, {writing} of them while the checkpoint was written; {runs} runs came to an end after all, each bit "
            f"for bit as the uninterrupted one; one pass takes {duration:.2f} s; no file is left"
        )


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    import torch

    for name, tensor in expected.items():
        if not torch.equal(found[name], tensor):
            raise SystemExit(f"{name} differs after resuming")


if __name__ == "__main__":
    main()
