"""Half precision and odd corners of dtypes: what is small stays, what overflows is tried again, padding is no poison."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.attribution import engine
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.subject import Subject


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def weakened(subject: Subject) -> Subject:
    """The same subject whose last norm and output make its logits, and so its gradients, smaller."""
    with torch.no_grad():
        subject.model.model.norm.weight.mul_(2**-14)
        subject.model.lm_head.weight.mul_(2**-5)
    return subject


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_half_precision_agrees_within_its_rounding(
    make_subject: Any, corpus: Corpus, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    half = make_subject(family, dtype)
    whole = make_subject(family)
    whole.model.load_state_dict(half.model.state_dict())  # the same numbers, rounded once
    found, expected = attribute(half, corpus), attribute(whole, corpus)
    assert found.values.dtype == torch.float32
    assert relative(found.signed, expected.signed) < tolerance


def test_small_gradients_do_not_vanish_in_float16(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, whole = weakened(make_subject("llama", torch.float16)), make_subject("llama")
    whole.model.load_state_dict(half.model.state_dict())
    expected = attribute(whole, corpus)
    assert 0 < float(expected.values.max()) < 1e-5
    assert relative(attribute(half, corpus).signed, expected.signed) < 1e-2
    plain = engine._attempt
    monkeypatch.setattr(engine, "_attempt", lambda job, readings, batch, _exponent: plain(job, readings, batch, None))
    unscaled = attribute(half, corpus)
    assert relative(unscaled.signed, expected.signed) > 0.1


def test_an_improbable_answer_keeps_its_gradient(make_subject: Any, corpus: Corpus) -> None:
    half, whole = make_subject("llama", torch.float16), make_subject("llama")
    found, expected = (attribute(s, corpus, objective="probability") for s in (half, whole))
    assert float(expected.values.max()) < 1e-5  # the probability of five characters
    assert relative(found.signed, expected.signed) < 2e-2


def test_what_overflows_is_tried_again_with_smaller_gradients(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, tried = make_subject("llama", torch.float16), []
    expected = attribute(half, corpus)
    plain = engine._attempt
    monkeypatch.setattr(engine, "HALF_EXPONENTS", (24, 8))
    monkeypatch.setattr(
        engine, "_attempt", lambda job, readings, batch, e: (tried.append(e), plain(job, readings, batch, e))[1]
    )
    found = attribute(half, corpus)
    assert tried == [24, 8]
    assert torch.equal(found.signed, expected.signed)


def test_the_scale_is_an_examples_own(make_subject: Any, corpus: Corpus) -> None:
    half = make_subject("llama", torch.float16)
    alone = attribute(half, corpus, max_tokens=1, keep_rows=True).rows
    together = attribute(half, corpus, max_tokens=10_000, keep_rows=True).rows
    assert alone is not None
    assert together is not None
    assert relative(together, alone) < 4e-3


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "opt"])
def test_left_padding_in_float64(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family, torch.float64)
    left = attribute(subject, corpus, padding_side="left")
    torch.testing.assert_close(left.signed, attribute(subject, corpus, max_tokens=1).signed)


def test_nothing_behind_the_answer_is_computed(make_subject: Any, corpus: Corpus) -> None:
    """Neither the last answer token nor what stands behind the longest of a batch enters the model."""
    from neuropolis.attribution.encoding import collate, encode_corpus, plan_batches

    encoded = encode_corpus(make_subject("llama"), corpus)
    for rows in plan_batches(encoded, max_tokens=150):
        chosen = [encoded[row] for row in rows]
        for side in ("left", "right"):
            batch = collate(chosen, rows, padding_side=side)
            assert batch.input_ids.shape[1] == max(len(e.ids) for e in chosen) - 1
            assert batch.targets.shape[1] <= batch.input_ids.shape[1] - min(e.start for e in chosen) + 1
            told = [t[t != -100].tolist() for t in batch.targets]
            assert told == [list(e.answer) for e in chosen]
