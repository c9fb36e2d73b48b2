"""A search of rates: every method's own runs, the same number for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.continual import continual
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.location import Location
from neuropolis.finetune.rates import Rates, search_rates
from neuropolis.finetune.streams import tasks_of
from neuropolis.neurons.subject import Subject
from tiny_families import build


def likely(subject: Subject, corpus: Corpus) -> torch.Tensor:
    """Whether the answer's first token is likelier than one in five."""
    found = []
    for one in corpus:
        ids = torch.tensor([subject.tokenizer(one.prompt).input_ids])
        with torch.no_grad():
            chances = subject.model(ids).logits[0, -1].softmax(dim=-1)
        found.append(bool(chances[subject.tokenizer(one.answer).input_ids[0]] > 0.2))
    return torch.tensor(found)


def test_a_search_is_a_run_at_every_rate(corpus: Corpus, tmp_path: Path) -> None:
    subject, tasks = build("llama"), tasks_of(corpus)
    common = {
        "accuracy": likely, "seeds": (0, 1), "steps": 5, "batch_size": 2, "location": Location(top=12, layers=(1,)),
        "options": {"guarded": {"share": 0.5}},
    }  # fmt: skip
    found = search_rates(
        subject, tasks, rates={"full": (1e-4, 1e-2), "guarded": (1e-3, 1e-1)}, state=tmp_path / "state", **common
    )
    assert {name: list(row) for name, row in found.average.items()} == {"full": [1e-4, 1e-2], "guarded": [1e-3, 1e-1]}
    alone = continual(subject, tasks, methods=("guarded",), lrs={"guarded": 1e-1}, **common)
    assert found.average["guarded"][1e-1] == pytest.approx(float(alone.metric("average_accuracy").mean()))
    assert found.forgotten["guarded"][1e-1] == pytest.approx(float(alone.metric("forgetting").mean()))
    assert len(set(found.average["full"].values())) > 1


def test_the_best_is_the_highest_and_of_equals_the_lowest() -> None:
    found = Rates({"full": {1e-3: 0.5, 1e-4: 0.5, 1e-5: 0.2}, "lora": {1e-3: 0.1, 1e-2: 0.3}}, {})
    assert found.best == {"full": 1e-4, "lora": 1e-2}


def test_the_effort_is_the_same() -> None:
    with pytest.raises(TuneError, match="the same number of different rates, got full 2, lora 1"):
        search_rates(build("llama"), (), rates={"full": (1e-4, 1e-3), "lora": (1e-3,)})
    with pytest.raises(TuneError, match="the same number of different rates, got full 2, lora 2"):
        search_rates(build("llama"), (), rates={"full": (1e-4, 1e-4), "lora": (1e-3, 1e-4)})
