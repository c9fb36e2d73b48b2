"""Cost: how many examples go through a subject's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..neurons.subject import Subject


@contextmanager
def counted(subject: Subject) -> Iterator[list[float]]:
    """Count examples that go through the blocks, in forwards through all of them: a list of one growing number.

    One whose output has a gradient counts three times, since the backward that follows costs about two forwards.
    """
    total = [0.0]
    blocks = subject.blocks
    hooks = [block.register_forward_hook(partial(_add, total=total, blocks=len(blocks))) for block in blocks]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def _add(_module: nn.Module, _given: Any, output: Any, *, total: list[float], blocks: int) -> None:
    states = output if isinstance(output, Tensor) else output[0]
    total[0] += states.shape[0] * (3 if states.requires_grad else 1) / blocks
