"""Choices: both ways of scoring agree with each other and with the definition, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from neuropolis.analysis.choices import answer_correct, choice_losses, encode_choices
from neuropolis.analysis.plans import plan_choices
from neuropolis.attribution.encoding import Encoded
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SubjectError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Make = Callable[..., Subject]


@pytest.fixture
def ragged(corpus: Corpus) -> Corpus:
    """Prompts and choices of many lengths, different numbers of choices, single tokens, shared beginnings."""
    odd = [
        Example(id="two", group="north", prompt="x", answer="a", choices=("a", "b"), answer_index=0),
        Example(
            id="long", group="north", prompt="ab cd", answer="yes yes", choices=("no", "yes yes", "y"), answer_index=1
        ),
        Example(id="same", group="south", prompt="why? " * 5, answer="tea", choices=("ten", "tea"), answer_index=1),
    ]
    return Corpus((*corpus.examples, *odd), name="ragged")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2", "opt"])
def test_shared_prompts_change_nothing(make_subject: Make, ragged: Corpus, family: str) -> None:
    subject = make_subject(family)
    shared = encode_choices(subject, ragged, share=True)
    plain = encode_choices(subject, ragged, share=False)
    assert shared.parts
    assert not shared.plain
    assert not plain.parts
    assert encode_choices(subject, ragged).shared
    found, expected = choice_losses(subject, shared), choice_losses(subject, plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("share", [True, False])
def test_interventions_hold_in_both_ways(make_subject: Make, ragged: Corpus, share: bool) -> None:
    subject = make_subject("llama", torch.float64)
    plan = encode_choices(subject, ragged, share=share)
    before = choice_losses(subject, plan)
    half = NeuronSet.from_indices(subject, site="mlp", indices={0: range(24), 2: range(24)})
    with intervene(subject, half):
        found = choice_losses(subject, plan)
    with torch.no_grad():  # the same silence, made in the weights
        for layer in (0, 2):
            subject.model.model.layers[layer].mlp.down_proj.weight[:, :24] = 0
    torch.testing.assert_close(found, choice_losses(subject, plan), equal_nan=True)
    assert not torch.allclose(found, before, equal_nan=True)


def test_loss_is_the_sum_of_token_losses(make_subject: Make, ragged: Corpus) -> None:
    subject = make_subject("llama", torch.float64)
    losses = choice_losses(subject, ragged)
    means = choice_losses(subject, ragged, normalise=True)
    assert losses.shape == (len(ragged), 4)
    for row, example in enumerate(ragged):
        for column, choice in enumerate(example.choices):
            ids = torch.tensor([subject.tokenizer(str(example.prompt) + choice)["input_ids"]])
            with torch.no_grad():
                log_probs = subject.model(ids).logits[0].log_softmax(-1)
            size = len(choice)  # one token a character
            expected = -log_probs[-size - 1 : -1].gather(1, ids[0, -size:, None]).sum()
            torch.testing.assert_close(losses[row, column], expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(means[row, column], expected / size, rtol=0, atol=1e-6)
        assert losses[row, len(example.choices) :].isnan().all()


def test_an_answer_does_not_depend_on_batch_mates(make_subject: Make, ragged: Corpus) -> None:
    subject = make_subject("llama")
    together = choice_losses(subject, ragged)
    right = answer_correct(subject, ragged)
    assert 0 < int(right.sum()) < len(ragged)
    torch.testing.assert_close(choice_losses(subject, ragged, max_tokens=1), together, equal_nan=True)
    turned = replace(ragged, examples=ragged.examples[::-1])
    assert torch.equal(answer_correct(subject, turned).flip(0), right)
    for row, example in enumerate(ragged):
        assert answer_correct(subject, Corpus((example,)))[0] == right[row]


def test_a_tie_is_wrong(planted: Subject) -> None:
    def ask(*choices: str) -> bool:
        example = Example(id="q", group="g", prompt="a", answer="x", choices=("x", *choices), answer_index=0)
        return bool(answer_correct(planted, Corpus((example,)))[0])

    assert ask("y", "z")
    assert not ask("y", "x")


def test_normalising_can_change_the_answer(planted: Subject) -> None:
    # after x nothing is known: every token costs log 64, so that a longer choice is only worse by its sum
    corpus = Corpus((Example(id="q", group="g", prompt="a", answer="xx", choices=("xx", "y"), answer_index=0),))
    sums, means = choice_losses(planted, corpus)[0], choice_losses(planted, corpus, normalise=True)[0]
    torch.testing.assert_close(means, sums / torch.tensor([2.0, 1.0]))


def test_bad_input_is_named(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(CorpusError, match="'free' has 0 choices"):
        choice_losses(subject, Corpus((Example(id="free", group="g", prompt="a", answer="b"),)))
    other = encode_choices(make_subject("llama", seed=1), corpus)
    with pytest.raises(SubjectError, match="encode again"):
        choice_losses(subject, other)
    with torch.no_grad():
        subject.model.lm_head.weight[5] = torch.nan
    with pytest.raises(SubjectError, match="example 'north/0': the loss of choice 0 is nan"):
        answer_correct(subject, corpus)


def test_a_model_without_a_cache_runs_every_choice(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject("llama")
    expected = choice_losses(subject, corpus)
    inner = subject.model.forward

    def forgetful(
        input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, logits_to_keep=0
    ):
        output = inner(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False,
            logits_to_keep=logits_to_keep,
        )  # fmt: skip
        return output

    subject.model.forward = forgetful
    plan = encode_choices(subject, corpus)
    assert not plan.shared
    torch.testing.assert_close(choice_losses(subject, plan), expected)


def test_answers_may_begin_at_different_tokens(make_subject: Make) -> None:
    """As when one choice's first letters melt into the prompt's last token; the second row shares no token at all."""
    subject = make_subject("llama")
    rows = [
        [Encoded((1, 5, 6, 7, 8), 3), Encoded((1, 5, 6, 7, 9), 2), Encoded((1, 5, 6), 2)],
        [Encoded((1, 5, 6), 2), Encoded((2, 5, 6, 7), 2)],
    ]
    asked = [
        Example(id=str(i), group="g", prompt="p", answer="a", choices=("a", "b"), answer_index=0) for i in range(2)
    ]
    found = {
        shared: plan_choices(subject, Corpus(tuple(asked)), rows, chosen=[0, 1], shared=shared, max_tokens=99)
        for shared in (True, False)
    }
    assert found[True].parts
    assert found[True].plain  # the second row
    torch.testing.assert_close(
        choice_losses(subject, found[True]), choice_losses(subject, found[False]), rtol=0, atol=1e-5, equal_nan=True
    )
