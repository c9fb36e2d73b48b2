"""Every method on a subject whose weights are on disk: the scores of the model in memory, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.methods import METHODS
from neuropolis.attribution.stability import stability
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.subject import Subject, load_model

OPTIONS: dict[str, dict[str, Any]] = {
    "ig": {"steps": 2}, "conductance": {"steps": 2}, "smoothgrad": {"samples": 2}, "exact": {"sample": 4}
}  # fmt: skip
Pair = tuple[Subject, Subject]


@pytest.fixture
def pair(make_subject: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    """One model in memory and away from it."""
    subject = make_subject(getattr(request, "param", "llama"))
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    away = load_model(tmp_path / "model", offload="disk")
    assert away.offloaded
    return load_model(tmp_path / "model"), away


@pytest.mark.parametrize("pair", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_scores_of_an_offloaded_subject(pair: Pair, corpus: Corpus, method: str) -> None:
    asked: Any = {"method": method, "options": OPTIONS.get(method), "max_tokens": 200, "keep_rows": method != "random"}
    asked["objective"] = METHODS[method].objective or "loss"
    expected, found = (attribute(subject, corpus, **asked) for subject in pair)
    assert torch.equal(found.signed, expected.signed)
    assert torch.equal(found.values, expected.values)
    assert float(expected.values.max()) > 0
    assert all(p.device.type == "meta" for p in pair[1].model.parameters())


def test_relevance_at_every_rule_of_attention(pair: Pair, corpus: Corpus) -> None:
    asked: Any = {"method": "relp", "site": "q", "options": {"attention": "softmax"}}
    expected, found = (attribute(subject, corpus, **asked) for subject in pair)
    assert torch.equal(found.signed, expected.signed)


def test_another_dtype_of_it_is_refused_by_name(pair: Pair, corpus: Corpus) -> None:
    with pytest.raises(SetError, match=r"axis 'dtype' takes a copy of the model in memory, and .* is offloaded"):
        stability(pair[1], corpus, axes=("threshold", "dtype"))
