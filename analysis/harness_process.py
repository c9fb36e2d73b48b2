"""What a run of lm-evaluation-harness does to its process and says on its way, kept in bounds."""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .harness_lm import SubjectLM


class Count:
    """Answered requests of all runs, as (done, total); the total is an estimate until the first run ends."""

    def __init__(self, runs: int, progress: Callable[[int, int], None] | None) -> None:
        self.runs, self.progress, self.done, self.begun, self.run = runs, progress, 0, 0, 0

    def follow(self, lm: SubjectLM) -> None:
        if self.progress is None:
            return
        from .harness_lm import Answered

        self.run += 1
        lm.set_cache_hook(Answered(self._one))
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(lm, name, self._announced(getattr(lm, name)))

    def _announced(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def announced(requests: list[Any], **how: Any) -> Any:
            self.begun += len(requests)
            return answer(requests, **how)

        return announced

    def _one(self) -> None:
        assert self.progress is not None
        self.done += 1
        self.progress(min(self.done, self.begun), self.begun * self.runs // self.run)


@contextmanager
def as_before() -> Iterator[None]:
    """Keep to the block what the harness does to a process: it seeds every generator, prints, and starts processes.

    For a log of its own it also describes the machine with git and pip, which takes a second and says "fatal: not a git
    repository"; nothing of that is kept here, so it is left out.
    """
    import numpy as np
    from lm_eval import evaluator  # pyright: ignore[reportMissingImports]

    states = random.getstate(), np.random.get_state()
    left_out = {name: getattr(evaluator, name) for name in ("add_env_info", "get_git_commit_hash")}
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    for name in left_out:
        setattr(evaluator, name, lambda *_args: None)
    try:
        with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name, function in left_out.items():
            setattr(evaluator, name, function)
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = single
