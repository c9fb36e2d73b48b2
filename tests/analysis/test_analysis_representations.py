"""Representations and redundancy: by hand on planted activations, CKA against its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from neuropolis.analysis.redundancy import _predicted, redundancy, redundancy_from_record
from neuropolis.analysis.representations import (
    last_states,
    linear_cka,
    representations,
    representations_from_record,
)
from neuropolis.corpora.examples import Corpus, CorpusError
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Make = Callable[..., Subject]


@pytest.fixture
def parallel(corpus: Corpus) -> Corpus:
    """Item i of every group says the same; six items."""
    examples = [
        replace(e, id=f"{e.id}{form}", prompt=f"{form} {e.prompt}", tags={"item": f"{e.id.split('/')[1]}{form}"})
        for e in corpus
        for form in ("so", "well")
    ]
    return Corpus(tuple(examples), name="parallel")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_last_states_are_the_models_own(make_subject: Make, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    example = corpus[5]
    text = subject.tokenizer(str(example.prompt) + example.answer)["input_ids"]
    prompt = subject.tokenizer(str(example.prompt))["input_ids"]
    for at, ids in (("text", text), ("prompt", prompt)):
        found = last_states(subject, corpus, at=at, max_tokens=100)[5]  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            hidden = subject.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert found.shape == (4, 32)
        for state in range(3):  # transformers puts the final norm on the last
            torch.testing.assert_close(found[state], hidden[state][0, -1], rtol=1e-4, atol=1e-4)


def test_cosines_of_mean_states(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject("llama")
    found = representations(subject, corpus, bootstraps=50)
    states = last_states(subject, corpus)
    first, second = states[:4].mean(dim=0), states[4:8].mean(dim=0)
    torch.testing.assert_close(found.cosine[0, 1], torch.cosine_similarity(first, second, dim=1))
    torch.testing.assert_close(found.cosine.diagonal().T, torch.ones(4, 3).T)
    assert bool((found.cosine_low <= found.cosine_high).all())
    assert bool(found.cka[0, 1].isnan().all())  # no item is in two groups
    assert found.matched[0, 1] == 0
    centred = representations(subject, corpus, bootstraps=0, center=True).cosine[0, 1]
    mean = torch.stack([first, second, states[8:].mean(dim=0)]).mean(dim=0)
    torch.testing.assert_close(centred, torch.cosine_similarity(first - mean, second - mean, dim=1))


def test_cka_of_parallel_texts(make_subject: Make, parallel: Corpus) -> None:
    subject = make_subject("llama")
    found = representations(subject, parallel, draws=40)
    assert found.matched.tolist() == [[8] * 3] * 3
    states = last_states(subject, parallel)
    value, _ = linear_cka(states[:8, 2], states[8:16, 2])
    assert found.cka[0, 1, 2].item() == pytest.approx(value, rel=1e-4)
    assert 1 / 41 <= found.cka_p[0, 1, 2] <= 1
    back = representations_from_record(found.to_record())
    torch.testing.assert_close(back.cka, found.cka, equal_nan=True)


def test_cka_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 5))

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        """Song et al. 2012, eq. 5, on centred states."""
        k, m = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))
        np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)
        n, one = len(k), np.ones(len(k))
        trace, sums, cross = np.trace(k @ m), one @ k @ one * (one @ m @ one), one @ k @ m @ one
        return (trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross) / (n * (n - 3))

    value, null = linear_cka(torch.tensor(a), torch.tensor(b), draws=300)
    assert value == pytest.approx(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))
    assert np.mean(null) == pytest.approx(0, abs=4 * np.std(null) / np.sqrt(300))
    turned = torch.tensor(a) @ torch.linalg.qr(torch.tensor(rng.normal(size=(3, 3)))).Q * 7
    assert linear_cka(torch.tensor(a), turned)[0] == pytest.approx(1)  # a rotation and a scale change nothing
    assert np.isnan(linear_cka(torch.tensor(a), torch.ones(6, 2))[0])


def test_one_group_is_refused(make_subject: Make, corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="group 'north' alone; similarity needs two or more"):
        representations(make_subject("llama"), corpus.only("north"))
    with pytest.raises(SetError, match="unknown place 'end'"):
        representations(make_subject("llama"), corpus, at="end")  # pyright: ignore[reportArgumentType]


def test_neurons_that_others_make_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    free = torch.randn((4000, 6), generator=generator)
    made = torch.stack([
        2 * free[:, 0] + 3, free[:, 1] - free[:, 2], torch.zeros(4000), 0.6 * free[:, 3] + 0.8 * free[:, 4],
    ], dim=1)  # fmt: skip
    all_of = torch.cat([free, made], dim=1)
    correlation, partner, r2 = _predicted(all_of[:2000], all_of[2000:], 8, 1e-6)
    assert partner[6] == 0
    assert partner[0] == 6
    assert correlation[6].item() == pytest.approx(1, abs=1e-4)
    assert r2[[0, 1, 2, 6, 7, 9]].tolist() == pytest.approx([1] * 6, abs=1e-3)
    assert abs(r2[5]) < 0.02  # nothing else knows of it
    assert bool(r2[8].isnan())
    assert bool(correlation[8].isnan())
    # the share of variance that a single partner explains
    assert _predicted(all_of[:2000], all_of[2000:], 1, 1e-6)[2][9].item() == pytest.approx(0.64, abs=0.05)


def test_redundancy_of_sets(planted: Subject, questions: Corpus) -> None:
    sets = {"a": NeuronSet.from_indices(planted, indices={1: [0, 7]})}
    found = redundancy(planted, questions, sets, predictors=2, controls=4, split=None)
    assert found.r2.shape == (2, 8)
    assert bool(found.r2[0].isnan().all())  # layer 0 is silent
    assert found.r2[1, 0] < 0.9  # its letter is no other neuron's
    assert found.shares.tolist() == [0]
    assert found.control_shares.shape == (1, 4)
    back = redundancy_from_record(found.to_record())
    torch.testing.assert_close(back.r2, found.r2, equal_nan=True)
    assert back.threshold == 0.9
    again = redundancy(planted, questions, predictors=2, split=None)
    torch.testing.assert_close(again.r2, found.r2, equal_nan=True)
    with pytest.raises(SetError, match="expected 1 to 7"):
        redundancy(planted, questions, predictors=8)
    for share in (2, 0):
        with pytest.raises(SetError, match=f"threshold is {share}; expected a share of variance"):
            redundancy(planted, questions, threshold=share, predictors=2)
    few = Corpus((questions.examples[0], questions.examples[2]), name="few")
    with pytest.raises(CorpusError, match="'few' has 4 and 5 tokens in its two halves; 3 predictors need 6 or more"):
        redundancy(planted, few, predictors=3, split=None)
    with pytest.raises(SetError, match="the sets are of site 'mlp'"):
        redundancy(planted, questions, sets, site="attn", predictors=2)
    with pytest.raises(CorpusError, match="has one item"):
        redundancy(planted, Corpus(questions.examples[:1]), predictors=2, split=None)
    with pytest.raises(SiteError, match="site 'expert'"):
        redundancy(planted, questions, site="expert")
