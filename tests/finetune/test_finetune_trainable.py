from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.slices import SlicePart, slice_parts
from neuropolis.finetune.trainable import trainable_full, trainable_slice
from neuropolis.finetune.training import answer_loss
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import is_transposed
from neuropolis.neurons.subject import Subject, load_model
from tiny_families import FAMILIES, build, same_bits, some, state
from torch import Tensor

SITES = ("mlp", "gate", "up", "mlp_out", "q", "k", "v", "attn", "attn_out")


def one_batch(subject: Subject, corpus: Corpus) -> Any:
    encoded = encode_corpus(subject, corpus)
    return collate(encoded, list(range(len(encoded))))


def full_gradients(subject: Subject, corpus: Corpus, parts: tuple[SlicePart, ...]) -> dict[str, Tensor]:
    """The parts' entries of the gradients that plain autograd gives for the whole weights."""
    subject.model.requires_grad_(True)
    answer_loss(subject, one_batch(subject, corpus)).backward()
    found = {}
    for part in parts:
        module: Any = part.module
        weight = module.weight.grad.T if is_transposed(module) else module.weight.grad
        if part.columns is not None:
            found[f"{part.path}.columns"] = weight[:, part.columns]
        else:
            found[f"{part.path}.rows"] = weight[part.rows]
            if module.bias is not None:
                found[f"{part.path}.bias"] = module.bias.grad[part.rows]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_gradients_are_those_of_the_full_weights(family: str, site: str, corpus: Corpus) -> None:
    subject = build(family, torch.float64)
    if site == "gate" and family in ("gpt2", "neox"):
        pytest.skip("has no gate")
    neurons = some(subject, site)
    reference = build(family, torch.float64)
    expected = full_gradients(reference, corpus, slice_parts(reference, neurons))
    with trainable_slice(subject, neurons) as trainable:
        answer_loss(subject, one_batch(subject, corpus)).backward()
        found = {entry.key: master.grad for entry, master in zip(trainable.entries, trainable.masters, strict=True)}
    assert set(found) == set(expected)
    for key, grad in found.items():
        assert grad is not None
        assert torch.allclose(grad, expected[key], atol=1e-10, rtol=0)
    assert max(float(grad.abs().max()) for grad in expected.values()) > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_add_up_over_forwards(family: str, corpus: Corpus) -> None:
    subject = build(family, torch.float64)
    batch = one_batch(subject, corpus)
    with trainable_slice(subject, some(subject)) as trainable:
        answer_loss(subject, batch).backward()
        once = [master.grad.clone() for master in trainable.masters if master.grad is not None]
        (answer_loss(subject, batch) + answer_loss(subject, batch)).backward()
        for master, grad in zip(trainable.masters, once, strict=True):
            assert master.grad is not None
            assert torch.allclose(master.grad, 3 * grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_slice_computes_the_same_bits(family: str) -> None:
    subject = build(family)
    ids = torch.arange(3, 11)[None]
    plain = subject.model(ids).logits
    with trainable_slice(subject, some(subject)):
        assert torch.equal(subject.model(ids).logits, plain)


def test_forward_computes_with_what_the_optimizer_holds() -> None:
    """Also for a change that does not raise the version of the tensor, as with a fused optimizer."""
    subject = build("llama")
    ids = torch.arange(3, 11)[None]
    with trainable_slice(subject, some(subject)) as trainable:
        for master in trainable.masters:
            master.data.add_(0.5)
        inside = subject.model(ids).logits
        written = state(subject)
    assert not torch.allclose(inside, subject.model(ids).logits)
    subject.model.load_state_dict(written)
    assert torch.equal(subject.model(ids).logits, inside)


@pytest.mark.parametrize("opened", [trainable_slice, trainable_full])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_comes_back_after_an_exception(opened: Any, dtype: torch.dtype, corpus: Corpus) -> None:
    subject = build("llama", dtype)
    model = subject.model
    model.train()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones(16, dtype=dtype)
    neurons = some(subject)
    before = state(subject)
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def interrupted() -> None:
        with opened(subject) if opened is trainable_full else opened(subject, neurons) as trainable:
            answer_loss(subject, one_batch(subject, corpus)).backward()
            torch.optim.AdamW(trainable.masters, lr=0.1).step()
            subject.model(torch.arange(3, 11)[None])
            assert not same_bits(state(subject), before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same_bits(state(subject), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    grads = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert grads == ["model.norm.weight"]
    assert bool((model.model.norm.weight.grad == 1).all())


def test_foreign_forward_and_hooks_keep_working() -> None:
    subject = build("llama")
    neurons = some(subject)
    module = subject.model.model.layers[0].mlp.up_proj
    calls: list[str] = []
    original = module.forward

    def foreign(x: Tensor) -> Tensor:
        calls.append("forward")
        return original(x)

    module.forward = foreign
    module.register_forward_hook(lambda *_: calls.append("hook"))
    with trainable_slice(subject, neurons):
        subject.model(torch.arange(3, 11)[None])
    assert calls[-2:] == ["forward", "hook"]
    assert module.forward is foreign


def test_nothing_below_the_lowest_part_is_differentiated() -> None:
    subject = build("llama")
    neurons = NeuronSet.from_indices(subject, indices={1: [3]})
    seen: dict[str, bool] = {}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out.requires_grad}))
        for name, module in subject.model.named_modules()
        if name.endswith(("up_proj", "down_proj", "o_proj"))
    ]
    with trainable_slice(subject, neurons):
        subject.model(torch.arange(3, 11)[None])
    for handle in handles:
        handle.remove()
    assert {name for name, needs in seen.items() if needs} == {
        "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj",
    }  # fmt: skip
    assert len(seen) == 6


def test_column_part_saves_its_columns_only() -> None:
    subject = build("llama")
    neurons = NeuronSet.from_indices(subject, site="attn", indices={0: [3, 4]})
    saved: list[list[int]] = []
    note = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(list(t.shape)) or t, lambda t: t)
    module = subject.model.model.layers[0].self_attn.o_proj
    x = torch.ones(1, 5, 16)
    with trainable_slice(subject, neurons), note:
        module(x)
    assert saved == [[1, 5, 2]]


def test_masters_are_float32_over_half_weights(corpus: Corpus) -> None:
    """Steps too small for bfloat16 add up in the masters."""
    subject = build("llama", torch.bfloat16)
    with trainable_slice(subject, some(subject)) as trainable:
        assert {master.dtype for master in trainable.masters} == {torch.float32}
        answer_loss(subject, one_batch(subject, corpus)).backward()
        for master in trainable.masters:
            assert master.grad is not None
            assert master.grad.dtype == torch.float32
            master.data.add_(1e-6)
        assert all(tensor.dtype == torch.bfloat16 for tensor in trainable.values().values())
        moved = [
            float((m.detach() - b.float()).abs().max()) for m, b in zip(trainable.masters, trainable.base, strict=True)
        ]
        assert min(moved) > 0


def test_full_masters_collect_half_gradients(corpus: Corpus) -> None:
    subject = build("llama", torch.bfloat16)
    with trainable_full(subject) as trainable:
        answer_loss(subject, one_batch(subject, corpus)).backward()
        once = [master.grad.clone() for master in trainable.masters if master.grad is not None]
        answer_loss(subject, one_batch(subject, corpus)).backward()
        assert len(once) == len(trainable.masters)
        for master, grad in zip(trainable.masters, once, strict=True):
            assert master.grad is not None
            assert torch.equal(master.grad, 2 * grad)
        assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_optimizer_state_is_the_slices_size(corpus: Corpus) -> None:
    subject = build("gpt2")
    neurons = some(subject)
    with trainable_slice(subject, neurons) as trainable:
        optimizer = torch.optim.AdamW(trainable.masters)
        answer_loss(subject, one_batch(subject, corpus)).backward()
        optimizer.step()
        held = sum(
            value.numel() for entry in optimizer.state.values() for name, value in entry.items() if name != "step"
        )
    assert trainable.num_parameters == len(neurons) * (16 + 1 + 16)
    assert held == 2 * trainable.num_parameters


def test_empty_set_is_refused() -> None:
    subject = build("llama")
    with (
        pytest.raises(TuneError, match="has none of the 48 mlp neurons"),
        trainable_slice(subject, NeuronSet.from_indices(subject, indices={})),
    ):
        pass


def adamw(masters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(masters, lr=0.05, weight_decay=0.5)


def momentum(masters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(masters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["mlp", "mlp_out", "q", "k", "v", "attn"])
@pytest.mark.parametrize(
    ("optimizer", "dtype", "mixed"),
    [(adamw, torch.float32, False), (momentum, torch.bfloat16, False), (adamw, torch.float32, True)],
    ids=["adamw", "momentum bf16", "adamw autocast"],
)
def test_only_the_slice_changes(
    family: str, site: str, optimizer: Any, dtype: torch.dtype, mixed: bool, corpus: Corpus
) -> None:
    """Under weight decay, momentum, clipping and mixed precision; every entry of the slice changes."""
    subject = build(family, dtype)
    neurons = some(subject, site)
    before = state(subject)
    with trainable_slice(subject, neurons) as trainable:
        running = optimizer(trainable.masters)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = answer_loss(subject, one_batch(subject, corpus))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable.masters, 0.5)
            running.step()
            running.zero_grad()
        subject.model(torch.arange(3, 11)[None])
        trained = state(subject)
        values, parts = trainable.values(), slice_parts(subject, neurons)
    inside = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    for part in parts:
        mask = inside[f"{part.path}.weight"]
        mask = mask.T if is_transposed(part.module) else mask
        if part.columns is not None:
            mask[:, part.columns] = True
        else:
            mask[part.rows] = True
            if part.bias is not None:
                inside[f"{part.path}.bias"][part.rows] = True
    assert sum(int(mask.sum()) for mask in inside.values()) == sum(tensor.numel() for tensor in values.values())
    for name, mask in inside.items():
        assert same_bits({"": trained[name][~mask]}, {"": before[name][~mask]})
        assert bool((trained[name][mask] != before[name][mask]).float().mean() > 0.9) or not mask.any()


def test_gradients_under_autocast_are_those_of_the_full_weights(corpus: Corpus) -> None:
    subject, reference = build("llama"), build("llama")
    neurons = some(subject)
    with torch.autocast("cpu", torch.bfloat16):
        expected = full_gradients(reference, corpus, slice_parts(reference, neurons))
    with trainable_slice(subject, neurons) as trainable:
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(subject, one_batch(subject, corpus))
        loss.backward()
        for entry, master in zip(trainable.entries, trainable.masters, strict=True):
            assert master.grad is not None
            assert master.grad.dtype == torch.float32
            wanted = expected[entry.key]
            assert (master.grad - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.filterwarnings("ignore")  # TransformerLens's own
@pytest.mark.parametrize(("family", "site"), [("llama", "mlp"), ("gpt2", "mlp"), ("llama", "q"), ("neox", "attn")])
def test_a_bridge_trains_as_the_model_that_it_wraps(family: str, site: str, corpus: Corpus, tmp_path: Path) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoTokenizer

    plain, inner = build(family, torch.float64), build(family, torch.float64)
    inner.tokenizer.save_pretrained(tmp_path)
    model = inner.model
    bridge = build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=AutoTokenizer.from_pretrained(tmp_path)
    )
    wrapped = load_model((bridge, inner.tokenizer))
    found = []
    for subject in (plain, wrapped):
        before = state(subject)
        with trainable_slice(subject, some(plain, site)) as trainable:
            running = torch.optim.AdamW(trainable.masters, lr=0.01)
            for _ in range(2):
                answer_loss(subject, one_batch(subject, corpus)).backward()
                running.step()
                running.zero_grad()
            found.append(
                [(base, value) for base, value in zip(trainable.base, trainable.values().values(), strict=True)]
            )
        assert same_bits(state(subject), before)
    assert len(found[0]) == len(found[1])
    for (base, value), (base_there, value_there) in zip(*found, strict=True):
        assert torch.equal(base, base_there)
        torch.testing.assert_close(value, value_there, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, base)
