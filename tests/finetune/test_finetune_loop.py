"""Accumulation, precision, held-out loss and early stopping."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.attribution.encoding import Encoded, collate, encode_corpus
from neuropolis.corpora.examples import Corpus, CorpusError
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.loop import fit
from neuropolis.finetune.losses import batch_gradient
from neuropolis.finetune.processes import Team, parts
from neuropolis.finetune.recipe import Recipe
from neuropolis.finetune.trainable import trainable_full, trainable_slice
from neuropolis.finetune.training import answer_loss, finetune, finetune_full
from neuropolis.neurons.subject import Subject
from tiny_families import FAMILIES, build, same_bits, some, state


def gradients(
    subject: Subject, encoded: list[Encoded], accumulate: int, team: Team | None = None
) -> list[torch.Tensor]:
    with trainable_slice(subject, some(subject)) as trainable:
        recipe = Recipe(lr=1.0, accumulate=accumulate)
        batch_gradient(subject, encoded, list(range(len(encoded))), recipe, team or Team(), None)
        return [torch.zeros_like(m) if m.grad is None else m.grad.clone() for m in trainable.masters]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("accumulate", [2, 5, 40])
def test_gradient_of_parts_is_that_of_the_whole_batch(family: str, accumulate: int, corpus: Corpus) -> None:
    """Answers of one and of two tokens, so that a mean of the parts' means would be another number."""
    subject = build(family, torch.float64)
    encoded = encode_corpus(subject, corpus)
    assert len({len(example.answer) for example in encoded}) > 1
    with trainable_slice(subject, some(subject)) as trainable:
        answer_loss(subject, collate(encoded, list(range(len(encoded))))).backward()
        whole = [master.grad for master in trainable.masters]
    for one, other in zip(gradients(subject, encoded, accumulate), whole, strict=True):
        assert other is not None
        assert torch.allclose(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_gradients_of_all_processes_add_up(size: int, corpus: Corpus) -> None:
    subject = build("llama", torch.float64)
    encoded = encode_corpus(subject, corpus)
    whole = gradients(subject, encoded, 1)
    shares = [gradients(subject, encoded, 2, Team(rank, size)) for rank in range(size)]
    for place, expected in enumerate(whole):
        assert torch.allclose(sum(share[place] for share in shares), expected, atol=1e-12)  # pyright: ignore[reportArgumentType]


def test_penalty_counts_once_however_the_batch_is_parted(corpus: Corpus) -> None:
    subject = build("llama", torch.float64)
    encoded = encode_corpus(subject, corpus)
    with trainable_slice(subject, some(subject)) as trainable:
        (master, *_) = trainable.masters

        def grad(accumulate: int, penalised: bool, team: Team) -> torch.Tensor:
            master.grad = None
            penalty = (lambda: 7 * master.sum()) if penalised else None
            batch_gradient(subject, encoded, list(range(12)), Recipe(lr=1.0, accumulate=accumulate), team, penalty)
            assert master.grad is not None
            return master.grad.clone()

        for accumulate in (1, 3):
            added = grad(accumulate, True, Team()) - grad(accumulate, False, Team())
            assert torch.allclose(added, torch.full_like(added, 7.0))
        added = sum(grad(1, True, Team(rank, 20)) for rank in range(13, 20))  # processes that have no row of the batch
        assert torch.allclose(added, torch.full_like(master, 7 * 7 / 20))  # pyright: ignore[reportArgumentType]


@given(st.lists(st.integers(), max_size=30), st.integers(1, 40))
def test_parts_are_the_rows_in_order(rows: list[int], number: int) -> None:
    found = parts(rows, number)
    assert len(found) == number
    assert [row for part in found for row in part] == rows
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_accumulated_run_learns_the_same(corpus: Corpus) -> None:
    subject = build("llama")
    one = finetune(subject, corpus, some(subject), lr=0.01, steps=4)
    other = finetune(subject, corpus, some(subject), lr=0.01, steps=4, accumulate=3)
    assert other.history == pytest.approx(one.history, rel=1e-4)
    assert other.origin["recipe"]["accumulate"] == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_multiplies_in_bf16_and_leaves_masters_wide(family: str, corpus: Corpus) -> None:
    subject = build(family)
    before = state(subject)
    plain = finetune(subject, corpus, some(subject), lr=0.03, steps=12, weight_decay=0.1)
    half = finetune(subject, corpus, some(subject), lr=0.03, steps=12, weight_decay=0.1, precision="bf16")
    assert same_bits(state(subject), before)
    assert half.history != plain.history
    assert half.history == pytest.approx(plain.history, rel=0.1)
    assert half.history[-1] < half.history[0]
    for tensor in half.values.values():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())
    full = finetune_full(subject, corpus, lr=0.01, steps=2, precision="bf16")
    assert all(tensor.dtype == torch.float32 for tensor in full.values.values())
    assert same_bits(state(subject), before)


def test_bf16_of_a_narrow_model_is_refused(corpus: Corpus) -> None:
    subject = build("llama", torch.bfloat16)
    with pytest.raises(TuneError, match=r"is for a model in float32, .* is in torch.bfloat16"):
        finetune(subject, corpus, some(subject), precision="bf16")


def test_held_out_loss_is_the_loss_of_the_held_out_rows(corpus: Corpus) -> None:
    subject = build("llama")
    test = encode_corpus(subject, corpus.only(split="test"))
    batch = collate(test, list(range(len(test))))
    delta = finetune(subject, corpus, some(subject), lr=0.03, steps=5, batch_size=4, eval_split="test")
    told = delta.origin["held_out"]
    assert [step for step, _ in told["losses"]] == [0, 2, 4, 5]
    assert told["num_examples"] == 6
    assert told["losses"][0][1] == pytest.approx(answer_loss(subject, batch).item(), rel=1e-5)
    with delta.applied(subject):
        assert told["losses"][-1][1] == pytest.approx(answer_loss(subject, batch).item(), rel=1e-5)
    unheard = finetune(subject, corpus, some(subject), lr=0.03, steps=5, batch_size=4)
    assert same_bits(dict(delta.values), dict(unheard.values))
    assert "held_out" not in unheard.origin


def run(subject: Subject, corpus: Corpus, trainable: Any, **settings: Any) -> Any:
    encoded = encode_corpus(subject, corpus.only(split="train"))
    wrong = [Encoded((*example.ids[:-1], 7), example.start) for example in encoded]  # held out: another answer
    return fit(subject, encoded, trainable, Recipe(**{"lr": 0.05, "steps": 30, **settings}), held_out=wrong)


def test_early_stopping_keeps_the_best(corpus: Corpus) -> None:
    """Held-out answers that training makes less likely: the loss falls at first at most, then rises."""
    subject = build("llama")
    steady = {"eval_every": 1, "schedule": "constant", "warmup": 0.0, "lr": 0.003}
    with trainable_full(subject) as trainable:
        done = run(subject, corpus, trainable, patience=4, **steady)
        kept = trainable.values()
    losses = [loss for _, loss in done.evals]
    assert 0 < done.best_step == losses.index(min(losses))
    assert done.step == done.best_step + 4 < 30
    with trainable_full(subject) as trainable:
        run(subject, corpus, trainable, **{**steady, "steps": done.best_step})
        again = trainable.values()
    assert same_bits(kept, again)


def test_patience_without_held_out_rows_is_refused(corpus: Corpus) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match="patience needs held-out examples; name them with eval_split"):
        finetune(subject, corpus, some(subject), patience=2)
    with pytest.raises(TuneError, match="share 6 examples, such as 'aland-capital-test'"):
        finetune(subject, corpus, some(subject), split=None, eval_split="test")
    with pytest.raises(CorpusError, match="no example with split='dev'; values are test, train"):
        finetune(subject, corpus, some(subject), eval_split="dev")


def test_no_rows_and_unknown_arguments_are_refused(corpus: Corpus) -> None:
    subject = build("llama")
    with (
        trainable_slice(subject, some(subject)) as trainable,
        pytest.raises(TuneError, match="no examples to train on"),
    ):
        fit(subject, [], trainable, Recipe(lr=1.0, steps=3))
    with pytest.raises(TypeError, match="unexpected argument 'stepz'; arguments are lr, steps, "):
        finetune(subject, corpus, some(subject), stepz=3)  # pyright: ignore[reportCallIssue]


def test_held_out_divergence_is_named(corpus: Corpus) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match=r"the held-out loss is (nan|inf) after step 1 of 50 \(lr 1e\+30\)"):
        finetune(subject, corpus, some(subject), lr=1e30, steps=50, warmup=0.0, eval_split="test", eval_every=1)
    assert math.isfinite(answer_loss(subject, collate(encode_corpus(subject, corpus), range(12))).item())
