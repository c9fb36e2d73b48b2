"""Exported checkpoints say what an intervention says, and the subject does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.neurons.edits import export_silenced
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.tensor([[5, 9, 14, 3, 22, 7]])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def neurons_of(subject: Subject, site: str) -> NeuronSet:
    return NeuronSet.from_indices(subject, site=site, indices={0: [0, 3, 5], 2: [7]})


@pytest.mark.parametrize("factor", [0.0, 2.5])
@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("llama", "mlp"),
        ("llama", "mlp_out"),
        ("gpt2", "mlp"),
        ("gpt2", "attn"),
        ("gpt2", "v"),
        ("phi3", "gate"),
        ("phi3", "k"),
        ("gpt_neox", "q"),
        ("opt", "up"),
    ],
)
def test_an_export_is_the_intervention(
    make_subject: Any, tmp_path: Path, family: str, site: str, factor: float
) -> None:  # fmt: skip
    subject = make_subject(family)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    neurons, plain = neurons_of(subject, site), logits(subject.model)
    with intervene(subject, neurons, kind="scale", factor=factor):
        expected = logits(subject.model)
    folder = export_silenced(subject, neurons, tmp_path / "new" / "model", factor=factor)
    assert (expected - plain).abs().max() > 1e-4
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(folder).eval()), expected, rtol=1e-5, atol=1e-5
    )
    assert AutoTokenizer.from_pretrained(folder)("a b").input_ids == subject.tokenizer("a b").input_ids
    after = subject.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits(subject.model), plain)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_zero_is_the_default(make_subject: Any, tmp_path: Path) -> None:
    subject = make_subject("llama")
    neurons = neurons_of(subject, "mlp")
    export_silenced(subject, neurons, tmp_path)  # an empty folder is taken
    with intervene(subject, neurons, kind="zero"):
        expected = logits(subject.model)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), expected, rtol=1e-5, atol=1e-5
    )


def test_a_failed_export_leaves_nothing(make_subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("llama")
    plain = logits(subject.model)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(type(subject.model), "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        export_silenced(subject, neurons_of(subject, "mlp"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(logits(subject.model), plain)


def test_a_taken_folder_or_a_foreign_set_is_refused(make_subject: Any, tmp_path: Path) -> None:
    subject, other = make_subject("llama"), make_subject("llama", seed=1)
    (tmp_path / "notes").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes"):
        with pytest.raises(SetError, match="exists and is not an empty folder; choose another"):
            export_silenced(subject, neurons_of(subject, "mlp"), taken)
    with pytest.raises(SetError, match="the set belongs to subject"):
        export_silenced(subject, neurons_of(other, "mlp"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
