"""Stages: running a piece of a plan whole, with what its lower layers make of it written down, or on from there.

What the layers below an intervention compute is the same whatever the intervention. It is written down in one pass with
nothing ablated, and the passes of sets that begin at layer k take the output of block k - 1 from there: the blocks below
stand aside while the model runs, and the prompt's keys and values of those layers are put into the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn


class Stage(Protocol):
    """What is done around the one or two forward passes of a piece: its prompts, then what choices add to them."""

    def during(self, name: str) -> AbstractContextManager[Any]:
        """Around the pass `name`, "prompt" or "tail"."""
        ...

    def between(self, cache: Any) -> None:
        """With the prompts' keys and values, before the tails run on them."""
        ...


@dataclass(frozen=True)
class Whole:
    """Every layer runs."""

    def during(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def between(self, cache: Any) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Recorded:
    """Every layer runs, and what the blocks below each of `depths` put out is kept, with the keys and values."""

    blocks: Sequence[nn.Module]
    depths: Collection[int]
    outputs: dict[tuple[str, int], Any] = field(default_factory=dict)
    layers: list[Any] = field(default_factory=list)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        with ExitStack() as stack:
            for depth in self.depths:

                def keep(_module: Any, _args: Any, output: Any, depth: int = depth) -> None:
                    self.outputs[name, depth] = output

                stack.callback(self.blocks[depth - 1].register_forward_hook(keep).remove)
            yield

    def between(self, cache: Any) -> None:
        # copies of the holders, not of the tensors: selecting and appending make new tensors
        self.layers.extend(copy.copy(layer) for layer in cache.layers[: max(self.depths, default=0)])


@dataclass(frozen=True, eq=False)
class Resumed:
    """The layers from `depth` on run; what lies below is taken from a recording."""

    recorded: Recorded
    depth: int

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        output = self.recorded.outputs[name, self.depth]
        below = self.recorded.blocks[: self.depth]
        kept = [vars(block).get("forward") for block in below]
        try:
            for block in below:
                block.forward = lambda *_args, **_kwargs: output
            yield
        finally:
            for block, forward in zip(below, kept, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward

    def between(self, cache: Any) -> None:
        cache.layers[: self.depth] = [copy.copy(layer) for layer in self.recorded.layers[: self.depth]]
