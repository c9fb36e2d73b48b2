"""Several processes that train one slice together: each takes a share of every batch, and only masters' gradients travel."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from ..neurons.subject import Subject
from .errors import TuneError

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a run, and which of them this one is. A run of one process is a team of one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's rows of a batch; the shares of all processes are the batch."""
        return parts(rows, self.size)[self.rank]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, masters: Iterable[nn.Parameter]) -> None:
        """Every master's gradient summed over processes; one that no process has stays None."""
        if self.size == 1:
            return
        held = list(masters)
        present = torch.tensor([float(master.grad is not None) for master in held], device=held[0].device)
        for master, count in zip(held, self.sum(present).tolist(), strict=True):
            if count:
                master.grad = torch.zeros_like(master) if master.grad is None else master.grad
                self.sum(master.grad)

    def same(self, facts: str) -> None:
        """Raise TuneError in every process unless all of them give the same text."""
        if self.size == 1:
            return
        told: list[str] = [""] * self.size
        distributed.all_gather_object(told, facts)
        for rank, other in enumerate(told):
            if other != told[0]:
                raise TuneError(
                    f"process {rank} trains something else than process 0: {other}, not {told[0]}; "
                    "start every process with the same arguments and files"
                )

    def all_told(self, error: TuneError | None) -> None:
        """Raise in every process what went wrong in one of them, so that none waits for another."""
        if self.size > 1:
            told: list[str | None] = [None] * self.size
            distributed.all_gather_object(told, None if error is None else str(error))
            said = next((text for text in told if text is not None), None)
            error = error or (None if said is None else TuneError(said))
        if error is not None:
            raise error


def join_team(subject: Subject) -> Team:
    """The processes that `torchrun` or `accelerate launch` started, joined through accelerate; else a team of one.

    Each process loads the subject onto its own device. Raises TuneError when the group cannot carry its tensors.
    """
    if not distributed.is_available():
        return Team()
    on_cpu = subject.device.type == "cpu"
    if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        # not Accelerator: its precision is one for the whole program, and would act on whatever else runs in it
        PartialState(cpu=True, backend="gloo") if on_cpu else PartialState()
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return Team()
    if on_cpu and distributed.get_backend() == "nccl":
        raise TuneError(
            f"{subject.name} is on the CPU, but the processes talk over nccl, which carries tensors on GPUs only; "
            "load it on each process's GPU, or start the processes with the gloo backend"
        )
    return Team(distributed.get_rank(), distributed.get_world_size())


def own_device() -> str | None:
    """The GPU of this process where several were started on one machine; None leaves the choice to `load_model`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def parts(rows: Sequence[T], number: int) -> list[Sequence[T]]:
    """`rows` in so many runs, in order, whose lengths differ by one at most; some are empty where rows are few."""
    small, larger = divmod(len(rows), number)
    ends = [0]
    for place in range(number):
        ends.append(ends[-1] + small + (place < larger))
    return [rows[first:last] for first, last in pairwise(ends)]
