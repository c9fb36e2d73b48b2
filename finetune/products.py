"""Linear maps whose backward computes what a slice needs and nothing else, and the matrix products that they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..neurons.sites import is_transposed
from .entries import Entry
from .expert_products import TrainedExperts
from .slices import Part, SlicePart

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
        self.is_plain = is_plain(part.module)

    def __call__(self, x: Tensor) -> Tensor:
        for entry, master in self.held:
            entry.write(master.detach())
        if not torch.is_grad_enabled():
            return self.original(x)
        return _SliceProduct.apply(x, self, *(master for _, master in self.held))  # pyright: ignore[reportReturnType]


class FrozenProjection:
    """The forward of a plain projection of which nothing is trained."""

    is_plain = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original: Forward = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        thawed = any(parameter.requires_grad for parameter in self.module.parameters())
        if thawed or not torch.is_grad_enabled():
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


class _FrozenProduct(torch.autograd.Function):
    """A projection that passes the gradient of its input and has no other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: FrozenProjection) -> Tensor:
        ctx.module = projection.module
        ctx.dtype = x.dtype
        return _training_output(x, projection)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return input_gradient(grads[0], weight_of(ctx.module)).to(ctx.dtype), None


def _training_output(x: Tensor, projection: Projection) -> Tensor:
    """What the module gives; a plain module's by oneDNN where that pays."""
    if projection.is_plain and not torch.is_autocast_enabled(x.device.type):
        weight = weight_of(projection.module)
        if _kernel_pays(x, weight):
            bias: Any = projection.module.bias
            return _kernel(x, weight, None if bias is None else bias.detach())
    return projection.original(x)


def input_gradient(grad: Float[Tensor, "*token out"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*token in"]:
    """`grad @ weight` in the gradient's dtype."""
    weight = weight.to(grad.dtype)
    return _kernel(grad, weight.t()) if _kernel_pays(grad, weight.t()) else grad @ weight


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """A projection's weight, however the module stores it, off any autograd tape."""
    weight: Any = module.weight
    return weight.detach().t() if is_transposed(module) else weight.detach()


def kernel_serves(weight: Tensor) -> bool:
    """Whether oneDNN is there for weights of this dtype on this device.

    For float32 on a CPU torch calls MKL, which on AMD processors takes twice oneDNN's time. The last bits of the two
    differ. `torch.backends.mkldnn.enabled = False` keeps to what torch would call.
    """
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _kernel_pays(x: Tensor, weight: Tensor) -> bool:
    """Small products are not worth the millisecond in which oneDNN prepares for a new number of tokens."""
    return x.dtype == weight.dtype and kernel_serves(weight) and x.numel() * weight.shape[0] >= _WORTH_A_KERNEL


def _kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def frozen_projections(model: nn.Module, parts: Sequence[Part]) -> list[FrozenProjection]:
    """The plain projections outside of the parts for which there is a kernel."""
    trained = {id(part.module) for part in parts}
    return [
        FrozenProjection(module)
        for module in model.modules()
        if id(module) not in trained and is_plain(module) and kernel_serves(weight_of(module))
    ]


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a Linear or a Conv1D that computes with its weight and does nothing else.

    A forward that somebody put on the instance may do anything, and the weight of an offloaded module comes and goes.
    """
    return (
        (type(module) is nn.Linear or is_transposed(module))
        and isinstance(module.weight, nn.Parameter)
        and "forward" not in module.__dict__
    )


@contextmanager
def installed(projection: Projection | TrainedExperts) -> Iterator[None]:
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
