"""Reuse: running a forward from a layer on, with what the layers below it gave before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.subject import Subject

CLOSE = {torch.bfloat16: 5e-2, torch.float16: 1e-2}


def reusable_blocks(subject: Subject) -> list[nn.Module]:
    """The decoder's layers, lowest first; none where the architecture has no adapter."""
    try:
        return subject.blocks
    except (SiteError, AttributeError, ValueError, KeyError, IndexError):
        return []


@contextmanager
def noting(blocks: Sequence[nn.Module], outputs: list[Any]) -> Iterator[None]:
    """While the block runs, layers append what they give."""
    handles = [block.register_forward_hook(lambda _m, _a, out: outputs.append(out)) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reusing(blocks: Sequence[nn.Module], outputs: Sequence[Any], times: int) -> Iterator[None]:
    """While the block runs, these layers do not compute: the last gives its noted output, rows repeated, the others anything.

    A hook cannot leave a module's forward out, so their bound `forward` is shadowed on the instance and put back.
    """
    kept = [(block, block.__dict__.get("forward")) for block in blocks]
    last = _mapped(outputs[len(blocks) - 1], lambda x: x.repeat_interleave(times, dim=0)) if blocks else None
    try:
        for block in blocks:
            block.__dict__["forward"] = lambda *_args, **_kwargs: last
        yield
    finally:
        for block, forward in kept:
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward


def _mapped(output: Any, function: Any) -> Any:
    return tuple(_mapped(part, function) for part in output) if isinstance(output, tuple) else function(output)


def same(again: Float[Tensor, " batch"], intact: Float[Tensor, " batch"], dtype: torch.dtype) -> bool:
    """Whether reused layers gave the objective of the whole model."""
    tolerance = CLOSE.get(dtype, 1e-4)
    return torch.allclose(again, intact, rtol=tolerance, atol=tolerance, equal_nan=True)


def of_rows(output: Any, count: int) -> bool:
    """Whether a block gives hidden states by example, as it must for its output to be used again."""
    if isinstance(output, tuple):
        return len(output) > 0 and all(of_rows(part, count) for part in output)
    return isinstance(output, Tensor) and output.dim() == 3 and output.shape[0] == count
