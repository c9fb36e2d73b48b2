"""Watched interventions: they say nothing when every hook fired, and raise when one did not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from neuropolis.neurons.errors import SetError, SubjectError
from neuropolis.neurons.firing import intervene_watched
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Make = Callable[..., Subject]
IDS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


@pytest.mark.parametrize(
    ("family", "site"), [("llama", "mlp"), ("llama", "gate"), ("gpt2", "q"), ("phi3", "up"), ("gpt2", "mlp")]
)
def test_a_watched_intervention_is_the_plain_one_and_is_counted(make_subject: Make, family: str, site: str) -> None:
    subject = make_subject(family)
    neurons = NeuronSet.from_indices(subject, site=site, indices={0: [1, 2], 2: [3]})
    with torch.no_grad():
        with intervene(subject, neurons):
            expected = subject.model(IDS).logits
        with intervene_watched(subject, neurons) as firing:
            found = subject.model(IDS).logits
            subject.model(IDS)
        after = subject.model(IDS).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, after)
    assert firing.layers == (0, 2)
    assert dict(firing.seen) == dict(firing.edited) == dict(firing.entered) == {0: 2, 2: 2}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in subject.model.modules())


def test_of_a_kept_set_all_other_neurons_layers_are_watched(make_subject: Make) -> None:
    subject = make_subject("llama")
    whole = range(subject.site("mlp").width)
    kept = NeuronSet.from_indices(subject, site="mlp", indices={1: whole, 2: [3]})
    with torch.no_grad():
        with intervene(subject, kept, kind="keep"):
            expected = subject.model(IDS).logits
        with intervene_watched(subject, kept, kind="keep") as firing:
            found = subject.model(IDS).logits
    assert torch.equal(found, expected)
    assert firing.layers == (0, 2)  # layer 1 is kept whole
    assert dict(firing.edited) == {0: 1, 2: 1}


def test_a_module_that_goes_round_its_hook_is_an_error(make_subject: Make) -> None:
    """As a fused kernel does that takes the weights and never calls the module."""
    subject = make_subject("llama")
    neurons = NeuronSet.from_indices(subject, site="mlp", indices={0: [1], 1: [3]})
    mlp = subject.model.model.layers[1].mlp
    mlp.forward = lambda x: torch.nn.functional.linear(
        mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
    )
    with (
        torch.no_grad(),
        pytest.raises(SubjectError, match=r"did not take hold.*layers\.1\.mlp.*0 of 0 .* in 0 passes"),
        intervene_watched(subject, neurons),
    ):
        subject.model(IDS)


def test_a_hook_that_is_taken_away_is_an_error(make_subject: Make) -> None:
    subject = make_subject("llama")
    neurons = NeuronSet.from_indices(subject, site="mlp", indices={1: [3]})
    hooks = subject.model.model.layers[1].mlp.down_proj._forward_pre_hooks

    def without_it() -> None:
        with torch.no_grad(), intervene_watched(subject, neurons):
            del hooks[sorted(hooks)[2]]  # after the counter and the first watcher: the intervention itself
            subject.model(IDS)

    with pytest.raises(SubjectError, match="edited 0 of 1 activations in 1 passes"):
        without_it()


def test_no_pass_at_all_is_an_error_and_an_exception_stays_itself(make_subject: Make) -> None:
    subject = make_subject("llama")
    neurons = NeuronSet.from_indices(subject, site="mlp", indices={1: [3]})
    with pytest.raises(SubjectError, match="in 0 passes"), intervene_watched(subject, neurons):
        pass
    with pytest.raises(KeyError), intervene_watched(subject, neurons):
        raise KeyError("something else")
    with intervene_watched(subject, neurons & ~neurons) as firing:
        pass
    assert firing.layers == ()
    other = make_subject("llama", seed=1)
    with pytest.raises(SetError, match="belongs to subject"), intervene_watched(other, neurons):
        pass


def test_routed_experts_are_watched_where_tokens_reach_them() -> None:
    from neuropolis.neurons.subject import load_model
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **shape, head_dim=8, vocab_size=64, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        intermediate_size=16,
    )  # fmt: skip
    subject = load_model((Qwen3MoeForCausalLM(config).eval(), object()))
    everything = NeuronSet.from_indices(subject, site="expert", indices={0: range(32), 1: range(32)})
    with torch.no_grad(), intervene_watched(subject, everything) as firing:
        subject.model(IDS)
    assert firing.edited == firing.seen
    assert firing.entered == {0: 1, 1: 1}
    assert 2 <= firing.seen[0] <= 4
