from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.retention import Retention, _interval, compare_tuning
from neuropolis.neurons.atlas import Atlas, write_atlas
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, some, state
from torch import Tensor


def table(**changed: Any) -> Retention:
    fields: dict[str, Any] = {
        "subject": "0" * 16, "group": "dor", "methods": ("neurons", "full"), "groups": ("aland", "borland", "dor"),
        "trained_groups": ("aland", "borland"), "before": torch.tensor([0.5, 0.75, 0.25]),
        "after": torch.tensor([[1.0, 0.5, 0.75], [0.5, 0.25, 1.0]]), "after_low": torch.zeros(2, 3),
        "after_high": torch.ones(2, 3), "trainable": torch.tensor([10, 200]), "origin": {"seed": 3},
    }  # fmt: skip
    return Retention(**(fields | changed))


def constant(subject: Subject, corpus: Corpus) -> Tensor:
    return torch.tensor([e.tags["item"] == "capital" for e in corpus])


def next_word(subject: Subject, corpus: Corpus) -> Tensor:
    """Whether the first word of the right answer is the model's likeliest."""
    found = []
    for example in corpus:
        ids = torch.tensor([subject.tokenizer(example.prompt).input_ids])
        with torch.no_grad():
            guess = int(subject.model(ids).logits[0, -1].argmax())
        found.append(guess == subject.tokenizer(example.answer).input_ids[0])
    return torch.tensor(found)


def test_gain_and_forgetting_by_hand() -> None:
    assert table().gain.tolist() == [0.5, 0.75]
    assert table().forgetting.tolist() == [-0.125, 0.25]


def test_record_brings_the_table_back(tmp_path: Path) -> None:
    path = write_atlas(tmp_path / "study.h5", [table().to_record()])
    with Atlas(path) as atlas:
        back = atlas.get("retention", "retention")
    assert isinstance(back, Retention)
    for name in ("before", "after", "after_low", "after_high", "trainable"):
        assert torch.equal(getattr(back, name), getattr(table(), name))
    assert (back.group, back.methods, back.groups, back.trained_groups) == (
        "dor", ("neurons", "full"), ("aland", "borland", "dor"), ("aland", "borland"),
    )  # fmt: skip
    assert back.origin == {"seed": 3}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": "cetus"}, "must be among the groups"),
        ({"after_low": torch.zeros(3, 2)}, r"after_low must be \[method, group\] \[2, 3\], got \[3, 2\]"),
        ({"trainable": torch.tensor([1])}, r"trainable \[method\] \[2\]"),
    ],
)
def test_ragged_table_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TuneError, match=message):
        table(**changed)


def test_interval_draws_items_and_not_questions() -> None:
    """Ten questions of one item are one observation: between 0 and 1, not near the middle."""
    two_items = (torch.tensor([10.0, 0.0]), torch.tensor([10.0, 10.0]))
    assert _interval(two_items, resamples=500, seed=0) == (0.0, 1.0)
    twenty_items = (torch.tensor([1.0, 0.0] * 10), torch.ones(20))
    low, high = _interval(twenty_items, resamples=4000, seed=0)
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 20) ** 0.5, abs=0.04)
    assert high == pytest.approx(0.5 + 1.96 * (0.25 / 20) ** 0.5, abs=0.04)


def test_methods_start_from_the_same_untouched_subject(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    neurons = some(subject)
    found = compare_tuning(
        subject, corpus.only("dor"), corpus.only(["aland", "borland"]), neurons,
        group="dor", accuracy=constant, methods=("neurons", "random", "full"), steps=2,
    )  # fmt: skip
    assert same_bits(state(subject), before)
    assert found.groups == ("aland", "borland", "dor")
    assert found.trained_groups == ("aland", "borland")
    assert found.trainable.tolist() == [7 * (17 + 17 + 16), 7 * (17 + 17 + 16), subject.num_parameters]
    assert found.before.tolist() == [0.5, 0.5, 0.5]
    assert found.gain.tolist() == found.forgetting.tolist() == [0.0, 0.0, 0.0]
    assert found.origin["num_questions"] == {"aland": 2, "borland": 2, "dor": 2}


def test_learning_one_group_is_seen_in_its_gain(corpus: Corpus) -> None:
    subject = build("llama")
    neurons = ~NeuronSet.from_indices(subject, indices={})
    found = compare_tuning(
        subject, corpus, corpus.only(["aland", "borland"]), neurons,
        group="dor", accuracy=next_word, lr=0.03, full_lr=0.01, steps=60, batch_size=2,
    )  # fmt: skip
    start = next_word(subject, corpus.only("dor", split="test")).float().mean()
    assert found.before[2] == start
    assert start < 1
    assert found.after[:, 2].tolist() == [1.0, 1.0]
    assert found.gain.tolist() == [1 - float(start)] * 2


def test_what_cannot_be_compared_is_refused(corpus: Corpus) -> None:
    subject = build("llama")
    arguments = (subject, corpus, corpus.only("aland"), some(subject))
    with pytest.raises(TuneError, match="unknown method 'lora'; methods are neurons, full, random"):
        compare_tuning(*arguments, group="dor", accuracy=constant, methods=("lora",))
    with pytest.raises(TuneError, match="'aland' is among the trained groups"):
        compare_tuning(*arguments, group="aland", accuracy=constant)
    with pytest.raises(TuneError, match=r"accuracy must give bool \[2\] for the examples, got torch.float32 \[1\]"):
        compare_tuning(*arguments, group="dor", accuracy=lambda *_: torch.ones(1))
