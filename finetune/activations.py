"""Activation functions whose output is computed again in the backward instead of being kept for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_C: Any = torch._C


@dataclass(frozen=True, eq=False)
class _Again:
    """A tensor to be computed when it is needed: an activation function's output from its input."""

    activation: nn.Module
    input: Tensor

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return self.activation.forward(self.input)


class _Room:
    """Hooks on a module and on the activation function that it calls.

    A gated FFN multiplies the function's output by another tensor, and autograd keeps both, beside the function's input
    that it has already.
    """

    def __init__(self, activation: nn.Module) -> None:
        self.activation = activation
        self.keeping: torch.autograd.graph.saved_tensors_hooks | None = None
        self.kept: set[int] = set()
        self.last: tuple[Tensor, Tensor, int] | None = None

    def before(self, *_: Any) -> None:
        # hooks that somebody else has set (checkpointing, keeping on the CPU) would not see what goes through ours
        if torch.is_grad_enabled() and _C._autograd._top_saved_tensors_default_hooks(True) is None:
            self.keeping = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
            self.keeping.__enter__()

    def called(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.keeping is None or torch.is_autocast_enabled(output.device.type):
            return
        # what another's hook makes of the output does not come out again
        if len(module._forward_hooks) > 1 or module._forward_pre_hooks:
            return
        # ReLU keeps its output and not its input: there is nothing to gain
        if args[0].data_ptr() in self.kept and args[0].data_ptr() != output.data_ptr():
            self.last = (args[0].detach(), output.detach(), output._version)

    def after(self, *_: Any) -> None:
        self.last = None
        self.kept.clear()
        if self.keeping is not None:
            self.keeping.__exit__()
            self.keeping = None

    def pack(self, tensor: Tensor) -> Tensor | _Again:
        if self.last is not None:
            given, output, version = self.last
            if _same(tensor, output) and tensor._version == version:
                return _Again(self.activation, given)
        self.kept.add(tensor.data_ptr())
        return tensor

    def unpack(self, packed: Tensor | _Again) -> Tensor:
        return packed() if isinstance(packed, _Again) else packed


@contextmanager
def recomputed_activations(model: nn.Module) -> Iterator[None]:
    """While the block runs, no activation function's output is kept for the backward where its input is kept.

    Gradients are the same bits.
    """
    with ExitStack() as stack:
        for module in model.modules():
            for child in module.children():
                if not _is_pointwise(child):
                    continue
                room = _Room(child)
                handles = (
                    module.register_forward_pre_hook(room.before, prepend=True),
                    child.register_forward_hook(room.called),
                    module.register_forward_hook(room.after, always_call=True),
                )
                for handle in handles:
                    stack.callback(handle.remove)
        yield


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _is_pointwise(module: nn.Module) -> bool:
    """Whether a module is an activation function without numbers of its own or chance."""
    home = type(module).__module__
    known = home == "transformers.activations" or isinstance(module, nn.SiLU | nn.GELU | nn.ReLU | nn.Tanh)
    return known and not any(True for _ in module.parameters())
