"""Training units of routed experts: the experts' own forward, with gradients for the units that are trained alone.

transformers computes a layer's experts in one of several ways (`eager`, `grouped_mm`, `batched_mm`), all of them from two
three-dimensional weights. While the module's forward runs, a stand-in takes the place of each weight that is trained. It
is the weight, in the same memory, and follows it through what those ways do before they multiply; the product itself is
torch's, of the same tensors, so its bits and the gradient of its input are those of the untouched module. What is added
is a node on the product's output, whose backward computes `dW[rows] = g[:, rows]^T x` or `dW[:, columns] = g^T x[:, columns]`
expert by expert. No gradient of the size of an expert is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .entries import Entry
from .errors import TuneError
from .expert_slices import ExpertPart

_PRODUCTS = {"linear", "matmul", "__matmul__", "bmm", "grouped_mm", "_grouped_mm", "grouped_mm_fallback"}
_FORMS = {"transpose", "swapaxes", "mT", "T", "t", "to", "float", "double", "bfloat16", "half", "contiguous"}
_FACTS = {
    "shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "is_meta", "grad", "size", "dim", "stride",
    "data_ptr", "element_size", "is_contiguous", "is_floating_point", "numel", "__len__", "__repr__", "is_quantized", "grad_fn",
}  # fmt: skip


class TrainedExperts:
    """The forward of a module of experts of which some units are trained.

    The masters are written into the weights before every forward, as `products.TrainedProjection` does it.
    """

    def __init__(self, parts: Sequence[ExpertPart], held: Sequence[tuple[Entry, nn.Parameter]]) -> None:
        self.parts = parts
        self.held = held
        self.module = parts[0].module
        self.original: Callable[..., Tensor] = self.module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        for entry, master in self.held:
            entry.write(master.detach())
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        own = self.module.__dict__  # where python looks before it asks the module for a parameter
        stand_ins = self._stand_ins()
        own.update(stand_ins)
        try:
            out = self.original(*args, **kwargs)
        finally:
            for name in stand_ins:
                del own[name]
        return _Reached.apply(out, *(master for _, master in self.held))  # pyright: ignore[reportReturnType]

    def _stand_ins(self) -> dict[str, Tensor]:
        masters = {entry.key: (entry, master) for entry, master in self.held}
        found: dict[str, Tensor] = {}
        for part in self.parts:
            side = "columns" if part.rows is None else "rows"
            entry, master = masters[f"{part.path}.{side}"]
            found[part.name] = _StandIn.of(part, _Units.of(part, entry, master))
            if part.bias is not None:
                entry, master = masters[f"{part.path}.bias"]
                found[f"{part.name}_bias"] = _Bias.apply(entry, master)  # pyright: ignore[reportArgumentType]
        return found


@dataclass(frozen=True, eq=False)
class _Units:
    """What is trained of one weight, expert by expert: channels within the expert, and the piece of the master."""

    side: str
    channels: tuple[Int[Tensor, " channel"], ...]
    pieces: tuple[Tensor, ...]

    @classmethod
    def of(cls, part: ExpertPart, entry: Entry, master: nn.Parameter) -> _Units:
        index, inner = entry.index, part.num_channels
        assert index is not None
        counts = torch.bincount(index // inner, minlength=len(part.stored)).tolist()
        side = "columns" if part.rows is None else "rows"
        return cls(side, (index % inner).split(counts), master.split(counts, dim=entry.dim))


class _StandIn(Tensor):
    """A weight of the experts, or one expert's, that says to its products what of it is trained."""

    units: _Units
    experts: int | Tensor | None  # the expert that was taken, or one for every row; None for the whole weight

    @classmethod
    def of(cls, part: ExpertPart, units: _Units) -> _StandIn:
        # its own version counter: the next forward writes the same numbers into the memory that this one's graph holds
        return _marked(part.stored.data, units, None)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
        stand_in = next((arg for arg in args if isinstance(arg, _StandIn)), None)
        with torch._C.DisableTorchFunctionSubclass():
            if stand_in is None:
                raise _unknown(name)
            if name in _PRODUCTS:
                return _trained(func, args, kwargs, stand_in)
            result = func(*args, **kwargs)
            if name in _FORMS:
                return _marked(result, stand_in.units, stand_in.experts)
            if name == "__getitem__" and stand_in.experts is None and _is_number(args[1]):
                return _marked(result, stand_in.units, int(args[1]) if result.dim() == 2 else args[1])
            if name in _FACTS:
                return result
        raise _unknown(name)


def _unknown(name: str) -> TuneError:
    return TuneError(
        f"the experts compute with {name}, of which the gradient for some of their units is not known; choose another way "
        "with model.set_experts_implementation('grouped_mm') or ('eager')"
    )


def _is_number(taken: Any) -> bool:
    """Whether an index is an expert's number, or a number for every row."""
    whole = isinstance(taken, Tensor) and taken.dtype in (torch.int32, torch.int64)
    return isinstance(taken, int) or (whole and taken.dim() < 2)


def _marked(tensor: Tensor, units: _Units, experts: int | Tensor | None) -> _StandIn:
    stand_in = tensor.as_subclass(_StandIn)
    stand_in.units, stand_in.experts = units, experts
    return stand_in


def _trained(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], weight: _StandIn) -> Tensor:
    """A product of the weight, with a node behind it that computes the gradient of what is trained."""
    plain = [arg.as_subclass(Tensor) if isinstance(arg, _StandIn) else arg for arg in args]
    out: Tensor = func(*plain, **kwargs)
    x = next(arg for arg in args if isinstance(arg, Tensor) and arg is not weight)
    offsets = kwargs.get("offs", next((arg for arg in args[2:] if isinstance(arg, Tensor)), None))
    takers = [
        (expert, rows)
        for expert, rows in _takers(weight.experts, offsets, len(x))
        if len(weight.units.channels[expert])
    ]
    if not takers:
        return out
    pieces = [weight.units.pieces[expert] for expert, _ in takers]
    channels = [weight.units.channels[expert] for expert, _ in takers]
    return _Gradient.apply(out, x.detach(), weight.units.side, [rows for _, rows in takers], channels, *pieces)  # pyright: ignore[reportReturnType]


def _takers(
    experts: int | Tensor | None, offsets: Tensor | None, num_rows: int
) -> list[tuple[int, slice | Int[Tensor, " routed"]]]:
    """The experts of a product and the rows that each of them takes; none that takes no row."""
    if isinstance(experts, int):
        return [(experts, slice(0, num_rows))]
    if experts is not None:
        return [(int(expert), (experts == expert).nonzero().flatten()) for expert in experts.unique()]
    if offsets is None:
        raise TuneError("the experts multiply with all of their weights at once and no offsets; this is not known here")
    ends = [0, *offsets.tolist()]
    return [(expert, slice(first, last)) for expert, (first, last) in enumerate(pairwise(ends)) if last > first]


class _Gradient(torch.autograd.Function):
    """The product as it is; in the backward, the gradient of the trained rows or columns of every expert."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        side: str,
        rows: Sequence[slice | Tensor],
        channels: Sequence[Tensor],
        *pieces: Tensor,
    ) -> Tensor:
        flat = x.reshape(len(x), -1)  # batched products carry a dimension of one
        mine = [flat[taken] for taken in rows]
        if side == "columns":
            mine = [one.index_select(-1, index) for one, index in zip(mine, channels, strict=True)]
        ctx.save_for_backward(*mine)
        ctx.side, ctx.rows, ctx.channels, ctx.dtype = side, rows, channels, pieces[0].dtype
        ctx.mark_dirty(out)  # the experts add their bias in place, which a view would forbid
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        flat = grad.reshape(len(grad), -1)
        found = []
        for x, rows, channels in zip(ctx.saved_tensors, ctx.rows, ctx.channels, strict=True):
            g = flat[rows]
            g = g.index_select(-1, channels) if ctx.side == "rows" else g
            found.append((g.t() @ x.to(g.dtype)).to(ctx.dtype))
        return grad if ctx.needs_input_grad[0] else None, None, None, None, None, *found


class _Bias(torch.autograd.Function):
    """A bias of all experts, in which the gradient of the trained entries is the master's."""

    @staticmethod
    def forward(ctx: Any, entry: Entry, master: Tensor) -> Tensor:
        ctx.entry, ctx.dtype = entry, master.dtype
        return entry.tensor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        entry: Entry = ctx.entry
        return None, Entry(entry.key, grads[0], entry.dim, entry.index, entry.inner).read().to(ctx.dtype)


class _Reached(torch.autograd.Function):
    """The experts' output as it is; a zero gradient for every master, so that an expert that no token chose has one."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *masters: Tensor) -> Tensor:
        ctx.masters = [(master.shape, master.dtype, master.device) for master in masters]
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.masters]
        return grads[0] if ctx.needs_input_grad[0] else None, *zeros
