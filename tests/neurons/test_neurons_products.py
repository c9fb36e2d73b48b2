"""Fast products while scoring: the scores of double precision, the same bits offloaded, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons import products
from neuropolis.neurons.subject import load_model
from torch import Tensor, nn

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


@pytest.mark.parametrize("method", ["taylor", "lape", "ig"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_those_of_double_precision(
    make_subject: Any, corpus: Corpus, family: str, method: str, calls: list[tuple[int, ...]]
) -> None:
    found = attribute(make_subject(family, torch.float32), corpus, method=method)
    assert calls
    calls.clear()
    expected = attribute(make_subject(family, torch.float64), corpus, method=method)
    assert not calls
    torch.testing.assert_close(found.values.double(), expected.values.double(), rtol=1e-3, atol=1e-6)


def test_offloaded_weights_give_the_same_bits(
    make_subject: Any, corpus: Corpus, tmp_path: Path, calls: list[tuple[int, ...]]
) -> None:
    subject = make_subject("llama", torch.float32)
    subject.model.save_pretrained(tmp_path)
    subject.tokenizer.save_pretrained(tmp_path)
    whole = attribute(load_model(str(tmp_path)), corpus)
    shapes = set(calls)
    assert shapes
    calls.clear()
    away = attribute(load_model(str(tmp_path), offload="disk"), corpus)
    assert set(calls) == shapes
    assert torch.equal(whole.values, away.values)


def test_switched_off_the_bits_are_the_plain_models(
    make_subject: Any, calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject("llama", torch.float32)
    ids = torch.arange(3, 11)[None]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.no_grad():
        plain = subject.model(ids).logits
        with subject.scoring():
            assert torch.equal(subject.model(ids).logits, plain)
    assert not calls


def test_forwards_are_put_back_after_an_error(make_subject: Any, calls: list[tuple[int, ...]]) -> None:
    subject = make_subject("llama", torch.float32)
    linears = [m for m in subject.model.modules() if isinstance(m, nn.Linear)]

    def fail() -> None:
        with subject.scoring():
            assert all(isinstance(m.forward, products.FrozenProjection) for m in linears)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any("forward" in m.__dict__ for m in linears)


def test_a_forward_on_the_instance_is_not_replaced(make_subject: Any, calls: list[tuple[int, ...]]) -> None:
    subject = make_subject("llama", torch.float32)
    up = subject.model.model.layers[0].mlp.up_proj

    def twice(x: Tensor) -> Tensor:
        return 2 * nn.functional.linear(x, up.weight)

    up.forward = twice
    with subject.scoring():
        assert up.forward is twice
    assert up.forward is twice
