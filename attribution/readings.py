"""Readings: what stands on a model's taps during a pass, and how it becomes one score per example and neuron.

An identity function stands on every tap. In the forward it sees a layer's activations, in the backward their gradient beside
them, and it reduces both to scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.sites import Site, Tap
from .encoding import Batch
from .methods import Method, TokenReduction

CHUNK = 2**22  # numbers of a contribution that are in memory at once


@dataclass(frozen=True, eq=False)
class Reading:
    """One method that reads one site during a pass."""

    method: Method
    site: Site
    tokens: TokenReduction = "sum"
    keep_rows: bool = False


@dataclass(eq=False)
class Run:
    """One batch under way: what its taps have read so far, by reading and layer.

    `values` are the objective's in the first forward, `logits` those of the last one until its backward. `extra` holds further
    numbers of each example, by name. `reached` counts the real tokens of each example that were routed to each expert, for
    readings of experts whose mean is over them.
    """

    batch: Batch
    readings: Sequence[Reading]
    sign: float
    real: Bool[Tensor, "batch token"]
    recompute: bool = False
    found: dict[tuple[int, int], Float[Tensor, "batch neuron"]] = field(default_factory=dict)
    sound: Bool[Tensor, " batch"] | None = None
    values: Float[Tensor, " batch"] | None = None
    scale: Float[Tensor, " batch"] | None = None
    logits: Float[Tensor, "batch kept vocabulary"] | None = None
    extra: dict[str, Float[Tensor, " batch"]] = field(default_factory=dict)
    reached: dict[tuple[int, int], Int[Tensor, "batch expert"]] = field(default_factory=dict)

    @property
    def overflowed(self) -> bool:
        """Whether a scaled gradient made a score infinite or NaN although the objective is finite."""
        return self.scale is not None and any(
            not bool(torch.isfinite(score[self.sound]).all()) for score in self.found.values()
        )

    def take(self, which: Sequence[int], layer: int, x: Tensor, gradient: Tensor | None = None) -> None:
        """Reduce a layer's activations, and their gradient, to scores of the readings `which`."""
        shape = (*self.real.shape, x.shape[-1])  # some families fold batch and token into one before their FFN
        x = x.reshape(shape)
        if gradient is not None:
            gradient = gradient.reshape(shape)
        size = max(1, CHUNK // max(1, shape[1] * shape[2]))
        for number in which:
            parts = []
            for first in range(0, shape[0], size):
                rows = slice(first, first + size)
                parts.append(self._scores(self.readings[number], rows, x, gradient))
            self.found[number, layer] = parts[0] if len(parts) == 1 else torch.cat(parts)

    def take_routed(
        self,
        which: Sequence[int],
        layer: int,
        expert: int,
        tokens: Int[Tensor, " routed"],
        x: Float[Tensor, "routed unit"],
        gradient: Float[Tensor, "routed unit"] | None = None,
    ) -> None:
        """Reduce one expert's routed activations, and their gradient, to its columns of the scores of `which`."""
        real = self.real.flatten()[tokens]
        example, x = tokens[real] // self.real.shape[1], x[real]
        gradient = None if gradient is None else gradient[real]
        for number in which:
            reading = self.readings[number]
            if (number, layer) in self.reached:
                self.reached[number, layer][:, expert] = torch.bincount(example.cpu(), minlength=len(self.real))
            part = self._routed_part(reading, example, x, gradient)
            columns = slice(expert * x.shape[-1], (expert + 1) * x.shape[-1])
            self.found[number, layer][:, columns] = self._routed_reduced(
                part, example, reading.method.tokens or reading.tokens, reading.method
            )

    def _routed_part(
        self, reading: Reading, example: Int[Tensor, " routed"], x: Tensor, gradient: Tensor | None
    ) -> Float[Tensor, "routed unit"]:
        x = wide(x)[None]
        if reading.method.reads == "activation":
            return wide(reading.method.function(x))[0]
        assert gradient is not None
        slope = wide(gradient)
        if self.scale is not None:
            slope = slope / self.scale[example][:, None]
        return wide(reading.method.function(slope[None], x))[0]

    def _routed_reduced(
        self,
        part: Float[Tensor, "routed unit"],
        example: Int[Tensor, " routed"],
        tokens: TokenReduction,
        method: Method,
    ) -> Float[Tensor, "batch unit"]:
        """Over the real tokens that were routed; an example of which no token was routed has 0."""
        sign = self.sign if method.reads == "gradient" else 1.0
        empty = part.new_zeros((len(self.real), part.shape[-1]))
        if tokens == "max":
            index = example[:, None].expand_as(part)
            return empty.scatter_reduce(0, index, sign * part, "amax", include_self=False)
        total = empty.index_add(0, example, part.abs() if tokens == "abs" else sign * part)
        if tokens != "mean":
            return total
        return total / torch.bincount(example, minlength=len(self.real)).clamp(min=1)[:, None]

    def _scores(
        self, reading: Reading, rows: slice, x: Tensor, gradient: Tensor | None
    ) -> Float[Tensor, "rows neuron"]:
        real, method, x = self.real[rows].to(x.device), reading.method, wide(x[rows])
        tokens = method.tokens or reading.tokens
        if method.reads == "gradient":
            assert gradient is not None
            slope = wide(gradient[rows])
            if self.scale is not None:
                slope = slope / self.scale[rows, None, None].to(x.device)
            return self.sign * _reduced(method.function(slope, x), real, tokens, self.sign, masked=False)
        return _reduced(method.function(x), real, tokens, 1.0, masked=True)


def wide(x: Tensor) -> Tensor:
    """At least float32: a product of half-precision numbers keeps what they have."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _reduced(
    part: Float[Tensor, "batch token neuron"],
    real: Bool[Tensor, "batch token"],
    tokens: TokenReduction,
    sign: float,
    *,
    masked: bool,
) -> Float[Tensor, "batch neuron"]:
    """Over real tokens. A gradient is zero on padding already, so that only an activation needs the mask in a sum."""
    part = wide(part)  # a method may narrow it again
    if tokens == "max":
        part = part.masked_fill(~real[..., None], -sign * torch.inf)
        return part.amax(dim=1) if sign > 0 else part.amin(dim=1)
    if masked and not bool(real.all()):
        part = part.masked_fill(~real[..., None], 0)
    if tokens == "abs":
        return sign * part.abs().sum(dim=1)
    total = part.sum(dim=1)
    return total / real.sum(dim=1, keepdim=True) if tokens == "mean" else total


@contextmanager
def tapped(run: Run) -> Iterator[None]:
    """Every reading's taps attached; readings of one site share its taps."""
    sites: dict[int, tuple[Site, list[int]]] = {}
    for number, reading in enumerate(run.readings):
        sites.setdefault(id(reading.site), (reading.site, []))[1].append(number)
    with ExitStack() as stack:
        for site, numbers in sites.values():
            for layer, tap in enumerate(site.taps):
                if tap.routed is None:
                    stack.enter_context(tap.attached(partial(_pass_on, run=run, numbers=numbers, layer=layer, tap=tap)))
                    continue
                for number in numbers:  # experts that no token chose are not called
                    shape = (len(run.real), tap.width)
                    dtype = torch.promote_types(next(tap.module.parameters()).dtype, torch.float32)
                    run.found[number, layer] = torch.zeros(shape, dtype=dtype, device=run.real.device)
                    if run.readings[number].method.over == "tokens":
                        run.reached[number, layer] = torch.zeros((len(run.real), tap.routed), dtype=torch.long)
                stack.enter_context(tap.attached_routed(partial(_pass_routed, run=run, numbers=numbers, layer=layer)))
        yield


def _pass_on(x: Tensor, *, run: Run, numbers: Sequence[int], layer: int, tap: Tap) -> Tensor | None:
    """Let the activations be read, and put an identity in their way where their gradient is wanted."""
    # a block that is recomputed in the backward passes here again
    forwards = [n for n in numbers if run.readings[n].method.reads == "activation" and (n, layer) not in run.found]
    backwards = [n for n in numbers if run.readings[n].method.reads == "gradient"]
    if forwards:
        with torch.no_grad():
            run.take(forwards, layer, x.detach())
    if not backwards or not torch.is_grad_enabled():
        return None
    if not x.requires_grad:  # the lowest scored layer: nothing below it enters the backward
        x = x.detach().requires_grad_()
    factors = None if run.recompute else _factors(x)
    take = partial(run.take, backwards, layer)
    out: Tensor = _Identity.apply(x, take, factors)  # pyright: ignore[reportAssignmentType]
    # some families (Falcon) add to an output in place, which autograd forbids on a view
    return out.clone() if tap.side == "out" else out


def _pass_routed(
    x: Float[Tensor, "routed unit"],
    expert: int,
    tokens: Int[Tensor, " routed"],
    *,
    run: Run,
    numbers: Sequence[int],
    layer: int,
) -> Tensor | None:
    """`_pass_on` for one expert of a mixture."""
    forwards = [n for n in numbers if run.readings[n].method.reads == "activation"]
    backwards = [n for n in numbers if run.readings[n].method.reads == "gradient"]
    with torch.no_grad():
        run.take_routed(forwards, layer, expert, tokens, x.detach())
    if not backwards or not torch.is_grad_enabled():
        return None
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    return _Identity.apply(x, partial(run.take_routed, backwards, layer, expert, tokens), None)  # pyright: ignore[reportReturnType]


def _factors(x: Tensor) -> Any:
    """The autograd node of a product (act(gate) * up) that keeps both factors, from which x can be had again; else None.

    A projection with a frozen weight does not keep its input, so that keeping it for the readings would cost memory. (Blocks
    that are recomputed let their saved tensors be read only once; there is little to gain there.)
    """
    node = x.grad_fn
    if node is None or node.name() != "MulBackward0":
        return None
    kept: Any = node
    return kept if kept._saved_self is not None and kept._saved_other is not None else None


class _Identity(torch.autograd.Function):
    """Its backward hands activation and gradient on. It saves the activation, or where that comes from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Callable[[Tensor, Tensor], None], factors: Any) -> Tensor:
        ctx.take, ctx.factors = take, factors
        if factors is None:
            ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.saved_tensors[0] if ctx.factors is None else ctx.factors._saved_self * ctx.factors._saved_other
        ctx.take(x, grads[0])
        return grads[0], None, None
