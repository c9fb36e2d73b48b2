"""Sums: what a pass keeps of every group, and how it becomes scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .methods import Over


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over a group's examples: of |score|, of the signed score, of its square [group, layer, neuron].

    `counts` and `tokens` [group] say over how many examples and real tokens, `scored` [example] which examples are in.
    `rows` [example, layer, neuron] holds every example's score where they were asked for. `extra` is what a method has to tell
    beside its scores, for the scores' origin; a tensor [example] becomes its mean over the examples that are in.
    """

    absolute: Float[Tensor, "group layer neuron"]
    signed: Float[Tensor, "group layer neuron"]
    squares: Float[Tensor, "group layer neuron"]
    counts: Int[Tensor, " group"]
    tokens: Int[Tensor, " group"]
    scored: Bool[Tensor, " example"]
    rows: Float[Tensor, "example layer neuron"] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """`extra` as plain values."""
        return {
            name: float(value[self.scored].mean()) if isinstance(value, Tensor) else value
            for name, value in self.extra.items()
        }

    def add(self, layer: int, groups: Int[Tensor, " batch"], score: Float[Tensor, "batch neuron"]) -> None:
        """Take one layer's scores of a batch in."""
        score = score.to(self.signed.dtype)
        self.signed[:, layer].index_add_(0, groups, score)
        self.absolute[:, layer].index_add_(0, groups, score.abs())
        self.squares[:, layer].index_add_(0, groups, score.square())

    def gather(self, add: Callable[[Tensor], None], *, extra: Iterable[str] | None = None) -> None:
        """Take in what other processes have summed; `add` makes a tensor the sum over processes, in place.

        `extra` names the tensors [example] that any process has to tell, by default this one's.
        """
        if self.rows is not None:
            self.rows[~self.scored] = 0
        scored = self.scored.int()
        add(scored)
        self.scored.copy_(scored > 0)
        for tensor in (self.absolute, self.signed, self.squares, self.counts, self.tokens):
            add(tensor)
        for name in list(self.extra) if extra is None else extra:
            told = self.extra.setdefault(name, torch.zeros(len(self.scored), dtype=torch.float64))
            told.nan_to_num_(nan=0.0)  # examples that another process has
            add(told)
        if self.rows is not None:
            add(self.rows)
            self.rows[~self.scored] = torch.nan

    def means(self, over: Over = "examples") -> tuple[Tensor, Tensor, Tensor]:
        """Mean |score|, mean signed score and mean square of each group [group, layer, neuron], on the CPU.

        Over tokens, an example's score is divided by the mean number of tokens of its group's examples, so that the mean over
        examples is the mean over tokens. A group without examples gets NaN.
        """
        counts = self.counts.to(self.signed.dtype)
        scale = torch.ones_like(counts) if over == "examples" else counts / self.tokens
        divisor = (counts / scale)[:, None, None].to(self.signed.device)
        scale = scale[:, None, None].to(self.signed.device)
        absolute, signed, squares = self.absolute / divisor, self.signed / divisor, self.squares * scale / divisor
        return absolute.cpu(), signed.cpu(), squares.cpu()


def empty_sums(
    shape: tuple[int, int, int], num_examples: int, *, dtype: torch.dtype, device: torch.device, keep_rows: bool = False
) -> Sums:
    """Sums of nothing [group, layer, neuron]; `keep_rows` makes room for every example's scores, in float32 on the CPU."""
    absolute, signed, squares = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(3))
    counts, tokens = (torch.zeros(shape[0], dtype=torch.long) for _ in range(2))
    rows = torch.full((num_examples, *shape[1:]), torch.nan) if keep_rows else None
    return Sums(absolute, signed, squares, counts, tokens, torch.zeros(num_examples, dtype=torch.bool), rows)
