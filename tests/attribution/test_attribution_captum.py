"""captum in float64 is the oracle: scores of every family and site equal its layer gradient times activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerGradientXActivation
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.encoding import answer_log_probs, collate, encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.subject import Subject

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "phi3", "falcon"]


def captum_scores(subject: Subject, corpus: Corpus, site: str) -> torch.Tensor:
    """Signed scores [example, layer, neuron], one example at a time, with full logits: no code of the engine's."""
    place = subject.site(site)
    modules: Any = [tap.module for tap in place.taps]
    rows = []
    for one in encode_corpus(subject, corpus):
        batch = collate([one], [0])

        def loss(ids: torch.Tensor, targets: torch.Tensor = batch.targets) -> torch.Tensor:
            logits = subject.model(input_ids=ids, use_cache=False).logits
            return -answer_log_probs(logits[:, -targets.shape[1] :], targets).sum(dim=1)

        oracle = LayerGradientXActivation(loss, modules, multiply_by_inputs=True)
        parts = oracle.attribute(batch.input_ids, attribute_to_layer_input=place.taps[0].side == "in")
        per_layer = []
        for part, tap in zip(parts, place.taps, strict=True):
            tensor = part[0] if isinstance(part, tuple) else part
            summed = tensor.reshape(-1, tensor.shape[-1]).sum(dim=0)
            per_layer.append(summed if tap.channels is None else summed[tap.channels])
        rows.append(-torch.stack(per_layer))
    return torch.stack(rows).detach()


def by_group(scores: torch.Tensor, corpus: Corpus) -> torch.Tensor:
    return torch.stack([scores[[e.group == g for e in corpus]].mean(dim=0) for g in corpus.groups])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_captum_in_float64(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family, torch.float64)
    oracle = captum_scores(subject, corpus, "mlp")
    scores = attribute(subject, corpus)
    assert scores.values.dtype == torch.float64
    assert oracle.abs().max() > 1e-3
    torch.testing.assert_close(scores.signed, by_group(oracle, corpus), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.values, by_group(oracle.abs(), corpus), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.squares, by_group(oracle.square(), corpus), rtol=0, atol=1e-9)


@pytest.mark.parametrize("site", ["gate", "up", "mlp_out", "q", "k", "v", "attn", "attn_out"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_every_site_equals_captum(make_subject: Any, corpus: Corpus, family: str, site: str) -> None:
    if site == "gate" and family in ("gpt2", "gpt_neox"):
        pytest.skip("no gate in this family")
    subject = make_subject(family, torch.float64)
    scores = attribute(subject, corpus, site=site)
    torch.testing.assert_close(scores.signed, by_group(captum_scores(subject, corpus, site), corpus), rtol=0, atol=1e-9)
