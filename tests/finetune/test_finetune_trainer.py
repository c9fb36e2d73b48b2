"""`transformers.Trainer` on a slice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from neuropolis.attribution.encoding import encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.finetune.trainer import Prepared, prepared
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from safetensors.torch import load_file
from test_finetune_training import outside
from tiny_families import FAMILIES, build, same_bits, some, state

# renamed in transformers 5
AGAIN = "activation_checkpointing" if hasattr(transformers.TrainingArguments, "activation_checkpointing") else (
    "gradient_checkpointing"
)  # fmt: skip


def rows(subject: Subject, corpus: Corpus) -> list[dict[str, list[int]]]:
    """What a Trainer's data set gives: token ids and labels of one length, the prompt's labels left out."""
    found = []
    for example in encode_corpus(subject, corpus):
        labels = [-100] * example.start + list(example.answer)
        pad = 8 - len(labels)
        found.append({"input_ids": [*example.ids, *[0] * pad], "labels": labels + [-100] * pad})
    return found


def arguments(folder: Path, **given: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.05,
            "weight_decay": 0.2, "max_grad_norm": 0.5, "report_to": "none", "use_cpu": True, "save_strategy": "no",
            "disable_tqdm": True, "logging_strategy": "no", "lr_scheduler_type": "constant", **given,
        }
    )  # fmt: skip


def trained(subject: Subject, corpus: Corpus, folder: Path, *, dropout: bool = False, **given: Any) -> Prepared:
    with prepared(subject, some(subject), dropout=dropout) as model:
        data: Any = rows(subject, corpus)
        transformers.Trainer(model, arguments(folder, **given), train_dataset=data).train()
    return model


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "given",
    [{}, {"bf16": True}, {"gradient_accumulation_steps": 3, AGAIN: True}, {"optim": "sgd", "bf16": True, AGAIN: True}],
    ids=["plain", "bf16", "accumulated", "everything"],
)
def test_trainer_moves_the_slice_and_nothing_else(
    family: str, given: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    subject = build(family)
    entries = slice_entries(slice_parts(subject, some(subject)))
    before, rest = state(subject), outside(subject, entries)
    flags = [(module.training, vars(module).get("gradient_checkpointing")) for module in subject.model.modules()]
    model = trained(subject, corpus, tmp_path, **given)
    delta = model.delta(history=[2.0], origin={"by": "Trainer"})
    assert same_bits(state(subject), before)
    assert [(m.training, vars(m).get("gradient_checkpointing") or f[1]) for m, f in zip(
        subject.model.modules(), flags, strict=True
    )] == flags  # fmt: skip
    assert not any(parameter.grad is not None for parameter in subject.model.parameters())
    with delta.applied(subject):
        assert same_bits(outside(subject, entries), rest)
    assert not any(torch.equal(delta.values[key], delta.base[key]) for key in delta.values)
    assert (delta.history, delta.origin["by"]) == ((2.0,), "Trainer")


def values_of(delta: Delta) -> torch.Tensor:
    return torch.cat([values.flatten() for values in delta.values.values()])


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_train_the_same(family: str, corpus: Corpus, tmp_path: Path) -> None:
    subject = build(family)
    plain = values_of(trained(subject, corpus, tmp_path).delta())
    again = values_of(trained(subject, corpus, tmp_path, **{AGAIN: True}).delta())
    assert torch.allclose(plain, again, atol=1e-6)


def test_layers_are_indeed_computed_again(corpus: Corpus) -> None:
    subject = build("llama")
    ids = torch.arange(3, 9)[None]
    with prepared(subject, some(subject)) as model:
        model.activation_checkpointing_enable()
        model.train()
        calls: list[int] = []
        handle = subject.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        model(input_ids=ids, labels=ids).loss.backward()
        assert len(calls) == 2
        model.eval()
        model(input_ids=ids)
        assert len(calls) == 3
        handle.remove()
        with pytest.raises(TuneError, match="need use_reentrant=False"):
            model.activation_checkpointing_enable({"use_reentrant": True})
    assert not any(getattr(module, "gradient_checkpointing", False) for module in subject.model.modules())


def test_accumulated_steps_are_those_of_a_large_batch(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama", torch.float64)
    large = trained(subject, corpus, tmp_path, per_device_train_batch_size=12, max_steps=3).delta()
    parts = trained(
        subject, corpus, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=3
    ).delta()
    assert torch.allclose(values_of(large), values_of(parts), atol=1e-8)


def test_trainer_is_plain_adamw_on_the_slice(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama", torch.float64)
    given = {"per_device_train_batch_size": 12, "max_steps": 3, "weight_decay": 0.0}
    delta = trained(subject, corpus, tmp_path, **given).delta()
    with prepared(subject, some(subject)) as model:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
        batch = {name: torch.tensor([row[name] for row in rows(subject, corpus)]) for name in ("input_ids", "labels")}
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert torch.allclose(values_of(delta), values_of(model.delta()), atol=1e-6)


def test_parameters_are_the_masters(corpus: Corpus) -> None:
    subject = build("gpt2")
    with prepared(subject, some(subject)) as model:
        assert sum(p.numel() for p in model.parameters()) == model.delta().num_parameters
        assert [name.replace("/", ".") for name, _ in model.named_parameters()] == list(model.delta().values)
        assert all(p.requires_grad for p in model.parameters())
        assert not any(p.requires_grad for p in subject.model.parameters())
        assert (model.config, model.device) == (subject.model.config, subject.device)


def test_dropout_is_off_unless_asked_for(corpus: Corpus) -> None:
    subject = build("gpt2")  # its dropout is 0.1
    ids = torch.arange(3, 9)[None]
    for dropout in (False, True):
        with prepared(subject, some(subject), dropout=dropout) as model:
            model.train()
            one, other = (model(input_ids=ids).logits for _ in range(2))
            assert torch.equal(one, other) != dropout
            model.eval()
            one, other = (model(input_ids=ids).logits for _ in range(2))
            assert torch.equal(one, other)
            model.train()
        assert not any(module.training for module in subject.model.modules())


def test_saved_state_is_the_slice_and_trainer_resumes_from_it(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    given: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "linear"}
    whole = trained(subject, corpus, tmp_path / "run", **given).delta()
    saved = load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors")
    assert same_bits({key.replace("/", "."): tensor for key, tensor in saved.items()}, dict(whole.values))
    with prepared(subject, some(subject)) as model:
        data: Any = rows(subject, corpus)
        trainer = transformers.Trainer(model, arguments(tmp_path / "run", **given), train_dataset=data)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert same_bits(dict(model.delta().values), dict(whole.values))


def test_evaluation_and_an_exception_inside(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    before = state(subject)

    def interrupted() -> None:
        with prepared(subject, some(subject)) as model:
            data: Any = rows(subject, corpus)
            trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data)
            start = trainer.evaluate()["eval_loss"]
            trainer.train()
            assert trainer.evaluate()["eval_loss"] < start
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same_bits(state(subject), before)
    with pytest.raises(TuneError, match="has none of the 48"), prepared(
        subject, NeuronSet.from_indices(subject, indices={})
    ):  # fmt: skip
        pass
