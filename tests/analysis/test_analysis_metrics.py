"""Metrics: values worked out by hand, and the same as the losses of choices where they must be."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from neuropolis.analysis.ablate import ablate
from neuropolis.analysis.choices import choice_losses
from neuropolis.analysis.effects import Effects, effects_from_record
from neuropolis.analysis.metrics import METRICS, Asking, Metric, metric_named
from neuropolis.analysis.texts import Words, chrf, exact_match, rouge_l
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SetError, SubjectError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Sets = dict[str, NeuronSet]


def values(subject: Subject, corpus: Corpus, metric: str, **asking: Any) -> torch.Tensor:
    return METRICS[metric].prepare(subject, corpus, Asking(**asking))()


def test_metrics_of_the_answer_agree_with_the_losses_of_choices(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    losses = choice_losses(subject, corpus).double()
    right = torch.tensor([example.answer_index for example in corpus])[:, None]
    own = losses.gather(1, right).squeeze(1)
    lengths = torch.tensor([len(example.answer) for example in corpus])  # a token a letter
    close = {"rtol": 1e-4, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(values(subject, corpus, "loss"), own / lengths, **close)
    torch.testing.assert_close(values(subject, corpus, "probability"), (-own).exp(), **close)
    shares = (-losses).exp() / (-losses).exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(values(subject, corpus, "choice_share"), shares.gather(1, right).squeeze(1), **close)
    assert values(subject, corpus, "accuracy").tolist() == (losses.argmin(dim=1) == right.squeeze(1)).tolist()
    by_token = losses / torch.tensor([[len(choice) for choice in example.choices] for example in corpus])
    assert values(subject, corpus, "accuracy_normalised").tolist() == (by_token.argmin(dim=1) == right[:, 0]).tolist()


def test_perplexity_of_a_model_that_knows_nothing(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("gpt2")
    with torch.no_grad():
        subject.model.transformer.wte.weight.zero_()  # tied: every token is as likely as the others, 64 of them
    perplexity = values(subject, corpus, "perplexity")
    torch.testing.assert_close(perplexity, torch.full_like(perplexity, 64.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        values(subject, corpus, "loss_all"), torch.full_like(perplexity, math.log(64)), rtol=1e-5, atol=0
    )
    with pytest.raises(SetError, match="on='both'"):
        values(subject, corpus, "perplexity", on="answer")


def test_ablating_by_loss_looks_for_a_rise(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    effects = ablate(planted, questions, planted_sets, controls=3, metric="loss")
    assert bool((effects.effect.diagonal() > 0.01).all())
    assert bool((effects.p_vs_controls.diagonal() == 2.0**-8).all())
    assert [row["specific"] for row in effects.summary()] == [True] * 3
    assert effects.unit == "nats a token"
    again = effects_from_record(effects.to_record())
    assert torch.equal(again.ablated, effects.ablated)
    assert again.sign == -1


def test_what_is_kept_is_expected_to_be_better(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    effects = ablate(planted, questions, planted_sets, controls=3, kind="keep")
    # with its neuron alone a group is answered, with another's not
    assert torch.equal(effects.mean_ablated, torch.eye(3, dtype=torch.float64))
    assert effects.expect == "better"
    assert bool(effects.dominance.diagonal().eq(1).all())
    assert all(row["specific"] for row in effects.summary())


def test_generated_answers_under_an_intervention(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    exact = ablate(planted, questions, planted_sets, controls=0, metric="exact_match", max_new_tokens=1)
    assert exact.mean_base.tolist() == [1, 1, 1]
    assert torch.equal(exact.effect, -torch.eye(3, dtype=torch.float64))
    # the neuron acts where the prompt ends: silenced on the answer alone, the answer's first token is as before
    on_answer = ablate(
        planted, questions, planted_sets, controls=0, metric="exact_match", max_new_tokens=1, on="answer"
    )
    assert not on_answer.effect.any()
    on_prompt = ablate(planted, questions, planted_sets, controls=0, on="prompt")
    assert torch.equal(on_prompt.effect, -torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("metric", ["loss", "accuracy", "choice_share"])
def test_prompt_and_answer_apart(make_subject: Any, corpus: Corpus, metric: str) -> None:
    """Both ways of scoring (prompts shared or not) silence the same positions."""
    subject = make_subject("llama")
    neurons = NeuronSet.from_indices(subject, indices={0: range(40), 2: range(40)})
    found = {}
    for on in ("both", "prompt", "answer"):
        with intervene(subject, neurons, on=on):  # pyright: ignore[reportArgumentType]
            found[on] = values(subject, corpus, "loss", on=on)
            losses = (
                choice_losses(subject, corpus).gather(1, torch.tensor([[e.answer_index] for e in corpus])).squeeze(1)
            )
        lengths = torch.tensor([len(example.answer) for example in corpus])
        torch.testing.assert_close(found[on].float(), losses / lengths, rtol=1e-4, atol=1e-5)
    assert len({tuple(one.tolist()) for one in found.values()}) == 3
    effects = ablate(subject, corpus, {"north": neurons}, on="answer", controls=1, metric=metric)
    assert effects.origin["on"] == "answer"


def test_a_metric_of_ones_own(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    def length(_subject: Subject, corpus: Corpus, _asking: Asking) -> Any:
        return lambda: torch.tensor([float(len(example.prompt)) for example in corpus])

    effects = ablate(
        planted, questions, planted_sets, controls=1, metric=Metric("length", length, "letters", "letters")
    )
    assert (effects.metric, effects.unit, effects.scale) == ("length", "letters", 1)
    assert not effects.effect.any()
    with pytest.raises(ValueError, match="unknown metric 'accurcy'; metrics are accuracy, "):
        metric_named("accurcy")


def test_twins_are_asked_beside(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    # the twin of a question of a ends in another letter, which a's neuron does not see, but its own group's would
    with_twins = Corpus(
        tuple(
            Example(e.id, e.group, e.prompt, e.answer, e.choices, e.answer_index, f"{e.prompt} y", e.tags)
            for e in questions
        )
    )
    effects = ablate(planted, with_twins, planted_sets, controls=2, twins=True)
    assert effects.twins is not None
    assert torch.equal(effects.effect, -torch.eye(3, dtype=torch.float64))
    assert not effects.twins.effect.any()
    assert effects.p_vs_twins.diagonal().tolist() == [2.0**-8] * 3
    row = effects.summary()[0]
    assert row["twin_effect"] == 0
    assert row["p_twins"] == 3 * 2.0**-8
    again = effects_from_record(effects.to_record())
    assert isinstance(again.twins, Effects)
    assert torch.equal(again.twins.controls, effects.twins.controls)
    assert again.twins.twins is None
    with pytest.raises(CorpusError, match="has no 'control'"):
        ablate(planted, questions, planted_sets, twins=True)


def test_texts_by_hand() -> None:
    assert exact_match(["tea ", "Tea"], ["tea", "tea"]) == [1, 0]
    assert Words().tokenize("El té, 日本語 ist_gut") == ["el", "té", "日", "本", "語", "ist", "gut"]
    assert chrf(["tea", "xyz"], ["tea", "tea"]) == [1, 0]
    pytest.importorskip("rouge_score")
    # one of two words and one of three in common: precision 1/2, recall 1/3
    assert rouge_l(["东 京", "a b"], ["东京", "b c d"]) == [1, pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))]


@pytest.mark.parametrize(
    ("metric", "package"), [("rouge_l", "rouge_score.rouge_scorer"), ("chrf", "sacrebleu.metrics.chrf")]
)
def test_a_missing_library_is_named(
    planted: Subject, questions: Corpus, monkeypatch: pytest.MonkeyPatch, metric: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SubjectError, match=rf"metric '{metric}' needs .*pip install 'neuropolis\[texts\]'"):
        METRICS[metric].prepare(planted, questions, Asking())
