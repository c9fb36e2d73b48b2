"""Training, files and comparison of LANDeRMT on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.language_pairs import PairNeurons, pair_neurons
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.finetune.delta_files import load_delta
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.landermt import RoutedDelta, landermt
from neuropolis.finetune.landermt_files import load_routed_delta
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.finetune.training import finetune
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import ANSWERS, FAMILIES, build, same_bits, state

IDS = torch.arange(3, 11)[None]


@pytest.fixture
def corpus() -> Corpus:
    """Two language pairs, as far as a tiny vocabulary goes."""
    rows = [
        Example(f"{pair}/{g}/{k}", pair, f"{k} of {g} is", f" {answer}", tags={"language": "en", "target": pair[-2:]})
        for pair in ("en-es", "en-zh")
        for g, answers in ANSWERS.items()
        for k, answer in zip(["capital", "food"], answers if pair == "en-es" else answers[::-1], strict=True)
    ]
    return Corpus(tuple(rows), "pairs")


def by_hand(subject: Subject) -> PairNeurons:
    general = NeuronSet.from_indices(subject, indices={0: [1, 5], 1: [0, 2]})
    specific = {
        "en-es": NeuronSet.from_indices(subject, indices={1: [3, 9]}),
        "en-zh": NeuronSet.from_indices(subject, indices={0: [4]}),
        "es-zh": NeuronSet.from_indices(subject, indices={}),
    }
    return PairNeurons(general, specific, torch.zeros(general.mask.shape), 0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_slice_and_the_gates_are_trained(family: str, dtype: torch.dtype, corpus: Corpus) -> None:
    subject = build(family, dtype)
    before, plain = state(subject), subject.model(IDS).logits
    neurons = by_hand(subject)
    routed = landermt(subject, corpus.only("en-es"), neurons, lr=0.05, steps=5, weight_decay=0.1)
    assert same_bits(state(subject), before)
    assert torch.equal(subject.model(IDS).logits, plain)
    assert not any(module._forward_pre_hooks for module in subject.model.modules())
    assert routed.delta.neurons == neurons.of("en-es")
    assert routed.gates.roles == ("general", "en-es")
    assert all(not torch.equal(routed.delta.values[key], routed.delta.base[key]) for key in routed.delta.values)
    assert any(bool(tensor.any()) for tensor in routed.gates.tensors().values())
    entries = slice_entries(slice_parts(subject, neurons.of("en-es")))
    with routed.applied(subject):
        assert not torch.equal(subject.model(IDS).logits, plain)
        changed = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
        for entry in entries:  # with the slice's old entries, nothing else differs
            entry.write(routed.delta.base[entry.key])
        assert same_bits(state(subject), before)
        for entry in entries:
            entry.write(routed.delta.values[entry.key])
        assert same_bits(state(subject), changed)
    assert same_bits(state(subject), before)
    assert torch.equal(subject.model(IDS).logits, plain)


def test_the_first_step_is_that_of_the_plain_slice(corpus: Corpus) -> None:
    """Gates are open at the start, so the first loss is the subject's own, and training lowers it."""
    subject = build("llama")
    neurons = by_hand(subject)
    arguments: dict[str, Any] = {"lr": 0.02, "steps": 30, "batch_size": 6}
    routed = landermt(subject, corpus.only("en-es"), neurons, **arguments)
    plain = finetune(subject, corpus.only("en-es"), neurons.of("en-es"), **arguments)
    assert routed.delta.history[0] == plain.history[0]
    assert routed.delta.history[1:] != plain.history[1:]
    assert routed.delta.history[-1] < 0.7 * routed.delta.history[0]
    assert routed.num_parameters == plain.num_parameters + 2 * 2 * (16 + 1)


def test_the_trained_model_is_the_one_that_training_ended_with(corpus: Corpus) -> None:
    from neuropolis.attribution.encoding import collate, encode_corpus
    from neuropolis.finetune.training import answer_loss

    subject = build("llama")
    rows = corpus.only("en-es")
    arguments: dict[str, Any] = {"lr": 0.02, "batch_size": 6, "schedule": "constant", "warmup": 0.0, "seed": 3}
    routed = landermt(subject, rows, by_hand(subject), steps=4, **arguments)
    longer = landermt(subject, rows, by_hand(subject), steps=5, **arguments)
    with routed.applied(subject), torch.no_grad():
        loss = answer_loss(subject, collate(encode_corpus(subject, rows), range(6)))
    assert float(loss) == pytest.approx(longer.delta.history[4], rel=1e-5)


def test_several_pairs_have_a_gate_each(corpus: Corpus) -> None:
    subject = build("gpt2")
    neurons = by_hand(subject)
    routed = landermt(subject, corpus, neurons, lr=0.01, steps=3)
    assert routed.gates.roles == ("general", "en-es", "en-zh")
    assert routed.delta.neurons == neurons.of("en-es", "en-zh")


def test_from_scores_to_tuning(corpus: Corpus) -> None:
    subject = build("llama")
    neurons = pair_neurons(attribute(subject, corpus), layers=[1], aware=0.5)
    assert len(neurons.general) == 6
    routed = landermt(subject, corpus.only("en-zh"), neurons, lr=0.01, steps=2)
    assert routed.gates.layers == (1,)


def test_a_pair_without_neurons_is_refused(corpus: Corpus) -> None:
    subject = build("llama")
    foreign = Corpus(tuple(Example(e.id, "de-en", str(e.prompt), e.answer) for e in corpus))
    with pytest.raises(SetError, match="no language pair 'de-en' among these neurons; they have en-es, en-zh, es-zh"):
        landermt(subject, foreign, by_hand(subject))
    with pytest.raises(SetError, match="belongs to subject"):
        landermt(subject, corpus, by_hand(build("gpt2")))


def test_divergence_leaves_the_subject(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    with pytest.raises(TuneError, match="diverged"):
        landermt(subject, corpus, by_hand(subject), lr=1e30, steps=20, warmup=0.0)
    assert same_bits(state(subject), before)
    assert not any(module._forward_pre_hooks for module in subject.model.modules())


def made(subject: Subject, corpus: Corpus) -> RoutedDelta:
    return landermt(subject, corpus.only("en-es"), by_hand(subject), lr=0.05, steps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_equal(tmp_path: Path, dtype: torch.dtype, corpus: Corpus) -> None:
    subject = build("llama", dtype)
    routed = made(subject, corpus)
    with routed.applied(subject):
        expected = subject.model(IDS).logits
    folder = routed.save(tmp_path / "routed")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "delta", "gates.safetensors"]
    loaded = load_routed_delta(folder, subject=subject)
    assert same_bits(loaded.gates.tensors(), routed.gates.tensors())
    assert loaded.gates.roles == routed.gates.roles
    assert list(loaded.gates.members.values()) == list(routed.gates.members.values())
    with loaded.applied(subject):
        assert torch.equal(subject.model(IDS).logits, expected)
    made(subject, corpus).save(folder)  # replaces it
    assert [path.name for path in tmp_path.iterdir()] == ["routed"]


def test_wrong_subject_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    subject, other = build("llama"), build("gpt2")
    routed = made(subject, corpus)
    folder = routed.save(tmp_path / "routed")
    with pytest.raises(DeltaError, match="belongs to subject"):
        load_routed_delta(folder, subject=other)
    with pytest.raises(DeltaError, match="belongs to subject"), routed.applied(other):
        pass


def test_other_folders_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    subject = build("llama")
    routed = made(subject, corpus)
    plain = routed.delta.save(tmp_path / "plain")
    with pytest.raises(DeltaError, match="describes no routed delta"):
        load_routed_delta(plain)
    with pytest.raises(DeltaError, match="is no routed delta; give a new folder"):
        routed.save(plain)
    folder = routed.save(tmp_path / "routed")
    with pytest.raises(DeltaError, match="does not describe a delta"):
        load_delta(folder)
    with pytest.raises(DeltaError, match="no routed delta at"):
        load_routed_delta(tmp_path / "nothing")


def test_another_delta_in_its_place_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    subject = build("llama")
    folder = made(subject, corpus).save(tmp_path / "routed")
    other = finetune(subject, corpus, by_hand(subject).of("en-es"), lr=0.01, steps=1)
    other.save(folder / "delta")
    with pytest.raises(DeltaError, match=r"delta/config.json is missing, truncated or altered"):
        load_routed_delta(folder)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    subject = build("llama")
    folder = made(subject, corpus).save(tmp_path / "routed")
    before = (folder / "config.json").read_bytes()
    real = safetensors.torch.save_file

    def full(tensors: Any, path: Path) -> None:
        if path.name == "gates.safetensors":
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(DeltaError, match="No space left on device; what stood there before is untouched"):
        landermt(subject, corpus, by_hand(subject), lr=0.01, steps=1).save(folder)
    assert (folder / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["routed"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subject = build("llama")
    rows = Corpus(tuple(Example(g, "en-es", f"food of {g} is", f" {a[0]}") for g, a in ANSWERS.items()))
    return landermt(subject, rows, by_hand(subject), lr=0.05, steps=1).save(tmp_path_factory.mktemp("x") / "routed")


FILES = ["config.json", "gates.safetensors", "delta/config.json", "delta/delta.safetensors"]


@given(name=st.sampled_from(FILES), place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(deadline=None)
def test_altered_byte_is_refused(saved: Path, name: str, place: float, bit: int) -> None:
    whole = (saved / name).read_bytes()
    raw = bytearray(whole)
    raw[int(place * (len(raw) - 1))] ^= 1 << bit
    (saved / name).write_bytes(raw)
    try:
        with pytest.raises(DeltaError):
            load_routed_delta(saved)
    finally:
        (saved / name).write_bytes(whole)
    assert load_routed_delta(saved).gates.roles == ("general", "en-es")


def test_later_version_is_refused(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"version": 2}))
    with pytest.raises(DeltaError, match="has version 2, expected 1"):
        load_routed_delta(tmp_path)
