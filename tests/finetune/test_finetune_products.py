"""Products by oneDNN give the plain model's training, and the plain model's bits wherever nothing is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.finetune.products import frozen_projections
from neuropolis.finetune.slices import slice_parts
from neuropolis.finetune.trainable import trainable_slice
from neuropolis.neurons import products
from neuropolis.neurons.products import FrozenProjection, input_gradient
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import FAMILIES, build, some
from torch import Tensor, nn

IDS = torch.arange(3, 11)[None]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every product, however small, goes to oneDNN; the shapes of their weights."""
    seen: list[tuple[int, ...]] = []
    kernel = products._kernel

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(tuple(weight.shape))
        return kernel(x, weight, bias)

    monkeypatch.setattr(products, "_WORTH_A_KERNEL", 0)
    monkeypatch.setattr(products, "_kernel", noted)
    return seen


def loss_and_gradients(subject: Subject, neurons: NeuronSet) -> tuple[Tensor, list[Tensor]]:
    with trainable_slice(subject, neurons) as trainable:
        loss = subject.model(IDS, labels=IDS).loss
        loss.backward()
        grads = [master.grad for master in trainable.masters]
    return loss.detach(), [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["mlp", "k", "attn"])
def test_training_is_that_of_double_precision(family: str, site: str, calls: list[tuple[int, ...]]) -> None:
    subject, exact = build(family), build(family)
    exact.model.double()
    neurons = some(subject, site)
    loss, grads = loss_and_gradients(subject, neurons)
    assert calls
    calls.clear()
    expected_loss, expected = loss_and_gradients(exact, neurons)
    assert not calls
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert len(grads) == len(expected) > 0
    assert max(grad.abs().max() for grad in grads) > 1e-4
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.double(), wanted.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_gradients_the_bits_are_the_plain_models(family: str, calls: list[tuple[int, ...]]) -> None:
    subject = build(family)
    with torch.no_grad():
        plain = subject.model(IDS).logits
        with trainable_slice(subject, some(subject)):
            assert torch.equal(subject.model(IDS).logits, plain)
    assert not calls


def test_switched_off_the_bits_are_the_plain_models(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = build("llama")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    plain = subject.model(IDS).logits
    with trainable_slice(subject, some(subject)):
        assert torch.equal(subject.model(IDS).logits, plain)
        subject.model(IDS).logits.sum().backward()
    assert not calls


def test_autocast_keeps_the_modules_own_forward(calls: list[tuple[int, ...]]) -> None:
    subject = build("llama")
    with torch.autocast("cpu", torch.bfloat16):
        plain = subject.model(IDS).logits
        with trainable_slice(subject, some(subject)):
            logits = subject.model(IDS).logits
    assert torch.equal(logits, plain)
    logits.float().sum().backward()
    assert not calls


def test_small_products_are_torchs() -> None:
    grad, weight = torch.randn(5, 7), torch.randn(7, 3)
    assert torch.equal(input_gradient(grad, weight), grad @ weight)


def test_no_gradient_is_lost_when_a_frozen_weight_is_thawed_inside(calls: list[tuple[int, ...]]) -> None:
    subject = build("llama")
    o_proj = subject.model.model.layers[1].self_attn.o_proj
    with trainable_slice(subject, some(subject)):
        o_proj.weight.requires_grad_(True)
        subject.model(IDS, labels=IDS).loss.backward()
        assert o_proj.weight.grad is not None
        assert o_proj.weight.grad.abs().max() > 0
        o_proj.weight.grad = None
        o_proj.weight.requires_grad_(False)


class Doubling(nn.Linear):
    """Stands for a quantised Linear, or any other that does more than multiply with its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_only_plain_projections_are_taken_over() -> None:
    subject = build("llama")
    attention = subject.model.model.layers[1].self_attn
    attention.q_proj.forward = attention.q_proj.forward
    attention.k_proj.__class__ = Doubling
    neurons = NeuronSet.from_indices(subject, indices={0: [1]})
    taken = {id(one.module) for one in frozen_projections(subject.model, slice_parts(subject, neurons))}
    names = {name for name, module in subject.model.named_modules() if id(module) in taken}
    linear = {name for name, module in subject.model.named_modules() if isinstance(module, nn.Linear)}
    part_names = {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert linear - names == {*part_names, "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    subject = build("llama", dtype)
    assert frozen_projections(subject.model, slice_parts(subject, some(subject))) == []


def test_a_part_with_a_forward_of_its_own_keeps_it(calls: list[tuple[int, ...]]) -> None:
    subject = build("llama")
    up: Any = subject.model.model.layers[1].mlp.up_proj
    up.__class__ = Doubling
    plain = subject.model(IDS).logits
    with trainable_slice(subject, some(subject)):
        inside = subject.model(IDS).logits
    assert calls
    torch.testing.assert_close(inside, plain, rtol=1e-4, atol=1e-5)


def test_frozen_projection_saves_no_activations(calls: list[tuple[int, ...]]) -> None:
    linear = nn.Linear(4, 3).requires_grad_(False)
    projection = FrozenProjection(linear)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = projection(torch.ones(2, 4, requires_grad=True))
    assert out.requires_grad
    assert [tensor.data_ptr() for tensor in saved] == [linear.weight.data_ptr()]
    assert calls == [(3, 4)]
