"""Deltas stacked, scaled and turned round."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.algebra import stack_deltas
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.errors import DeltaError
from neuropolis.finetune.training import answer_loss, finetune, finetune_full
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import SITES
from neuropolis.neurons.subject import Subject
from test_finetune_delta import made
from tiny_families import FAMILIES, build, same_bits, some, state


def moved(subject: Subject, site: str, indices: dict[int, list[int]], seed: int) -> Delta:
    """A delta with random new entries."""
    delta = made(subject, NeuronSet.from_indices(subject, site=site, indices=indices))
    generator = torch.Generator().manual_seed(seed)
    values = {key: torch.randn(base.shape, generator=generator).to(base) for key, base in delta.base.items()}
    return Delta(delta.subject, delta.neurons, values, delta.base)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", sorted(SITES))
@pytest.mark.parametrize("overlap", ["error", "sum"])
def test_disjoint_deltas_stack_exactly(family: str, site: str, overlap: str) -> None:
    """As one applied inside the other, in either order; fused projections and layers that only one has."""
    subject = build(family)
    try:
        one = moved(subject, site, {0: [5, 1]}, 1)
    except SiteError:
        pytest.skip(f"has no {site}")
    other = moved(subject, site, {0: [2, 0, 7], 1: [3]}, 2)
    stacked = stack_deltas(subject, [one, other], overlap=overlap)  # pyright: ignore[reportArgumentType]
    assert one.neurons is not None
    assert other.neurons is not None
    assert stacked.neurons == one.neurons | other.neurons
    with stacked.applied(subject):
        together = state(subject)
    with other.applied(subject), one.applied(subject):
        assert same_bits(state(subject), together)
    merged = stacked.merge(subject)
    assert same_bits(state(stacked.unmerge(merged)), state(subject))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overlapping_deltas(dtype: torch.dtype) -> None:
    subject = build("llama", dtype)
    one, other = moved(subject, "mlp", {0: [5, 1], 1: [2]}, 1), moved(subject, "mlp", {0: [1, 4], 1: [2]}, 2)
    with pytest.raises(DeltaError, match=r"share 2 mlp neurons, such as 1 of layer 0; choose overlap='last' or 'sum'"):
        stack_deltas(subject, [one, other])
    last = stack_deltas(subject, [one, other], overlap="last")
    with one.applied(subject), other.applied(subject):
        inner = state(subject)
    with last.applied(subject):
        assert same_bits(state(subject), inner)
    key = "model.layers.0.mlp.down_proj.columns"  # of one: 1, 5; of the other: 1, 4; stacked: 1, 4, 5
    summed = stack_deltas(subject, [one, other], overlap="sum").values[key]
    base = one.base[key][:, 0].double()
    shared = base + (one.values[key][:, 0].double() - base) + (other.values[key][:, 0].double() - base)
    assert torch.equal(summed, torch.stack([shared.to(dtype), other.values[key][:, 1], one.values[key][:, 1]], dim=1))


def test_a_delta_and_its_negation_cancel(corpus: Corpus) -> None:
    subject = build("llama")
    delta = finetune(subject, corpus, some(subject), lr=0.1, steps=3)
    nothing = stack_deltas(subject, [delta, -delta], overlap="sum")
    for key, base in delta.base.items():
        assert torch.allclose(nothing.values[key], base, atol=1e-7)
    assert same_bits(dict(stack_deltas(subject, [delta]).values), dict(delta.values))


def test_deltas_of_all_parameters_stack(corpus: Corpus) -> None:
    subject = build("gpt2")
    one, other = (finetune_full(subject, corpus, lr=0.01, steps=1, seed=seed, batch_size=2) for seed in (0, 1))
    with pytest.raises(DeltaError, match="overlap everywhere"):
        stack_deltas(subject, [one, other])
    summed = stack_deltas(subject, [one, other], overlap="sum")
    assert summed.neurons is None
    for key, base in one.base.items():
        expected = base.double() + (one.values[key].double() - base) + (other.values[key].double() - base)
        assert torch.equal(summed.values[key], expected.float())
    assert same_bits(dict(stack_deltas(subject, [one, other], overlap="last").values), dict(other.values))


def test_what_cannot_be_stacked_is_refused(corpus: Corpus) -> None:
    subject = build("llama")
    one = moved(subject, "mlp", {0: [1]}, 1)
    with pytest.raises(DeltaError, match=r"deltas of attn and mlp; apply one inside the other"):
        stack_deltas(subject, [one, moved(subject, "attn", {0: [1]}, 2)])
    with pytest.raises(DeltaError, match="belongs to subject"):
        stack_deltas(build("qwen2"), [one])
    with pytest.raises(DeltaError, match="no delta to stack"):
        stack_deltas(subject, [])
    with pytest.raises(DeltaError, match="unknown overlap 'mean'"):
        stack_deltas(subject, [one], overlap="mean")  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def pair() -> Delta:
    return moved(build("llama"), "mlp", {0: [1, 3], 1: [2]}, 3)


@given(factor=st.floats(-4, 4))
@settings(deadline=None)
def test_scaling_moves_along_the_change(pair: Delta, factor: float) -> None:
    scaled = pair.scaled(factor)
    for key, base in pair.base.items():
        expected = base.double() + factor * (pair.values[key].double() - base.double())
        assert torch.allclose(scaled.values[key].double(), expected, atol=1e-6, rtol=1e-6)
    assert scaled.neurons == pair.neurons
    assert scaled.origin["factor"] == factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_and_nothing_are_exact(dtype: torch.dtype) -> None:
    delta = moved(build("llama", dtype), "mlp", {0: [1, 3]}, 3)
    assert same_bits(dict(delta.scaled(1).values), dict(delta.values))
    assert same_bits(dict(delta.scaled(0).values), dict(delta.base))
    assert (-delta).origin["factor"] == -1.0
    if dtype == torch.float16:
        with pytest.raises(DeltaError, match=r"leaves the range of torch.float16; take a smaller factor"):
            delta.scaled(1e6)


def test_negation_undoes_learning(corpus: Corpus) -> None:
    """In the sense of task arithmetic: the loss of what was learned rises above the untouched subject's."""
    subject = build("llama")
    neurons = ~NeuronSet.from_indices(subject, indices={})
    delta = finetune(subject, corpus, neurons, lr=0.005, steps=8)
    encoded = encode_corpus(subject, corpus.only(split="train"))
    batch = collate(encoded, list(range(len(encoded))))
    losses = []
    for one in (delta, delta.scaled(0.5), delta.scaled(0), -delta):
        with one.applied(subject):
            losses.append(answer_loss(subject, batch).item())
    assert losses == sorted(losses)
