"""Tiny random models of each real family, built from their configs, and a character-level tokenizer. No download."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.corpora.jsonl import write_jsonl
from neuropolis.neurons.subject import Subject, load_model

Run = Callable[..., str]
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,:?!"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
GATED = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GATED),
    "qwen3": ("Qwen3", {**GATED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GATED, "head_dim": 8, "sliding_window": 8}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64}),
    "gpt_neox": ("GPTNeoX", {**SHAPE, "intermediate_size": 48}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64}),
    "opt": ("OPT", {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi3": ("Phi3", GATED),
    "falcon": ("Falcon", SHAPE),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model of a family, in evaluation mode."""
    transformers = importlib.import_module("transformers")
    stem, shape = FAMILIES[family]
    config = getattr(transformers, f"{stem}Config")(**shape, **IDS)
    torch.manual_seed(seed)
    name = f"{stem}LMHeadModel" if family == "gpt2" else f"{stem}ForCausalLM"
    model = getattr(transformers, name)(config).to(dtype).eval()
    with torch.no_grad():  # initial weights are small; larger ones make wrong gradients visible
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


def character_tokenizer() -> Any:
    """A fast tokenizer with one token per character and a beginning-of-text token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {c: i + 4 for i, c in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def make_subject(tokenizer: Any) -> Callable[..., Subject]:
    """Builds a fresh tiny subject of a family."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> Subject:
        return load_model((tiny_model(family, dtype, seed), tokenizer))

    return make


@pytest.fixture
def corpus() -> Corpus:
    """Three groups, prompts of many lengths, choices, control twins."""
    examples = []
    words = ["tea", "rice", "bread", "milk", "corn", "soup"]
    for g, group in enumerate(("north", "south", "east")):
        for i in range(4):
            choices = tuple(f" {words[(g + i + k) % 6]}." for k in range(4))
            examples.append(
                Example(
                    id=f"{group}/{i}", group=group, prompt="Q: " + "what is eaten " * (i % 3) + f"in the {group}? A:",
                    answer=choices[i], choices=choices, answer_index=i, control="Q: say it: A:", tags={"language": "en"},
                )
            )  # fmt: skip
    return Corpus(tuple(examples), name="toy")


@pytest.fixture
def folder(make_subject: Any, corpus: Corpus, tmp_path: Path) -> Path:
    """A model on disk and a table beside it."""
    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(corpus, tmp_path / "my.jsonl")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder; returns what it printed, with the error line last when it failed."""
    from neuropolis.cli import main as cli

    monkeypatch.chdir(folder)

    def command(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["neuropolis", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert bool(stopped.value.code) == fails, err or out
        return err.strip().splitlines()[-1] if fails else out

    return command


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The documents' commands take minutes: first, so that one process does not end alone with them."""
    items.sort(key=lambda item: item.path.name != "test_documents.py")
