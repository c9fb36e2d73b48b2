"""Gates by hand, and that open gates are not there."""

from __future__ import annotations

import math

import pytest
import torch
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.routing import Gates, open_gates, routed
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import FAMILIES, build, same_bits, state
from torch import Tensor

IDS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10], [10, 9, 8, 7, 6, 5, 4, 3]])


def members(subject: Subject) -> dict[str, NeuronSet]:
    """A general set, one pair's, and another's that shares a neuron with it; layer 1 has the general ones alone."""
    return {
        "general": NeuronSet.from_indices(subject, indices={0: [1, 5], 1: [0, 2]}),
        "en-es": NeuronSet.from_indices(subject, indices={0: [7, 8]}),
        "en-zh": NeuronSet.from_indices(subject, indices={0: [8, 9]}),
    }


def logits(subject: Subject) -> Tensor:
    with torch.no_grad():
        return subject.model(IDS, use_cache=False).logits


def shut(gates: Gates, role: str, by: float = -1000.0) -> Gates:
    """One role's gate at 2 sigmoid(by) for every token, the others open."""
    row = gates.roles.index(role)
    tensors = {name: tensor.clone() for name, tensor in gates.tensors().items()}
    for layer in gates.layers:
        tensors[f"gates.{layer}.bias"][row] = by
    return gates.with_tensors(tensors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_open_gates_change_no_bit(family: str, dtype: torch.dtype) -> None:
    subject = build(family, dtype)
    plain = logits(subject)
    gates = open_gates(subject, members(subject))
    assert gates.layers == (0, 1)
    with routed(subject, gates):
        assert torch.equal(logits(subject), plain)
    with routed(subject, shut(gates, "general")):
        assert not torch.equal(logits(subject), plain)
    assert torch.equal(logits(subject), plain)


def test_open_gates_of_many_roles_change_no_bit() -> None:
    subject = build("llama")
    plain = logits(subject)
    everything = ~NeuronSet.from_indices(subject, indices={})
    with routed(subject, open_gates(subject, {str(number): everything for number in range(7)})):
        assert torch.equal(logits(subject), plain)


def test_open_gates_change_no_bit_of_generation() -> None:
    subject = build("llama")
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = subject.model.generate(
        IDS, attention_mask=torch.ones_like(IDS), output_logits=True, return_dict_in_generate=True, **arguments
    )
    with routed(subject, open_gates(subject, members(subject))):
        gated = subject.model.generate(
            IDS, attention_mask=torch.ones_like(IDS), output_logits=True, return_dict_in_generate=True, **arguments
        )
    assert torch.equal(plain.sequences, gated.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, gated.logits, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_shut_gate_silences_its_neurons(family: str) -> None:
    from neuropolis.neurons.interventions import intervene

    subject = build(family)
    chosen = members(subject)
    with intervene(subject, chosen["general"], kind="zero"):
        silent = logits(subject)
    with routed(subject, shut(open_gates(subject, chosen), "general")):
        assert torch.equal(logits(subject), silent)


def test_a_neuron_of_two_roles_has_the_mean_of_their_gates() -> None:
    """Neuron 8 is of en-es (shut: 0) and en-zh (open: 1): halved. Neuron 7 is of en-es alone: silent."""
    from neuropolis.neurons.interventions import intervene

    subject = build("llama")
    with (
        intervene(subject, NeuronSet.from_indices(subject, indices={0: [7]}), kind="zero"),
        intervene(subject, NeuronSet.from_indices(subject, indices={0: [8]}), kind="scale", factor=0.5),
    ):
        expected = logits(subject)
    with routed(subject, shut(open_gates(subject, members(subject)), "en-es")):
        torch.testing.assert_close(logits(subject), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_gate_is_what_its_formula_says_token_by_token(family: str) -> None:
    """The output projection is given a 2 sigmoid(w . x + b), x what the input projection was given."""
    subject = build(family)
    chosen = NeuronSet.from_indices(subject, indices={1: [4]})
    gates = open_gates(subject, {"general": chosen})
    weight, bias = torch.linspace(-1, 1, gates.weight[1].shape[1])[None], torch.tensor([0.3])
    gates = gates.with_tensors({"gates.1.weight": weight, "gates.1.bias": bias})
    seen: dict[str, Tensor] = {}
    up, down = subject.site("up").taps[1].module, subject.site("mlp").taps[1].module
    plain_hook = down.register_forward_pre_hook(lambda _, args: seen.update(plain=args[0]))
    with routed(subject, gates):
        state_hook = up.register_forward_pre_hook(lambda _, args: seen.update(state=args[0]))
        gated_hook = down.register_forward_pre_hook(lambda _, args: seen.update(gated=args[0]))
        logits(subject)
    for hook in (plain_hook, state_hook, gated_hook):
        hook.remove()
    gate = 2 / (1 + (-(seen["state"] @ weight[0] + 0.3)).exp())
    assert gate.std() > 0.05
    expected = seen["plain"].clone()
    expected[..., 4] *= gate
    torch.testing.assert_close(seen["gated"], expected)
    untouched = [n for n in range(expected.shape[-1]) if n != 4]
    assert torch.equal(seen["gated"][..., untouched], seen["plain"][..., untouched])


def test_hooks_are_gone_after_an_exception() -> None:
    subject = build("llama")
    before, plain = state(subject), logits(subject)
    gates = shut(open_gates(subject, members(subject)), "general", by=math.log(3))
    with pytest.raises(KeyboardInterrupt), routed(subject, gates):
        raise KeyboardInterrupt
    assert torch.equal(logits(subject), plain)
    assert same_bits(state(subject), before)
    assert not any(module._forward_pre_hooks for module in subject.model.modules())


def test_what_cannot_be_gated_is_refused() -> None:
    subject, other = build("llama"), build("gpt2")
    with pytest.raises(TuneError, match="at least one role"):
        open_gates(subject, {})
    with pytest.raises(TuneError, match="role 'general' has no neuron"):
        open_gates(subject, {"general": NeuronSet.from_indices(subject, indices={})})
    with pytest.raises(TuneError, match="neurons of site 'gate'"):
        open_gates(subject, {"general": NeuronSet.from_indices(subject, site="gate", indices={0: [1]})})
    with pytest.raises(SetError, match="belongs to subject"), routed(other, open_gates(subject, members(subject))):
        pass
    gates = open_gates(subject, members(subject))
    wrong = Gates(gates.members, {0: torch.zeros(3, 9)}, {0: torch.zeros(3)})
    with (
        pytest.raises(DeltaError, match=r"weights \[3, 9\] and biases \[3\], expected \[3, 16\]"),
        routed(subject, wrong),
    ):
        pass
