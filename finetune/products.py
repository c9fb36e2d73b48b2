"""Linear maps that keep their forward and whose backward computes what a slice needs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..neurons.sites import is_transposed
from .slices import Entry, SlicePart

Forward = Callable[[Tensor], Tensor]
_WORTH_A_KERNEL = 2**28


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

    def __call__(self, x: Tensor) -> Tensor:
        for entry, master in self.held:
            entry.write(master.detach())
        return _SliceProduct.apply(x, self, *(master for _, master in self.held))  # pyright: ignore[reportReturnType]


class FrozenProjection:
    """The forward of a projection of which nothing is trained: the gradient of its input by `input_gradient`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original: Forward = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        weight: Any = self.module.weight
        if weight.requires_grad or not (x.requires_grad and torch.is_grad_enabled()):
            return self.original(x)
        return _FrozenProduct.apply(x, self)  # pyright: ignore[reportReturnType]


Projection = TrainedProjection | FrozenProjection


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
        return projection.original(x)

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


class _FrozenProduct(torch.autograd.Function):
    """A projection that passes the gradient of its input and has no other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: FrozenProjection) -> Tensor:
        ctx.module = projection.module
        ctx.dtype = x.dtype
        return projection.original(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight = ctx.module.weight.detach()
        return input_gradient(grads[0], weight.t() if is_transposed(ctx.module) else weight).to(ctx.dtype), None


def input_gradient(grad: Float[Tensor, "*token out"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*token in"]:
    """`grad @ weight` in the gradient's dtype.

    Large float32 products on a CPU go to oneDNN, to which torch gives bfloat16 alone; `torch.backends.mkldnn.flags`
    switches that off. On an AMD EPYC it takes half of MKL's time.
    """
    weight = weight.to(grad.dtype)
    if kernel_serves(weight) and grad.numel() * weight.shape[1] >= _WORTH_A_KERNEL:
        return torch.ops.mkldnn._linear_pointwise(grad, weight.t(), None, "none", [], "")
    return grad @ weight


def kernel_serves(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with weights of this dtype on this device."""
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def frozen_projections(model: nn.Module, parts: Sequence[SlicePart]) -> list[FrozenProjection]:
    """The plain linear maps outside of the parts for which `input_gradient` has a kernel of its own."""
    trained = {id(part.module) for part in parts}
    return [
        FrozenProjection(module)
        for module in model.modules()
        if (type(module) is nn.Linear or is_transposed(module))
        and id(module) not in trained
        and isinstance(module.weight, nn.Parameter)
        and kernel_serves(module.weight)
        # somebody else's forward need not be a product with the weight, and an offloaded weight is not there later
        and "forward" not in module.__dict__
    ]


@contextmanager
def installed(projection: Projection) -> Iterator[None]:
    """`projection` as the forward of its module; a forward that somebody else put on the instance comes back."""
    own = projection.module.__dict__
    before = own.get("forward")
    own["forward"] = projection
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before
