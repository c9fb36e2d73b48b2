"""The one-pass engine: per-example gradients of neurons for every group at once, without parameter gradients.

An identity function stands on every tap. In its backward it sees the gradient of a layer's neurons beside their
activation, reduces both to one score per example and neuron, and adds that to its group's sums; nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.sites import Site
from ..neurons.subject import Subject
from .encoding import Batch, Encoded, PaddingSide, batches, forward, pad_id
from .objectives import Contrast, Objective

TokenReduction = Literal["sum", "abs", "mean", "max"]
TOKEN_REDUCTIONS = ("sum", "abs", "mean", "max")
Contribution = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over a group's examples: of |score|, of the signed score, of its square [group, layer, neuron]; and their number."""

    absolute: Float[Tensor, "group layer neuron"]
    signed: Float[Tensor, "group layer neuron"]
    squares: Float[Tensor, "group layer neuron"]
    counts: Int[Tensor, " group"]


class NotFinite(ValueError):
    """The objective of some examples is NaN or infinite. `rows` says which."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"the objective of {len(rows)} examples is not finite")
        self.rows = tuple(rows)


def one_pass(
    subject: Subject,
    encoded: Sequence[Encoded],
    groups: Int[Tensor, " example"],
    *,
    site: Site,
    objective: Objective,
    contrasts: Sequence[Sequence[Contrast]] = (),
    contribution: Contribution,
    tokens: TokenReduction = "sum",
    max_tokens: int = 4096,
    padding_side: PaddingSide = "right",
    progress: Progress | None = None,
) -> Sums:
    """Score every example once and sum by group.

    The sums are at least float32, on the subject's device. A score does not depend on the example's batch mates.
    Raises NotFinite when the objective of an example is NaN or infinite.
    """
    sums = _empty(subject, site, int(groups.max()) + 1)
    sign = -1.0 if objective.lower_is_better else 1.0
    done = 0
    with subject.quiet(), torch.enable_grad():
        for batch in batches(encoded, max_tokens=max_tokens, padding_side=padding_side, pad_id=pad_id(subject)):
            sink = _Sink(
                sums, groups[batch.rows].to(subject.device), batch.real.to(subject.device), sign, tokens, contribution
            )
            with ExitStack() as stack:
                for layer, tap in enumerate(site.taps):
                    side = tap.side
                    stack.enter_context(
                        tap.attached(lambda x, layer=layer, sink=sink, side=side: _tapped(x, layer, sink, side))
                    )
                values = objective.value(forward(subject, batch), batch, contrasts)
            _check_finite(values, batch)
            values.sum().backward()
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))
    sums.counts.copy_(torch.bincount(groups, minlength=len(sums.counts)))
    return sums


@dataclass(frozen=True, eq=False)
class _Sink:
    """Takes a layer's gradients and activations of one batch to the groups' sums."""

    sums: Sums
    groups: Int[Tensor, " batch"]
    real: Bool[Tensor, "batch token"]
    sign: float
    tokens: TokenReduction
    contribution: Contribution

    def take(self, layer: int, grad: Tensor, x: Tensor) -> None:
        # some families fold batch and token into one dimension before their FFN
        shape = (*self.real.shape, x.shape[-1])
        score = self.sign * self._reduced(self.contribution(grad.reshape(shape), x.reshape(shape)))
        score = score.to(self.sums.signed.dtype)
        self.sums.signed[:, layer].index_add_(0, self.groups, score)
        self.sums.absolute[:, layer].index_add_(0, self.groups, score.abs())
        self.sums.squares[:, layer].index_add_(0, self.groups, score.square())

    def _reduced(self, part: Float[Tensor, "batch token neuron"]) -> Float[Tensor, "batch neuron"]:
        if part.dtype in (torch.bfloat16, torch.float16):
            part = part.float()
        if self.tokens == "max":
            worst = -self.sign * torch.inf
            part = part.masked_fill(~self.real[..., None], worst)
            return part.amax(dim=1) if self.sign > 0 else part.amin(dim=1)
        if self.tokens == "abs":
            return self.sign * part.abs().sum(dim=1)
        total = part.sum(dim=1)
        return total / self.real.sum(dim=1, keepdim=True) if self.tokens == "mean" else total


class _Tapped(torch.autograd.Function):
    """Identity; its backward hands gradient and activation to the sink. It saves the tensor that the projection saves anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: int, sink: _Sink) -> Tensor:
        ctx.layer, ctx.sink = layer, sink
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.sink.take(ctx.layer, grads[0], ctx.saved_tensors[0])
        return grads[0], None, None


def _tapped(x: Tensor, layer: int, sink: _Sink, side: str) -> Tensor:
    if not x.requires_grad:  # the lowest scored layer: nothing below it enters the backward
        x = x.detach().requires_grad_()
    out: Tensor = _Tapped.apply(x, layer, sink)  # pyright: ignore[reportAssignmentType]
    # some families (Falcon) add to an output in place, which autograd forbids on a view
    return out.clone() if side == "out" else out


def _empty(subject: Subject, site: Site, num_groups: int) -> Sums:
    dtype = torch.promote_types(subject.dtype, torch.float32)
    shape = (num_groups, site.num_layers, site.width)
    absolute, signed, squares = (torch.zeros(shape, dtype=dtype, device=subject.device) for _ in range(3))
    return Sums(absolute, signed, squares, torch.zeros(num_groups, dtype=torch.long))


def _check_finite(values: Tensor, batch: Batch) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise NotFinite(batch.rows[~finite.cpu()].tolist())
