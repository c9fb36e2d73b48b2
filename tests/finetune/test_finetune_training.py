from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.finetune.entries import Entry
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.finetune.trainable import trainable_slice
from neuropolis.finetune.training import Recipe, answer_loss, finetune, finetune_full
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import FAMILIES, build, same_bits, some, state
from torch import Tensor


def outside(subject: Subject, entries: tuple[Entry, ...]) -> dict[str, Tensor]:
    """A subject's state with the slice's entries blanked."""
    kept = [entry.read() for entry in entries]
    for entry in entries:
        entry.write(torch.zeros(entry.shape))
    blank = state(subject)
    for entry, values in zip(entries, kept, strict=True):
        entry.write(values)
    return blank


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_outside_the_slice_moves(family: str, dtype: torch.dtype, corpus: Corpus) -> None:
    """After AdamW steps with weight decay and clipping, in the subject and in what the delta makes of it."""
    subject = build(family, dtype)
    neurons = some(subject)
    entries = slice_entries(slice_parts(subject, neurons))
    before, rest = state(subject), outside(subject, entries)
    delta = finetune(subject, corpus, neurons, lr=0.05, steps=5, weight_decay=0.3, clip=0.5)
    assert same_bits(state(subject), before)
    with delta.applied(subject):
        assert same_bits(outside(subject, entries), rest)
        assert not any(torch.equal(entry.read(), before_entry) for entry, before_entry in zip(
            entries, (delta.base[entry.key] for entry in entries), strict=True
        ))  # fmt: skip
    assert same_bits(state(subject), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_those_of_masked_full_training(family: str, corpus: Corpus) -> None:
    """Plain SGD on the slice and on full weights whose gradient is zeroed outside of it."""
    subject, reference = build(family, torch.float64), build(family, torch.float64)
    neurons = some(subject)
    encoded = encode_corpus(subject, corpus)
    batch = collate(encoded, list(range(len(encoded))))
    with trainable_slice(subject, neurons) as trainable:
        optimizer = torch.optim.SGD(trainable.masters, lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            answer_loss(subject, batch).backward()
            optimizer.step()
        values = trainable.values()
    masks = {name: torch.zeros_like(p) for name, p in reference.model.named_parameters()}
    for part in slice_parts(reference, neurons):
        module: Any = part.module
        stored = {"weight": masks[f"{part.path}.weight"]}
        out_in = stored["weight"].T if type(module).__name__ == "Conv1D" else stored["weight"]
        if part.rows is not None:
            out_in[part.rows] = 1
            if module.bias is not None:
                masks[f"{part.path}.bias"][part.rows] = 1
        else:
            out_in[:, part.columns] = 1
    plain = torch.optim.SGD(reference.model.parameters(), lr=0.5)
    for _ in range(4):
        plain.zero_grad()
        answer_loss(reference, batch).backward()
        for name, parameter in reference.model.named_parameters():
            assert parameter.grad is not None
            parameter.grad *= masks[name]
        plain.step()
    for entry in slice_entries(slice_parts(reference, neurons)):
        assert torch.allclose(entry.read(), values[entry.key], atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tuning_learns(dtype: torch.dtype, corpus: Corpus) -> None:
    subject = build("llama", dtype)
    before = state(subject)
    neurons = ~NeuronSet.from_indices(subject, indices={})
    encoded = encode_corpus(subject, corpus)
    batch = collate(encoded, list(range(len(encoded))))
    start = answer_loss(subject, batch).item()
    for delta in (
        finetune(subject, corpus, neurons, lr=0.03, steps=40),
        finetune_full(subject, corpus, lr=0.01, steps=40),
    ):
        with delta.applied(subject):
            assert answer_loss(subject, batch).item() < 0.5 * start
        assert delta.history[-1] < 0.5 * delta.history[0]
        assert same_bits(state(subject), before)
    assert delta.neurons is None
    assert delta.num_parameters == subject.num_parameters


def test_full_tuning_is_plain_adamw(corpus: Corpus) -> None:
    subject, reference = build("llama"), build("llama")
    train = corpus.only(split="train")
    delta = finetune_full(
        subject, corpus, lr=0.01, epochs=3, batch_size=len(train), schedule="constant", warmup=0.0, weight_decay=0.1
    )
    encoded = encode_corpus(reference, train)
    optimizer = torch.optim.AdamW(reference.model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        answer_loss(reference, collate(encoded, list(range(len(encoded))))).backward()
        torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)
        optimizer.step()
    for name, parameter in reference.model.named_parameters():
        assert torch.allclose(delta.values[name], parameter, atol=1e-5)


def test_loss_is_the_mean_over_answer_tokens(corpus: Corpus) -> None:
    subject = build("gpt2")
    total, tokens = 0.0, 0
    for example in corpus:
        prompt = subject.tokenizer(example.prompt).input_ids
        answer = subject.tokenizer(example.answer).input_ids
        with torch.no_grad():
            logits = subject.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        tokens += len(answer)
    encoded = encode_corpus(subject, corpus)
    assert tokens == len(corpus) + 2
    with torch.no_grad():
        loss = answer_loss(subject, collate(encoded, list(range(len(encoded)))))
    assert loss.item() == pytest.approx(total / tokens, rel=1e-5)


def test_seed_alone_decides_and_the_global_rng_is_untouched(corpus: Corpus) -> None:
    subject = build("gpt2")
    subject.model.train()
    neurons = some(subject)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = finetune(subject, corpus, neurons, lr=0.01, steps=4, batch_size=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same = finetune(subject, corpus, neurons, lr=0.01, steps=4, batch_size=2, seed=5)
    other = finetune(subject, corpus, neurons, lr=0.01, steps=4, batch_size=2, seed=6)
    assert same_bits(dict(one.values), dict(same.values))
    assert one.history == same.history
    assert not same_bits(dict(one.values), dict(other.values))


def test_auto_split_trains_on_train(corpus: Corpus) -> None:
    subject = build("llama")
    neurons = some(subject)
    auto = finetune(subject, corpus, neurons, steps=2)
    train = finetune(subject, corpus.only(split="train"), neurons, steps=2, split=None)
    every = finetune(subject, corpus, neurons, steps=2, split=None)
    assert auto.history == train.history
    assert (auto.origin["num_examples"], every.origin["num_examples"]) == (6, 12)
    untagged = Corpus(tuple(Example(e.id, e.group, e.prompt, e.answer) for e in corpus))
    assert finetune(subject, untagged, neurons, steps=2).origin["num_examples"] == 12
    with pytest.raises(CorpusError, match="no example with split='train'"):
        finetune(subject, corpus.only(split="test"), neurons, steps=2)


def test_progress_counts_steps(corpus: Corpus) -> None:
    subject = build("llama")
    seen: list[tuple[int, int]] = []
    finetune(subject, corpus, some(subject), epochs=2, batch_size=4, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_divergence_is_named_and_undone(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    neurons = some(subject)
    with pytest.raises(TuneError, match=r"diverged: the loss is nan at step \d+ of 50 \(lr 1e\+30\).*untouched"):
        finetune(subject, corpus, neurons, lr=1e30, steps=50, warmup=0.0)
    assert same_bits(state(subject), before)
    subject.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(TuneError, match="before anything was trained"):
        finetune(subject, corpus, neurons, steps=5)
    half = build("llama", torch.float16)  # which a float32 master can leave in a single step
    with pytest.raises(TuneError, match="rows is not finite after step 1, the last"):
        finetune(half, corpus, some(half), lr=1e6, steps=1, warmup=0.0)


def test_what_cannot_be_trained_is_refused(corpus: Corpus) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match="has none of the 48 mlp neurons"):
        finetune(subject, corpus, NeuronSet.from_indices(subject, indices={}))
    with pytest.raises(SetError, match="belongs to subject"):
        finetune(subject, corpus, some(build("gpt2")))
    with pytest.raises(CorpusError, match="is empty"):
        Corpus(())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"lr": 1.0, "steps": 0}, "steps must be above 0"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay must lie between 0 and 1e\\+06, got -0.1"),
        ({"lr": 1e40}, "lr must lie between 0 and 1e\\+30, got 1e\\+40"),
        ({"lr": 1.0, "weight_decay": 1e40}, "weight_decay must lie between"),
        ({"lr": 1.0, "warmup": 2.0}, "expected 0 to 1, got 2.0"),
        ({"lr": 1.0, "schedule": "linear"}, "schedules are cosine, constant"),
    ],
)
def test_recipe_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TuneError, match=message):
        Recipe(**settings)


def test_rates_by_hand() -> None:
    cosine = Recipe(lr=8.0, warmup=0.5)
    assert [cosine.rate(step, 8) for step in range(8)] == pytest.approx([2, 4, 6, 8, 8, 6.828427, 4, 1.171573])
    constant = Recipe(lr=8.0, warmup=0.25, schedule="constant")
    assert [constant.rate(step, 8) for step in range(8)] == [4.0] + [8.0] * 7
    assert (Recipe(lr=1.0, batch_size=4).num_steps(9), Recipe(lr=1.0, steps=7).num_steps(9)) == (9, 7)
