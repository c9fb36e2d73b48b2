"""Batches that memory does not hold: halved and tried again, and none as large afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


class TooLarge(MemoryError):
    """Memory does not hold the pass of one example alone. `row` says which."""

    def __init__(self, row: int) -> None:
        super().__init__(f"one example (row {row}) does not fit in memory")
        self.row = row


@dataclass
class Room:
    """What memory has been seen not to hold. `tokens` limits a batch, padding included; None while every batch fitted."""

    tokens: int | None = None

    def fitting(self, rows: Sequence[int], run: Callable[[Sequence[int]], T], *, length: int) -> Iterator[T]:
        """The runs of a batch of examples of `length` tokens, in as few parts as memory holds.

        Warns when a batch is halved, since sums of other batches round differently. Raises TooLarge for a batch of one.
        """
        size = len(rows) if self.tokens is None else max(1, self.tokens // length)
        if size < len(rows):
            for first in range(0, len(rows), size):
                yield from self.fitting(rows[first : first + size], run, length=length)
            return
        try:
            done = run(rows)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(rows) == 1:
                raise TooLarge(rows[0]) from error
            done = None
        if done is not None:
            yield done
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tokens = length * (len(rows) // 2)
        warnings.warn(
            f"memory did not hold {len(rows)} examples of {length} tokens; batches are of at most {self.tokens} tokens from "
            "here on (scores are the same within rounding)",
            RuntimeWarning,
            stacklevel=2,
        )
        yield from self.fitting(rows, run, length=length)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
