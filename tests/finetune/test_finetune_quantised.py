"""Slices of quantised bases: the base keeps every bit, what is learned stands beside it and comes and goes with the delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.finetune.algebra import stack_deltas
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.delta_files import load_delta
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.losses import answer_loss
from neuropolis.finetune.quantised import Beside, base_values
from neuropolis.finetune.trainable import trainable_slice
from neuropolis.finetune.training import finetune
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model
from tiny_families import build, same_bits, some, state, tiny_corpus, tokenizer
from torch import Tensor, nn

IDS = torch.arange(3, 11)[None]
FAMILIES = ("llama", "qwen2", "phi3", "neox")


class Int8Linear(nn.Linear):
    """A quantised Linear as libraries have them: whole numbers in its weight, a scale for each output channel."""

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        weight = linear.weight.data
        made.register_buffer("scale", weight.abs().amax(dim=1, keepdim=True) / 127)
        made.weight = nn.Parameter((weight / made.scale).round().to(torch.int8), requires_grad=False)  # pyright: ignore[reportOperatorIssue]
        made.bias = linear.bias
        return made

    @property
    def dense(self) -> Tensor:
        return self.weight.float() * self.scale  # pyright: ignore[reportOperatorIssue]

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.dense.to(input.dtype), self.bias)


def _swapped(model: nn.Module, make: Any) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not path.endswith(("lm_head", "embed_out")):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, make(module))


def quantised(family: str) -> Subject:
    subject = build(family)
    _swapped(subject.model, Int8Linear.of)
    return load_model((subject.model, tokenizer()))


def dense(family: str) -> Subject:
    """The same numbers in a plain model."""
    subject = quantised(family)

    def plain(module: nn.Linear) -> nn.Linear:
        assert isinstance(module, Int8Linear)
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        linear.weight, linear.bias = nn.Parameter(module.dense), module.bias
        return linear

    _swapped(subject.model, plain)
    return load_model((subject.model, tokenizer()))


def logits(subject: Subject) -> Tensor:
    with torch.no_grad():
        return subject.model(IDS).logits


def trained(subject: Subject, site: str = "mlp") -> Delta:
    return finetune(subject, tiny_corpus(), some(subject, site), steps=4, lr=1e-2, weight_decay=0.1, batch_size=4)


@pytest.mark.parametrize("site", ["mlp", "v", "attn", "mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_that_of_a_plain_model_with_the_same_numbers(family: str, site: str) -> None:
    subject, plain = quantised(family), dense(family)
    found, expected = trained(subject, site), trained(plain, site)
    assert found.values.keys() == expected.values.keys()
    torch.testing.assert_close(found.history, expected.history, rtol=1e-4, atol=1e-6)
    for key in found.values:
        torch.testing.assert_close(found.base[key], expected.base[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.values[key], expected.values[key], rtol=1e-3, atol=1e-4)
        assert (found.values[key] - found.base[key]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_base_moves(family: str) -> None:
    subject = quantised(family)
    before, plain = state(subject), logits(subject)
    delta = trained(subject)
    assert same_bits(state(subject), before)
    assert torch.equal(logits(subject), plain)
    with delta.applied(subject):
        assert (logits(subject) - plain).abs().max() > 1e-3
    assert same_bits(state(subject), before)
    assert torch.equal(logits(subject), plain)
    assert not any("forward" in module.__dict__ for module in subject.model.modules())


def test_before_a_step_the_outputs_are_the_bases_bits() -> None:
    subject = quantised("llama")
    plain = logits(subject)
    with trainable_slice(subject, some(subject)) as trainable:
        assert torch.equal(logits(subject), plain)
        answer_loss(subject, collate(encode_corpus(subject, tiny_corpus())[:2], [0, 1])).backward()
        assert all(master.grad is not None and master.dtype == torch.float32 for master in trainable.masters)


def test_a_delta_comes_back_from_its_folder_and_off_again_after_an_error(tmp_path: Path) -> None:
    subject = quantised("llama")
    plain, delta = logits(subject), trained(subject)
    with delta.applied(subject):
        tuned = logits(subject)
    again = load_delta(delta.save(tmp_path / "delta"), subject=subject)

    def fail() -> None:
        with again.applied(subject):
            assert torch.equal(logits(subject), tuned)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(logits(subject), plain)


def test_applied_deltas_stack_and_the_inner_one_counts() -> None:
    subject = quantised("llama")
    first = finetune(subject, tiny_corpus(), NeuronSet.from_indices(subject, indices={0: [1, 5]}), steps=3, lr=1e-2)
    second = finetune(subject, tiny_corpus(), NeuronSet.from_indices(subject, indices={0: [5, 7]}), steps=3, lr=2e-2)
    apart = finetune(subject, tiny_corpus(), NeuronSet.from_indices(subject, indices={1: [3]}), steps=3, lr=1e-2)
    gate = subject.model.model.layers[0].mlp.gate_proj
    with first.applied(subject):
        outer = logits(subject)
        with second.applied(subject):
            beside = gate.forward
            assert isinstance(beside, Beside)
            assert sorted(beside.changed) == [1, 5, 7]
            assert torch.equal(beside.changed[5][0], second.values["model.layers.0.mlp.gate_proj.rows"][0])
        assert torch.equal(logits(subject), outer)
        with apart.applied(subject):
            both = logits(subject)
    with stack_deltas(subject, [first, apart]).applied(subject):
        assert torch.equal(logits(subject), both)


def test_rows_and_columns_of_one_projection_are_refused_together() -> None:
    subject = quantised("llama")
    columns, rows = trained(subject), trained(subject, "mlp_out")
    with columns.applied(subject):
        plain = logits(subject)
        with (
            pytest.raises(TuneError, match="has changed columns already; changed rows of the same one"),
            rows.applied(subject),
        ):
            pass
        assert torch.equal(logits(subject), plain)


def test_merging_and_exporting_are_refused(tmp_path: Path) -> None:
    subject = quantised("llama")
    delta = trained(subject)
    with pytest.raises(DeltaError, match=r"is quantised .* use it with delta.applied\(subject\)"):
        delta.merge(subject)
    with pytest.raises(DeltaError, match="is quantised"):
        delta.export(subject, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_base_values_are_what_the_module_computes_with() -> None:
    module = Int8Linear.of(nn.Linear(700, 5))
    torch.testing.assert_close(base_values(module, 0, torch.tensor([3, 1])), module.dense[[3, 1]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        base_values(module, 1, torch.tensor([600, 2])), module.dense[:, [600, 2]], rtol=1e-5, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["4 bit", "8 bit"])
def test_bitsandbytes(kind: str) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    ).eval()

    def make(linear: nn.Linear) -> nn.Module:
        shape = linear.in_features, linear.out_features
        if kind == "4 bit":
            made = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.float32)
        else:
            made = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")

    _swapped(model, make)
    model.requires_grad_(False)  # as `from_pretrained` leaves it
    with torch.no_grad():
        model(IDS)  # some quantise when they first run
    subject = load_model((model, tokenizer()))
    weights = [module.weight.clone() for module in model.modules() if isinstance(module, nn.Linear)]
    plain = logits(subject)
    delta = finetune(subject, tiny_corpus(), some(subject), steps=10, lr=1e-2, batch_size=6)
    assert delta.history[-1] < delta.history[0]
    with delta.applied(subject):
        assert (logits(subject) - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(subject), plain, rtol=0, atol=0.01)  # 4 bit packs its weights anew for a backward
    assert not any("forward" in module.__dict__ for module in model.modules())
    after = (
        weights if kind == "4 bit" else [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    )
    assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))
