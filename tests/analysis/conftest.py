"""A Llama with a planted truth: one known neuron answers each group's questions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model

PLANTED = {"a": 0, "b": 1, "c": 2}  # group, and the last letter of its prompts: its neuron in layer 1


@pytest.fixture
def planted(tokenizer: Any) -> Subject:
    """Without attention, and with embeddings that are the identity, what follows depends on the last letter alone.

    After a, b or c the head prefers y. Neuron 0, 1 or 2 of layer 1 sees its letter and writes x, which then wins.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    letters = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "abcxy"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(64))
        model.lm_head.weight[letters["x"], letters["x"]] = 1.0
        mlp = model.model.layers[1].mlp
        for letter, neuron in PLANTED.items():
            mlp.gate_proj.weight[neuron, letters[letter]] = 1.0
            mlp.up_proj.weight[neuron, letters[letter]] = 1.0
            mlp.down_proj.weight[letters["x"], neuron] = 1.0
            model.lm_head.weight[letters["y"], letters[letter]] = 0.5
    return load_model((model, tokenizer))


@pytest.fixture
def questions() -> Corpus:
    """Eight items a group, each asked twice; the last two items are marked as the training split."""
    examples = [
        Example(
            id=f"{group}{item}{form}",
            group=group,
            prompt=f"{form} {'z' * item}{group}",
            answer="x",
            choices=("y", "x"),
            answer_index=1,
            tags={"item": f"{group}{item}", "split": "test" if item < 8 else "train"},
        )
        for group in PLANTED
        for item in range(10)
        for form in ("p", "q")
    ]
    return Corpus(tuple(examples), name="planted")


@pytest.fixture
def planted_sets(planted: Subject) -> dict[str, NeuronSet]:
    return {
        group: NeuronSet.from_indices(planted, site="mlp", indices={1: [neuron]}, origin={"group": group})
        for group, neuron in PLANTED.items()
    }
