"""Quantised projections: rows and columns that are trained beside a base that stays as it is.

A quantised weight cannot hold what a slice learns. So the module keeps its own forward, and what the chosen rows or columns
have become less what they were is multiplied beside it: y + x (new - old)^T. Where nothing has changed yet, that is the
quantised module's output bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..neurons.products import Forward
from .entries import Entry
from .errors import TuneError

CHUNK = 512  # one-hot inputs that a module is asked for at once


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a Linear that computes with a quantised weight (bitsandbytes, torchao)."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or weight is None or weight.is_meta:
        return False
    if not weight.dtype.is_floating_point:  # a plain Linear cannot compute with such a weight
        return type(module) is not nn.Linear
    # torchao's weights are tensors of its own that tell a floating-point dtype; a shard of a distributed one is not quantised
    return type(weight.data).__module__.startswith("torchao")


@dataclass(frozen=True, eq=False)
class QuantisedEntry(Entry):
    """Rows (`dim` 0) or columns (`dim` 1) of a quantised weight, in float32.

    `tensor` has the weight's shape and no numbers. What is written stands beside the module until the old values are written
    again, which takes it away.
    """

    module: nn.Module = field(default_factory=nn.Identity)

    @cached_property
    def base(self) -> Tensor:
        """The entries of the quantised weight, asked for once: some libraries compute otherwise under other flags."""
        assert self.index is not None
        return base_values(self.module, self.dim, self.index)

    def read(self) -> Tensor:
        assert self.index is not None
        beside, values = self.module.__dict__.get("forward"), self.base.clone()
        return beside.read(self.dim, self.index, values) if isinstance(beside, Beside) else values

    def write(self, values: Tensor) -> None:
        assert self.index is not None
        beside = self.module.__dict__.get("forward")
        if not isinstance(beside, Beside):
            beside = Beside(self.module, beside)
            self.module.__dict__["forward"] = beside
        beside.write(self.dim, self.index, values.detach().to(self.base), self.base)
        if not beside.changed:
            beside.remove()


class Beside:
    """A quantised module's forward with rows or columns that have changed multiplied beside it."""

    def __init__(self, module: nn.Module, before: Forward | None) -> None:
        self.module, self.before = module, before
        self.original: Forward = module.forward
        self.dim = 0
        self.changed: dict[int, tuple[Tensor, Tensor]] = {}

    def read(self, dim: int, index: Int[Tensor, " chosen"], values: Tensor) -> Tensor:
        self._same_side(dim)
        places = [(n, i) for n, i in enumerate(index.tolist()) if i in self.changed]
        for n, i in places:
            values.select(dim, n).copy_(self.changed[i][0])
        return values

    def write(self, dim: int, index: Int[Tensor, " chosen"], values: Tensor, base: Tensor) -> None:
        self._same_side(dim)
        self.dim = dim
        for n, i in enumerate(index.tolist()):
            new, old = values.select(dim, n), base.select(dim, n)
            self.changed.pop(i, None)
            if not torch.equal(new, old):
                self.changed[i] = (new.clone(), old.clone())

    def remove(self) -> None:
        """Take this forward from its module."""
        if self.before is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self.before

    def __call__(self, x: Tensor) -> Tensor:
        index = torch.tensor(sorted(self.changed), device=x.device)
        moved = torch.stack([self.changed[i][0] - self.changed[i][1] for i in index.tolist()], dim=self.dim)
        return beside(self.original(x), x, moved.to(x.device), self.dim, index)

    def _same_side(self, dim: int) -> None:
        if self.changed and dim != self.dim:
            sides = ("rows", "columns")
            raise TuneError(
                f"a quantised projection has changed {sides[self.dim]} already; changed {sides[dim]} of the same one are not "
                "supported: take the other delta off first, or load the model in a floating-point dtype"
            )


class TrainedBeside:
    """The forward of a quantised projection with a part that is trained beside it."""

    def __init__(self, module: nn.Module, held: Sequence[tuple[Entry, nn.Parameter]]) -> None:
        self.module = module
        self.original: Forward = module.forward
        self.held = [(entry, master, entry.read()) for entry, master in held]

    def __call__(self, x: Tensor) -> Tensor:
        y = self.original(x)
        for entry, master, base in self.held:
            assert entry.index is not None
            moved, index = master - base, entry.index
            if entry.key.endswith(".bias"):
                rows = moved.to(y.dtype).expand(*y.shape[:-1], -1)
                y = y.index_add(-1, index.to(y.device), rows)
            else:
                y = beside(y, x, moved, entry.dim, index)
        return y


def beside(
    y: Float[Tensor, "*token out"],
    x: Float[Tensor, "*token in"],
    moved: Tensor,
    dim: int,
    index: Int[Tensor, " chosen"],
) -> Float[Tensor, "*token out"]:
    """y + x moved^T, where `moved` is of these rows or columns alone."""
    index, moved = index.to(x.device), moved.to(x.dtype)
    if dim == 0:
        return y.index_add(-1, index, functional.linear(x, moved).to(y.dtype))
    return y + functional.linear(x.index_select(-1, index), moved).to(y.dtype)


def base_values(module: nn.Module, dim: int, index: Int[Tensor, " chosen"]) -> Tensor:
    """Rows or columns of the weight that a quantised module computes with, in float32: what it makes of one-hot inputs.

    That asks no library how it stores its numbers.
    """
    forward = module.__dict__.get("forward")
    original: Forward = forward.original if isinstance(forward, Beside) else module.forward
    width: int = module.in_features  # pyright: ignore[reportAssignmentType]
    wanted = torch.arange(width) if dim == 0 else index.cpu()
    device = _weight(module).device
    parts, bias = [], module._parameters.get("bias")
    module._parameters["bias"] = None  # what it adds and takes away again would cost the last bits
    try:
        with torch.no_grad():
            for first in range(0, len(wanted), CHUNK):
                one_hot = functional.one_hot(wanted[first : first + CHUNK], width).float().to(device)
                parts.append(original(one_hot).float().t())  # [out, in]
    finally:
        module._parameters["bias"] = bias
    whole = torch.cat(parts, dim=1)
    return whole[index.to(device)].contiguous() if dim == 0 else whole.contiguous()


def _weight(module: nn.Module) -> Tensor:
    return module.weight  # pyright: ignore[reportReturnType]
