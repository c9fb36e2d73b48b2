"""Linear maps whose backward computes what a slice needs and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..neurons.products import Forward, FrozenProjection, input_gradient, is_plain, kernel_serves, output, weight_of
from .entries import Entry
from .slices import Part, SlicePart


class TrainedProjection:
    """The forward of a projection with a part that is trained.

    It multiplies with the full weight, into which the masters are written before. They are written at every forward
    (a thousandth of a step) and not after an optimizer's step, because a fused optimizer raises no tensor's version.
    """

    def __init__(self, part: SlicePart, held: Sequence[tuple[Entry, nn.Parameter]]) -> None:
        self.part = part
        self.held = held
        self.module = part.module
        self.original: Forward = part.module.forward
        self.is_plain = is_plain(part.module)

    def __call__(self, x: Tensor) -> Tensor:
        for entry, master in self.held:
            entry.write(master.detach())
        if not torch.is_grad_enabled():
            return self.original(x)
        return _SliceProduct.apply(x, self, *(master for _, master in self.held))  # pyright: ignore[reportReturnType]


class _SliceProduct(torch.autograd.Function):
    """A projection whose weight gradient exists for its part alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, projection: TrainedProjection, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        part = projection.part
        ctx.part = part
        ctx.has_bias = bias is not None
        ctx.dtype = weight.dtype
        ctx.save_for_backward(x if part.columns is None else x.index_select(-1, part.columns))
        return _training_output(x, projection)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        (x,) = ctx.saved_tensors
        part: SlicePart = ctx.part
        dx = input_gradient(grad, part.weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        rows = grad if part.rows is None else grad.index_select(-1, part.rows)
        rows = rows.reshape(-1, rows.shape[-1])
        dweight = (rows.t() @ x.reshape(-1, x.shape[-1]).to(rows.dtype)).to(ctx.dtype)
        if not ctx.has_bias:
            return dx, None, dweight
        return dx, None, dweight, rows.sum(dim=0, dtype=ctx.dtype)


def _training_output(x: Tensor, projection: TrainedProjection) -> Tensor:
    if projection.is_plain:
        return output(x, projection.module, projection.original)
    return projection.original(x)


def frozen_projections(model: nn.Module, parts: Sequence[Part]) -> list[FrozenProjection]:
    """The plain projections outside of the parts for which there is a kernel."""
    trained = {id(part.module) for part in parts}
    return [
        FrozenProjection(module)
        for module in model.modules()
        if id(module) not in trained and is_plain(module) and _served(module)
    ]


def _served(module: nn.Module) -> bool:
    weight = weight_of(module)
    return kernel_serves(weight.dtype, weight.device)
