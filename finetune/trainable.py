"""What an optimizer may change, as context managers over a subject that is bit-identical afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..neurons.products import installed
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .activations import recomputed_activations
from .entries import Entry, whole_entries
from .errors import TuneError
from .expert_products import TrainedExperts
from .expert_slices import ExpertPart
from .products import TrainedProjection, frozen_projections
from .quantised import TrainedBeside
from .slices import Part, slice_entries, slice_parts

Matrices = Literal["all", "out"]


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
def trainable_slice(subject: Subject, neurons: NeuronSet, *, matrices: Matrices = "all") -> Iterator[Trainable]:
    """While the block runs, exactly the rows and columns of a set are trainable, as small parameters of their own.

    `matrices="out"` takes the columns alone: what the neurons write, and not when they fire.

    Every touched projection multiplies with its full weight, into which the small parameter is written before; its
    backward is `dx = g W`, `dW[rows] = g[:, rows]^T x` and `dW[:, columns] = g^T x[:, columns]`, and nothing else. The
    model is in evaluation mode with all of its own parameters frozen, so nothing below the lowest part is
    differentiated. Hooks on the modules keep working.

    Where gradients are recorded, large float32 products on a CPU run on oneDNN (see `kernel_serves`) and activation
    outputs are computed again instead of kept; under `torch.no_grad()` the logits are the bits of the plain model with
    the same weights.

    Afterwards, also after an exception, weights, flags and `forward` methods are what they were, bit for bit; take
    `values()` inside the block.

    Raises TuneError for an empty set, SetError for a set of another subject, SiteError as `slice_parts` does.
    """
    parts = slice_parts(subject, neurons)
    if not parts:
        raise TuneError(f"the set has none of the {neurons.mask.numel()} {neurons.site} neurons; select some to tune")
    if matrices == "out":
        parts = tuple(part for part in parts if part.columns is not None)
        if not parts:
            raise TuneError(
                f"neurons of site {neurons.site} have rows alone; matrices 'out' is for mlp, gate, up and attn"
            )
    entries = slice_entries(parts)
    base = tuple(entry.read() for entry in entries)
    masters = tuple(nn.Parameter(_master(values)) for values in base)
    by_key = dict(zip((entry.key for entry in entries), masters, strict=True))
    with subject.quiet(), ExitStack() as stack:
        stack.callback(_restore, entries, base)
        for projection in [*_trained(parts, by_key), *frozen_projections(subject.model, parts)]:
            stack.enter_context(installed(projection))
        stack.enter_context(recomputed_activations(subject.model))
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


def _trained(
    parts: Sequence[Part], masters: Mapping[str, nn.Parameter]
) -> Iterator[TrainedProjection | TrainedExperts | TrainedBeside]:
    """A forward for every module that has parts; the two of a module of experts share one."""
    experts: dict[nn.Module, list[ExpertPart]] = {}
    for part in parts:
        if isinstance(part, ExpertPart):
            experts.setdefault(part.module, []).append(part)
        elif part.quantised:
            yield TrainedBeside(part.module, _held([part], masters))
        else:
            yield TrainedProjection(part, _held([part], masters))
    for together in experts.values():
        yield TrainedExperts(together, _held(together, masters))


def _held(parts: Sequence[Part], masters: Mapping[str, nn.Parameter]) -> list[tuple[Entry, nn.Parameter]]:
    return [(entry, masters[entry.key]) for entry in slice_entries(parts)]


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
