"""Similarity: by hand on integer weights, and the right rows and columns in every family."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from neuropolis.analysis.parameters import neuron_parameters
from neuropolis.analysis.similarity import similarity
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Make = Callable[..., Subject]


def test_parameters_of_a_gated_ffn(make_subject: Make) -> None:
    subject = make_subject("llama")
    mlp = subject.model.model.layers[1].mlp
    for site in ("mlp", "gate", "up"):
        found = neuron_parameters(subject, site, 1)
        assert found.shape == (48, 96)
        expected = torch.cat([mlp.gate_proj.weight[7], mlp.up_proj.weight[7], mlp.down_proj.weight[:, 7]])
        assert torch.equal(found[7], expected)


def test_parameters_of_a_transposed_ffn_without_a_gate(make_subject: Make) -> None:
    subject = make_subject("gpt2")
    mlp = subject.model.transformer.h[2].mlp  # Conv1D: weights are [in, out]
    expected = torch.cat([mlp.c_fc.weight[:, 5], mlp.c_proj.weight[5]])
    assert torch.equal(neuron_parameters(subject, "mlp", 2)[5], expected)


def test_parameters_of_a_fused_ffn(make_subject: Make) -> None:
    subject = make_subject("phi3")
    mlp = subject.model.model.layers[0].mlp  # gate rows first, then up rows
    expected = torch.cat([mlp.gate_up_proj.weight[3], mlp.gate_up_proj.weight[48 + 3], mlp.down_proj.weight[:, 3]])
    assert torch.equal(neuron_parameters(subject, "mlp", 0)[3], expected)


def test_parameters_of_attention(make_subject: Make) -> None:
    llama = make_subject("llama")
    attention = llama.model.model.layers[0].self_attn
    assert torch.equal(neuron_parameters(llama, "k", 0), attention.k_proj.weight)
    assert torch.equal(neuron_parameters(llama, "attn", 0), attention.o_proj.weight.T)
    assert torch.equal(neuron_parameters(llama, "mlp_out", 0), llama.model.model.layers[0].mlp.down_proj.weight)
    fused = make_subject("gpt2").model.transformer.h[0].attn.c_attn.weight
    assert torch.equal(neuron_parameters(make_subject("gpt2"), "v", 0)[4], fused[:, 64 + 4])


def test_parameters_are_those_that_move_the_neuron(make_subject: Make) -> None:
    """In each family the rows differ from neuron to neuron and there are as many as the site is wide."""
    for family in ("qwen3", "gemma2", "gpt_neox", "bloom", "opt", "falcon"):
        subject = make_subject(family)
        parameters = neuron_parameters(subject, "mlp", 0)
        assert parameters.shape[0] == subject.site("mlp").width
        assert len(parameters.unique(dim=0)) == len(parameters)


def test_a_layer_outside_is_refused(make_subject: Make) -> None:
    with pytest.raises(SiteError, match="layer 3 is outside 0 to 2"):
        neuron_parameters(make_subject("llama"), "mlp", 3)


@pytest.fixture
def integers(planted: Subject) -> Subject:
    """FFN weights of layer 0: neuron 0 is e0, neuron 1 is e1, neuron 2 is 2 e0, neuron 3 is -e0 in every matrix."""
    mlp = planted.model.model.layers[0].mlp
    rows = torch.zeros(8, 64)
    rows[0, 0], rows[1, 1], rows[2, 0], rows[3, 0] = 1, 1, 2, -1
    with torch.no_grad():
        mlp.gate_proj.weight.copy_(rows)
        mlp.up_proj.weight.copy_(rows)
        mlp.down_proj.weight.copy_(rows.T)
    return planted


def sets_of(subject: Subject, **members: list[int]) -> dict[str, NeuronSet]:
    return {name: NeuronSet.from_indices(subject, indices={0: chosen}) for name, chosen in members.items()}


def test_similarity_by_hand(integers: Subject) -> None:
    # means along (e0, e1): a (1/2, 1/2), b (2, 0), c (1, 1/2), d (-1, 0)
    alike = similarity(integers, sets_of(integers, a=[0, 1], b=[2], c=[1, 2], d=[3]), controls=3)
    half = 1 / math.sqrt(2)
    root5 = math.sqrt(5)
    expected = torch.tensor(
        [
            [1, half, 3 * half / root5, -half],
            [half, 1, 2 / root5, -1],
            [3 * half / root5, 2 / root5, 1, -2 / root5],
            [-half, -1, -2 / root5, 1],
        ]
    )
    torch.testing.assert_close(alike.values[:, :, 0], expected)
    assert alike.counts.tolist() == [[2, 0], [1, 0], [2, 0], [1, 0]]
    assert bool(alike.values[:, :, 1].isnan().all())  # no members in layer 1
    unshared = alike.values_unshared[:, :, 0]
    assert bool(unshared.diagonal().isnan().all())
    torch.testing.assert_close(unshared[0, 2], torch.tensor(1.0))  # neuron 0 against neuron 2, without the shared 1
    assert bool(unshared[1, 2].isnan())  # b lies in c: nothing is left
    torch.testing.assert_close(unshared[0, 1], expected[0, 1])
    torch.testing.assert_close(unshared, unshared.T, equal_nan=True)


def test_controls_of_random_weights_are_not_alike(make_subject: Make) -> None:
    subject = make_subject("llama")
    sets = {
        "a": NeuronSet.from_indices(subject, indices={0: range(10), 1: range(5)}),
        "b": NeuronSet.from_indices(subject, indices={0: range(20, 30), 2: range(5)}),
    }
    alike = similarity(subject, sets, controls=30, seed=1)
    assert alike.values.shape == alike.chance.shape == (2, 2, 3)
    low, mean, high = (float(t[0, 1, 0]) for t in (alike.chance_low, alike.chance, alike.chance_high))
    assert low < mean < high
    assert low < float(alike.values[0, 1, 0]) < high  # random neurons, too
    assert bool(alike.chance[0, 1, 1:].isnan().all())
    assert bool(alike.chance.diagonal().isnan().all())
    again = similarity(subject, sets, controls=30, seed=1)
    assert torch.equal(alike.chance[0, 1, :1], again.chance[0, 1, :1])
    none = similarity(subject, sets, controls=0)
    assert bool(none.chance.isnan().all())
    assert torch.equal(none.values[0, 1, :1], alike.values[0, 1, :1])


def test_neurons_made_alike_stand_out(make_subject: Make) -> None:
    subject = make_subject("llama")
    mlp = subject.model.model.layers[0].mlp
    with torch.no_grad():  # neurons 20 to 29 become noisy copies of 0 to 9
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
            weight[20:30] = weight[:10] + 0.01 * torch.randn(10, 32)
    sets = sets_of(subject, a=list(range(10)), b=list(range(20, 30)))
    alike = similarity(subject, sets)
    assert alike.values_unshared[0, 1, 0] > 0.95 > alike.chance_high[0, 1, 0]


def test_wrong_sets_are_refused(planted: Subject, make_subject: Make) -> None:
    with pytest.raises(SetError, match="no sets"):
        similarity(planted, {})
    with pytest.raises(SetError, match="belongs to subject"):
        similarity(make_subject("llama"), sets_of(planted, a=[1]))
    with pytest.raises(SetError, match="site"):
        similarity(
            planted, sets_of(planted, a=[1]) | {"q": NeuronSet.from_indices(planted, site="q", indices={0: [1]})}
        )
