"""The matrix products of projections of which nothing is trained, by the fastest kernel that there is for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .sites import is_transposed

Forward = Callable[[Tensor], Tensor]
_WORTH_A_KERNEL = 2**28


class Projection(Protocol):
    """What stands in the place of a module's forward."""

    @property
    def module(self) -> nn.Module: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class FrozenProjection:
    """The forward of a plain projection of which nothing is trained.

    Where no gradient is recorded it is the module's own forward, bit for bit, unless the fast product is wanted `always`.
    """

    def __init__(self, module: nn.Module, *, always: bool = False) -> None:
        self.module = module
        self.original: Forward = getattr(module, _slot(module))
        self.always = always

    def __call__(self, x: Tensor) -> Tensor:
        thawed = any(parameter.requires_grad for parameter in self.module.parameters())
        if thawed or not (self.always or torch.is_grad_enabled()):
            return self.original(x)
        if not torch.is_grad_enabled():
            return output(x, self.module, self.original)
        return _FrozenProduct.apply(x, weight_of(self.module), self)  # pyright: ignore[reportReturnType]


class _FrozenProduct(torch.autograd.Function):
    """A projection that passes the gradient of its input and has no other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, projection: FrozenProjection) -> Tensor:
        ctx.save_for_backward(weight)  # not through the module, whose weight may be gone by then where it is offloaded
        ctx.dtype = x.dtype
        return output(x, projection.module, projection.original)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return input_gradient(grads[0], weight).to(ctx.dtype), None, None


def output(x: Float[Tensor, "*token in"], module: nn.Module, original: Forward) -> Float[Tensor, "*token out"]:
    """What a plain module gives; by oneDNN where that pays, else by its `original` forward."""
    weight = weight_of(module)
    if _kernel_pays(x, weight) and not torch.is_autocast_enabled(x.device.type):
        bias: Any = module.bias
        return _kernel(x, weight, None if bias is None else bias.detach())
    return original(x)


def input_gradient(grad: Float[Tensor, "*token out"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*token in"]:
    """`grad @ weight` in the gradient's dtype."""
    weight = weight.to(grad.dtype)
    return _kernel(grad, weight.t()) if _kernel_pays(grad, weight.t()) else grad @ weight


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """A projection's weight, however the module stores it, off any autograd tape."""
    weight: Any = module.weight
    return weight.detach().t() if is_transposed(module) else weight.detach()


def kernel_serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN is there for products of this dtype on this device.

    For float32 on a CPU torch calls MKL, which on AMD processors takes twice oneDNN's time. The last bits of the two
    differ. `torch.backends.mkldnn.enabled = False` keeps to what torch would call.
    """
    return (
        dtype == torch.float32
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _kernel_pays(x: Tensor, weight: Tensor) -> bool:
    """Small products are not worth the millisecond in which oneDNN prepares for a new number of tokens."""
    return (
        x.dtype == weight.dtype
        and kernel_serves(weight.dtype, weight.device)
        and x.numel() * weight.shape[0] >= _WORTH_A_KERNEL
    )


def _kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a Linear or a Conv1D that computes with its weight and does nothing else.

    A forward that somebody put on the instance may do anything, but for that of accelerate's offload, which fetches the
    weight and calls the module's own.
    """
    return (
        (type(module) is nn.Linear or is_transposed(module))
        and isinstance(module.weight, nn.Parameter)
        and type(module.weight.data) is Tensor
        and (_slot(module) != "forward" or "forward" not in module.__dict__)
        and getattr(getattr(module, _slot(module)), "__func__", None) is type(module).forward
    )


def _slot(module: nn.Module) -> str:
    """The attribute in which a module's own forward stands."""
    fetched = getattr(module, "_hf_hook", None) is not None and "_old_forward" in module.__dict__
    return "_old_forward" if fetched else "forward"


@contextmanager
def installed(projection: Projection) -> Iterator[None]:
    """`projection` as the forward of its module; a forward that somebody else put on the instance comes back."""
    own, slot = projection.module.__dict__, _slot(projection.module)
    before = own.get(slot)
    own[slot] = projection
    try:
        yield
    finally:
        if before is None:
            del own[slot]
        else:
            own[slot] = before


@contextmanager
def fast_products(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Large float32 products of plain, frozen projections on oneDNN, with gradients and without (see `kernel_serves`)."""
    with ExitStack() as stack:
        for module in model.modules():
            if is_plain(module) and kernel_serves(module.weight.dtype, device):  # pyright: ignore[reportArgumentType]
                stack.enter_context(installed(FrozenProjection(module, always=True)))
        yield
