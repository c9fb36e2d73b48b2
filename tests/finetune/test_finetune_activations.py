"""Activation outputs that are computed again: the same gradients with less kept, and others' hooks respected."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from neuropolis.finetune.activations import recomputed_activations
from tiny_families import FAMILIES, build
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

IDS = torch.arange(3, 11)[None]


class Gated(nn.Module):
    """A gated FFN without projections; `edit` gets what the activation function gives."""

    def __init__(self, act: nn.Module, edit: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.act = act
        self.edit = edit
        self.seen: weakref.ref[Tensor] | None = None

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        h = self.act(gate)
        self.seen = weakref.ref(h)
        return self.edit(h) * up

    def run(self, *, again: bool) -> tuple[list[Tensor], bool]:
        """The inputs' gradients, and whether the activation's output lived until the backward."""
        inputs = [torch.linspace(-2, 2, 6).requires_grad_(True), torch.linspace(1, 3, 6).requires_grad_(True)]
        with recomputed_activations(self) if again else nullcontext():
            output = self(*(tensor * 1 for tensor in inputs))
        assert self.seen is not None
        kept = self.seen() is not None
        output.square().sum().backward()
        return [tensor.grad for tensor in inputs if tensor.grad is not None], kept


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_bits(family: str) -> None:
    def gradient() -> Tensor:
        embedded = subject.model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        subject.model(inputs_embeds=embedded, labels=IDS).loss.backward()
        return embedded.grad

    subject = build(family)
    plain = gradient()
    with recomputed_activations(subject.model):
        again = gradient()
    assert plain.abs().max() > 1e-6
    assert torch.equal(again, plain)


@pytest.mark.parametrize(("act", "kept"), [(nn.SiLU(), False), (nn.GELU(), False), (nn.ReLU(), True)])
def test_output_is_freed_where_the_input_is_kept_anyway(act: nn.Module, kept: bool) -> None:
    ffn = Gated(act)
    plain, kept_plainly = ffn.run(again=False)
    again, kept_now = ffn.run(again=True)
    assert kept_plainly
    assert kept_now is kept
    assert len(again) == 2
    assert all(torch.equal(one, other) for one, other in zip(again, plain, strict=True))


def test_an_input_that_nobody_keeps_is_not_kept_for_this() -> None:
    """ReLU's own backward needs its output alone."""
    ffn = Gated(nn.ReLU())
    gate, up = (torch.linspace(-2, 2, 6).requires_grad_(True) * 1 for _ in range(2))
    given = StorageWeakRef(gate.untyped_storage())
    with recomputed_activations(ffn):
        output = ffn(gate, up)
    del gate
    assert output.requires_grad
    assert given.expired()


def doubled_by_hook() -> Gated:
    ffn = Gated(nn.SiLU())

    def double(_module: Any, _args: Any, output: Any) -> Tensor:
        return output * 2

    ffn.act.register_forward_hook(double)
    return ffn


def doubled_in_place_by_hook() -> Gated:
    ffn = Gated(nn.SiLU())
    ffn.act.register_forward_hook(lambda _m, _a, output: output.mul_(2))
    return ffn


def doubled_by_forward() -> Gated:
    ffn = Gated(nn.SiLU())
    ffn.act.forward = lambda x: 2 * nn.functional.silu(x)
    return ffn


def doubled_in_place() -> Gated:
    return Gated(nn.SiLU(), lambda h: h.mul_(2))


@pytest.mark.parametrize("make", [doubled_by_hook, doubled_in_place_by_hook, doubled_by_forward, doubled_in_place])
def test_what_others_make_of_the_output_counts(make: Callable[[], Gated]) -> None:
    plain, _ = make().run(again=False)
    again, _ = make().run(again=True)
    assert all(torch.equal(one, other) for one, other in zip(again, plain, strict=True))


def test_others_saved_tensor_hooks_see_everything() -> None:
    def shapes() -> list[Any]:
        seen: list[Any] = []
        ffn = Gated(nn.SiLU())
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
            ffn.run(again=again)
        return seen

    again = False
    plain = shapes()
    again = True
    assert shapes() == plain


def test_nothing_is_left_after_an_exception() -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("stop")

    ffn = Gated(nn.SiLU(), fail)
    with pytest.raises(RuntimeError, match="stop"):
        ffn.run(again=True)
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ffn.modules())


def test_autocast_is_left_alone() -> None:
    ffn = Gated(nn.SiLU())
    with torch.autocast("cpu", torch.bfloat16):
        _, kept = ffn.run(again=True)
    assert kept
