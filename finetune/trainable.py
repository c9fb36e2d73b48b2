"""What an optimizer may change, as context managers over a subject that is bit-identical afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .errors import TuneError
from .slices import Entry, SlicePart, slice_entries, slice_parts, whole_entries


@dataclass(frozen=True, eq=False)
class Trainable:
    """Entries of a subject's parameters and the tensors that an optimizer holds for them.

    `masters` are at least float32, one for each entry. `base` are the entries as they were, in the model's dtype.
    """

    entries: tuple[Entry, ...]
    masters: tuple[nn.Parameter, ...]
    base: tuple[Tensor, ...]

    @property
    def num_parameters(self) -> int:
        return sum(master.numel() for master in self.masters)

    def values(self) -> dict[str, Tensor]:
        """The entries as they are now, in the model's dtype, on the CPU."""
        pairs = zip(self.entries, self.masters, strict=True)
        return {entry.key: master.detach().to("cpu", entry.tensor.dtype, copy=True) for entry, master in pairs}

    def base_values(self) -> dict[str, Tensor]:
        """The entries as they were, on the CPU."""
        return {entry.key: base.cpu() for entry, base in zip(self.entries, self.base, strict=True)}


@contextmanager
def trainable_slice(subject: Subject, neurons: NeuronSet) -> Iterator[Trainable]:
    """While the block runs, exactly the rows and columns of a set are trainable, as small parameters of their own.

    Every touched projection multiplies with its full weight, into which the small parameter is written before; its
    backward is `dx = g W`, `dW[rows] = g[:, rows]^T x` and `dW[:, columns] = g^T x[:, columns]`, and nothing else. The
    model is in evaluation mode with all of its own parameters frozen, so nothing below the lowest part is
    differentiated. Hooks on the modules keep working.

    Afterwards, also after an exception, weights, flags and `forward` methods are what they were, bit for bit; take
    `values()` inside the block.

    Raises TuneError for an empty set, SetError for a set of another subject, SiteError as `slice_parts` does.
    """
    parts = slice_parts(subject, neurons)
    if not parts:
        raise TuneError(f"the set has none of the {neurons.mask.numel()} {neurons.site} neurons; select some to tune")
    entries = slice_entries(parts)
    base = tuple(entry.read() for entry in entries)
    masters = tuple(nn.Parameter(_master(values)) for values in base)
    by_key = dict(zip((entry.key for entry in entries), masters, strict=True))
    with subject.quiet(), ExitStack() as stack:
        stack.callback(_restore, entries, base)
        for part in parts:
            held = [(entry, by_key[entry.key]) for entry in part.entries()]
            stack.enter_context(_installed(_Projection(part, held)))
        yield Trainable(entries, masters, base)


@contextmanager
def trainable_full(subject: Subject) -> Iterator[Trainable]:
    """While the block runs, every parameter is trainable; the comparison that a slice is held against.

    Below float32 the optimizer holds float32 masters, as for a slice. Evaluation mode and restoration are those of
    `trainable_slice`.
    """
    entries = whole_entries(subject)
    parameters = dict(subject.model.named_parameters())
    grads = {name: parameter.grad for name, parameter in parameters.items()}
    base = tuple(entry.read() for entry in entries)
    with subject.quiet(), ExitStack() as stack:
        stack.callback(_restore, entries, base)
        masters = []
        for entry in entries:
            parameter = parameters[entry.key]
            parameter.grad = None
            parameter.requires_grad_(True)
            masters.append(_half_master(entry, parameter, stack) if parameter.element_size() < 4 else parameter)
        wide = [(e, m) for e, m in zip(entries, masters, strict=True) if m is not parameters[e.key]]
        if wide:
            hook = subject.model.register_forward_pre_hook(lambda *_: _write(wide))
            stack.callback(hook.remove)
        try:
            yield Trainable(entries, tuple(masters), base)
        finally:
            for name, parameter in parameters.items():
                parameter.requires_grad_(False)
                parameter.grad = grads[name]


class _Projection:
    """The forward of one touched projection."""

    def __init__(self, part: SlicePart, held: list[tuple[Entry, nn.Parameter]]) -> None:
        self.part = part
        self.held = held
        self.original: Callable[[Tensor], Tensor] = part.module.forward

    def __call__(self, x: Tensor) -> Tensor:
        # Written at every forward and not after a step: a fused optimizer does not say that it changed a parameter.
        _write(self.held)
        return _SliceProduct.apply(x, self, *(master for _, master in self.held))  # pyright: ignore[reportReturnType]


class _SliceProduct(torch.autograd.Function):
    """A projection whose weight gradient exists for its part alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: _Projection, weight: Tensor, bias: Tensor | None = None) -> Tensor:
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
        x = x.to(grad.dtype)  # under autocast the output is narrower than what came in and than the weight
        dx = grad @ part.weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        rows = grad if part.rows is None else grad.index_select(-1, part.rows)
        rows = rows.reshape(-1, rows.shape[-1])
        dweight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(ctx.dtype)
        if not ctx.has_bias:
            return dx, None, dweight
        return dx, None, dweight, rows.sum(dim=0, dtype=ctx.dtype)


@contextmanager
def _installed(projection: _Projection) -> Iterator[None]:
    """`projection` as the forward of its module; a forward that somebody else put on the instance comes back."""
    own = projection.part.module.__dict__
    before = own.get("forward")
    own["forward"] = projection
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _master(values: Tensor) -> Tensor:
    return values.clone() if values.dtype == torch.float64 else values.to(torch.float32, copy=True)


def _half_master(entry: Entry, parameter: nn.Parameter, stack: ExitStack) -> nn.Parameter:
    """A float32 master that takes a parameter's gradient as soon as the backward has it."""
    master = nn.Parameter(_master(entry.tensor))

    def take(_: Tensor) -> None:
        assert parameter.grad is not None
        grad = parameter.grad.float()
        master.grad = grad if master.grad is None else master.grad + grad
        parameter.grad = None

    stack.callback(parameter.register_post_accumulate_grad_hook(take).remove)
    return master


def _write(held: list[tuple[Entry, nn.Parameter]]) -> None:
    for entry, master in held:
        entry.write(master.detach())


def _restore(entries: tuple[Entry, ...], base: tuple[Tensor, ...]) -> None:
    for entry, values in zip(entries, base, strict=True):
        entry.write(values)
