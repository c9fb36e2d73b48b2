"""Tiny random models of several families with a word-level tokenizer, and a corpus that they can learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = [
    "capital",
    "food",
    "of",
    "is",
    "red",
    "blue",
    "green",
    "rice",
    "bread",
    "tea",
    "aland",
    "borland",
    "cetus",
    "dor",
]
_SMALL = {"vocab_size": 20, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_SHAPE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_SMALL, **_SHAPE, num_key_value_heads=1, mlp_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**_SMALL, **_SHAPE, num_key_value_heads=1),
    "gpt2": lambda: transformers.GPT2Config(**_SMALL, n_embd=16, n_inner=24, n_layer=2, n_head=2, n_positions=32),
    "phi3": lambda: transformers.Phi3Config(**_SMALL, **_SHAPE, num_key_value_heads=1),
    "neox": lambda: transformers.GPTNeoXConfig(**_SMALL, **_SHAPE),
}
FAMILIES = tuple(CONFIGS)
_ROUTED = {**_SHAPE, "num_key_value_heads": 1, "head_dim": 8, "num_experts_per_tok": 2}
EXPERTS, UNITS = 4, 16
_FOUR = {"num_experts": EXPERTS, "moe_intermediate_size": UNITS}
CONFIGS |= {
    "mixtral": lambda: transformers.MixtralConfig(
        **_SMALL, **{**_ROUTED, "intermediate_size": UNITS}, num_local_experts=EXPERTS
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_SMALL, **_ROUTED, **_FOUR),
    "olmoe": lambda: transformers.OlmoeConfig(**_SMALL, **{**_ROUTED, "intermediate_size": UNITS}, num_experts=EXPERTS),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_SMALL, **{**_ROUTED, "intermediate_size": UNITS}, num_local_experts=EXPERTS
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(**_SMALL, **_ROUTED, **_FOUR, shared_expert_intermediate_size=20),
}
ROUTED = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "qwen2_moe")


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="<pad>", unk_token="<unk>")


def build(family: str, dtype: torch.dtype = torch.float32) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at the start, which would hide a bias that is left out
                torch.nn.init.normal_(parameter, std=0.1)
    if family in ROUTED and dtype == torch.float64:  # which transformers' default, grouped_mm, does not compute
        model.set_experts_implementation("eager")
    return load_model((model.to(dtype), tokenizer()))


def some(subject: Subject, site: str = "mlp") -> NeuronSet:
    """Seven neurons in two layers, or three in one layer where a site is narrow."""
    return NeuronSet.from_indices(subject, site=site, indices={0: [5, 1], 1: [0, 2, 3, 6, 7]})


def some_units(subject: Subject) -> NeuronSet:
    """Units of experts 0, 1 and 3 in the first layer and of expert 2 in the second."""
    return NeuronSet.from_experts(subject, indices={0: {0: [1, 5], 1: [0, 3, 11], 3: [7]}, 1: {2: [2, 4]}})


def state(subject: Subject) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    pairs = ((one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)) for name in one)
    return set(one) == set(other) and all(torch.equal(a, b) for a, b in pairs)


ANSWERS = {"aland": ["red", "rice"], "borland": ["blue", "bread"], "dor": ["green", "rice bread"]}


def tiny_corpus() -> Corpus:
    rows = [
        Example(f"{g}-{k}-{split}", g, f"{k} of {g} is", f" {answer}", tags={"split": split, "item": k})
        for g, answers in ANSWERS.items()
        for k, answer in zip(["capital", "food"], answers, strict=True)
        for split in ("train", "test")
    ]
    return Corpus(tuple(rows), "tiny")
