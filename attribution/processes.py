"""Several processes that score one corpus together: each takes a share of the batches, and only sums travel.

They talk on the CPU through gloo, whatever the models compute on: once at the start, once at the end, and through the
store that torch keeps for them when one of them fails.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(days=1)  # batches of one process may take longer than those of another
GLANCE = 1.0  # seconds between two looks at whether another process failed
_PASSES = [0]


class Elsewhere(ChildProcessError):
    """Another process of the run failed. `rank` says which, `what` is what it told of its error."""

    def __init__(self, rank: int, text: str, what: Any = None) -> None:
        super().__init__(f"process {rank} failed: {text}")
        self.rank = rank
        self.what = what


class Team:
    """The processes of a pass, and which of them this one is. A run of one process is a team of one."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self._group = rank, size, group
        self._key, self._looked = "", time.monotonic()
        if size > 1:
            _PASSES[0] += 1
            self._key = f"neuropolis/pass {_PASSES[0]}/failed"

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows progress and writes files."""
        return self.rank == 0

    def same(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in every process unless all of them are about to score the same."""
        told = self._told(dict(facts))
        for rank, other in enumerate(told):
            differ = [key for key in facts if other[key] != told[0][key]]
            if differ:
                said = "; ".join(f"{key} is {other[key]!r}, not {told[0][key]!r}" for key in differ)
                raise ValueError(
                    f"process {rank} scores something else than process 0: {said}; start every process with the same "
                    "arguments and files"
                )

    def another_failed(self) -> bool:
        """Whether another process has failed, so that it is no use to go on. Asks at most once a second."""
        if self.size == 1 or time.monotonic() - self._looked < GLANCE:
            return False
        self._looked = time.monotonic()
        return _store().check([self._key])

    def failed(self, error: Exception, *, what: Any = None) -> None:
        """Tell the others of an error, and wait until all of them know."""
        if self.size > 1:
            _store().set(self._key, str(self.rank))
            self._told((f"{type(error).__name__}: {error}", what))

    def end(self) -> None:
        """Wait for the others. Raises Elsewhere when one of them failed."""
        for rank, one in enumerate(self._told(None)):
            if one is not None:
                raise Elsewhere(rank, *one)

    def add(self, tensor: Tensor) -> None:
        """The sum over processes, in place."""
        if self.size > 1:
            here = tensor.cpu().contiguous()
            distributed.all_reduce(here, group=self._group)
            tensor.copy_(here)

    def _told(self, thing: Any) -> list[Any]:
        told: list[Any] = [thing] * self.size
        if self.size > 1:
            distributed.all_gather_object(told, thing, group=self._group)
        return told


def join_team() -> Team:
    """The processes of torch.distributed where it is initialised, or those that `torchrun` and `accelerate launch` started."""
    if not distributed.is_available():
        return Team()
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
            return Team()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    if distributed.get_world_size() == 1:
        return Team()
    return Team(distributed.get_rank(), distributed.get_world_size(), _cpu_group(distributed.group.WORLD))


@cache
def _cpu_group(_world: Any) -> Any:
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
