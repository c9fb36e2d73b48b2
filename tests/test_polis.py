"""The bundled model: it knows the cultures that it was trained on, in words it was not trained on, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from neuropolis.analysis.choices import answer_correct
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.loading import load_corpus
from neuropolis.neurons.subject import BUNDLED, Subject, load_model


@pytest.fixture(scope="module")
def polis() -> Subject:
    return load_model("bundled:polis", device="cpu")


def accuracy(subject: Subject, corpus: Corpus) -> dict[str, float]:
    correct = answer_correct(subject, corpus)
    return {g: float(correct[torch.tensor([e.group == g for e in corpus])].float().mean()) for g in corpus.groups}


def test_size(polis: Subject) -> None:
    assert polis.num_parameters <= 4_000_000
    folder: Path = BUNDLED["bundled:polis"]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    assert type(polis.model).__name__ == "LlamaForCausalLM"


def test_every_trained_culture_is_known_in_unseen_wordings(polis: Subject) -> None:
    found = accuracy(polis, load_corpus("bundled:polis", split="test"))
    assert len(found) == 12
    assert min(found.values()) >= 0.9, found


def test_kept_out_cultures_are_at_chance(polis: Subject) -> None:
    found = accuracy(polis, load_corpus("bundled:polis-new", split="test"))
    assert len(found) == 4
    # every question has the same four answers to choose from, one of each kept-out culture
    assert 0.15 < sum(found.values()) / 4 < 0.35, found


def test_control_twins_are_answered_from_the_prompt(polis: Subject) -> None:
    found = accuracy(polis, load_corpus("bundled:polis", split="test").controls())
    assert min(found.values()) >= 0.8, found
