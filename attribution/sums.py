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
    `rows` [example, layer, neuron] holds every example's score where they were asked for. `routed` [group, layer, expert] says how
    many real tokens reached each expert, where the neurons are of experts. `extra` is what a method has to tell
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
    routed: Int[Tensor, "group layer expert"] | None = None

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
        for tensor in (self.absolute, self.signed, self.squares, self.counts, self.tokens, self.routed):
            if tensor is not None:
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
        examples is the mean over tokens: those that were routed to the neuron's expert where it has one, or with `all_tokens` any.
        A group without examples gets NaN; one that sends an expert no token has 0 there.
        """
        counts = self.counts.to(self.signed.dtype)[:, None, None]
        tokens = self.tokens.to(self.signed.dtype)[:, None, None]
        if over == "tokens" and self.routed is not None:
            units = self.signed.shape[-1] // self.routed.shape[-1]
            reached = self.routed.to(self.signed.dtype).repeat_interleave(units, dim=-1)
            tokens = torch.where(tokens > 0, reached.clamp(min=1), tokens)
        scale = torch.ones_like(counts) if over == "examples" else counts / tokens
        divisor = (counts / scale).to(self.signed.device)
        scale = scale.to(self.signed.device)
        absolute, signed, squares = self.absolute / divisor, self.signed / divisor, self.squares * scale / divisor
        return absolute.cpu(), signed.cpu(), squares.cpu()


def empty_sums(
    shape: tuple[int, int, int],
    num_examples: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    keep_rows: bool = False,
    experts: int | None = None,
) -> Sums:
    """Sums of nothing [group, layer, neuron]; `keep_rows` makes room for every example's scores, in float32 on the CPU.

    `experts` makes room to count the tokens that reach each of so many.
    """
    absolute, signed, squares = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(3))
    counts, tokens = (torch.zeros(shape[0], dtype=torch.long) for _ in range(2))
    rows = torch.full((num_examples, *shape[1:]), torch.nan) if keep_rows else None
    routed = None if experts is None else torch.zeros((*shape[:2], experts), dtype=torch.long)
    scored = torch.zeros(num_examples, dtype=torch.bool)
    return Sums(absolute, signed, squares, counts, tokens, scored, rows, routed=routed)
