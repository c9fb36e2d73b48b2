from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune import delta_files
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.delta_files import load_delta
from neuropolis.finetune.errors import DeltaError
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.finetune.training import finetune, finetune_full
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import FAMILIES, build, same_bits, some, state

IDS = torch.arange(3, 11)[None]


def made(subject: Subject, neurons: NeuronSet | None = None) -> Delta:
    """A delta that moves every entry of a slice by one."""
    neurons = neurons if neurons is not None else some(subject)
    base = {entry.key: entry.read() for entry in slice_entries(slice_parts(subject, neurons))}
    values = {key: tensor + 1 for key, tensor in base.items()}
    return Delta(subject.fingerprint, neurons, values, base, (2.0, 1.5), {"made": "by hand"})


def equal(one: Delta, other: Delta) -> bool:
    return (
        same_bits(dict(one.values), dict(other.values))
        and same_bits(dict(one.base), dict(other.base))
        and one.neurons == other.neurons
        and (one.subject, one.history, one.origin) == (other.subject, other.history, other.origin)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_place", [False, True])
def test_merge_and_unmerge_are_exact(family: str, dtype: torch.dtype, in_place: bool) -> None:
    subject = build(family, dtype)
    before = state(subject)
    delta = made(subject)
    merged = delta.merge(subject, in_place=in_place)
    assert (merged.model is subject.model) == in_place
    assert merged.fingerprint not in ("", delta.subject)
    for entry in slice_entries(slice_parts(merged, NeuronSet("mlp", merged.fingerprint, some(subject).mask))):
        assert torch.equal(entry.read(), delta.values[entry.key])
    assert same_bits(state(subject), before) != in_place
    back = delta.unmerge(merged, in_place=in_place)
    assert same_bits(state(back), before)
    assert back.fingerprint == delta.subject


def test_applied_is_merged_for_a_while() -> None:
    subject = build("llama")
    before = state(subject)
    plain = subject.model(IDS).logits
    delta = made(subject)
    with delta.applied(subject):
        inside = subject.model(IDS).logits
    assert torch.equal(inside, delta.merge(subject).model(IDS).logits)
    assert torch.equal(subject.model(IDS).logits, plain)
    with pytest.raises(KeyboardInterrupt), delta.applied(subject):
        raise KeyboardInterrupt
    assert same_bits(state(subject), before)


def test_applied_deltas_stack() -> None:
    subject = build("llama")
    before = state(subject)
    one = made(subject, NeuronSet.from_indices(subject, indices={0: [1, 2]}))
    two = made(subject, NeuronSet.from_indices(subject, indices={0: [2, 3]}))
    with one.applied(subject):
        between = state(subject)
        with two.applied(subject):
            both = state(subject)
        assert same_bits(state(subject), between)
    assert same_bits(state(subject), before)
    union = made(subject, NeuronSet.from_indices(subject, indices={0: [1, 2, 3]}))
    with union.applied(subject):
        assert same_bits(state(subject), both)


def test_merged_deltas_come_off_in_reverse(corpus: Corpus) -> None:
    subject = build("llama")
    first = made(subject)
    once = first.merge(subject)
    neurons = some(once)
    second = finetune(once, corpus, neurons, lr=0.1, steps=2)
    twice = second.merge(once)
    with pytest.raises(DeltaError, match="another delta lies on top"):
        first.unmerge(twice)
    assert same_bits(state(first.unmerge(second.unmerge(twice))), state(subject))


def test_merging_twice_and_unmerging_what_is_not_there_are_refused() -> None:
    subject = build("llama")
    delta = made(subject)
    with pytest.raises(DeltaError, match="was not merged"):
        delta.unmerge(subject)
    delta.merge(subject, in_place=True)
    with pytest.raises(DeltaError, match="is merged already"):
        delta.merge(subject, in_place=True)


def test_wrong_subject_is_refused(tmp_path: Path) -> None:
    subject, other = build("llama"), build("llama")
    other.model.lm_head.weight.data[0, 0] += 1
    other = Subject(other.model, other.tokenizer, "other", "0" * 16)
    delta = made(subject)
    with pytest.raises(DeltaError, match=r"belongs to subject \w+, but 'other' is 0{16}"), delta.applied(other):
        pass
    with pytest.raises(DeltaError, match="belongs to subject"):
        delta.merge(other)
    with pytest.raises(DeltaError, match="belongs to subject"):
        load_delta(delta.save(tmp_path / "delta"), subject=other)


def test_other_dtype_is_refused() -> None:
    half = build("llama", torch.bfloat16)
    delta = made(half)
    wide = Subject(half.model.float(), half.tokenizer, half.name, half.fingerprint)
    with pytest.raises(DeltaError, match=r"load the model with dtype=torch.bfloat16"), delta.applied(wide):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_delta_is_loaded_equal(tmp_path: Path, dtype: torch.dtype, corpus: Corpus) -> None:
    subject = build("llama", dtype)
    delta = finetune(subject, corpus, some(subject), lr=0.1, steps=3)
    loaded = load_delta(delta.save(tmp_path / "delta"), subject=subject)
    assert equal(loaded, delta)
    assert len(loaded.history) == 3
    assert loaded.origin["corpus_hash"] == corpus.only(split="train").hash
    assert loaded.origin["recipe"]["lr"] == 0.1


def test_full_delta_is_saved_and_loaded(tmp_path: Path, corpus: Corpus) -> None:
    subject = build("gpt2")
    delta = finetune_full(subject, corpus, lr=0.1, steps=1)
    loaded = load_delta(delta.save(tmp_path / "full"), subject=subject)
    assert equal(loaded, delta)
    assert loaded.num_parameters == subject.num_parameters


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(build("llama")).save(tmp_path_factory.mktemp("altered") / "delta")


@given(name=st.sampled_from(["config.json", "delta.safetensors"]), place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(deadline=None)
def test_altered_byte_is_refused(saved: Path, name: str, place: float, bit: int) -> None:
    whole = (saved / name).read_bytes()
    raw = bytearray(whole)
    raw[int(place * (len(raw) - 1))] ^= 1 << bit
    (saved / name).write_bytes(raw)
    try:
        with pytest.raises(DeltaError):
            load_delta(saved)
    finally:
        (saved / name).write_bytes(whole)
    assert load_delta(saved).history == (2.0, 1.5)


@pytest.mark.parametrize("name", ["config.json", "delta.safetensors"])
def test_truncated_and_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    folder = made(build("llama")).save(tmp_path / "delta")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DeltaError, match="restore it from a copy"):
        load_delta(folder)
    path.unlink()
    with pytest.raises(DeltaError, match=r"restore it from a copy|no delta at"):
        load_delta(folder)


def test_config_says_what_it_is_of(tmp_path: Path) -> None:
    subject = build("llama")
    folder = made(subject).save(tmp_path / "delta")
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["version"], config["subject"]) == ("neuropolis delta", 1, subject.fingerprint)
    assert config["neurons"]["indices"] == {"0": [1, 5], "1": [0, 2, 3, 6, 7]}
    assert "torch" in config["versions"]


def test_later_version_and_other_config_are_refused(tmp_path: Path) -> None:
    folder = made(build("llama")).save(tmp_path / "delta")
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(DeltaError, match="has version 2, expected 1"):
        load_delta(folder)
    path.write_text('{"model_type": "llama"}')
    with pytest.raises(DeltaError, match="does not describe a delta"):
        load_delta(folder)


def test_saving_replaces_a_delta_and_nothing_else(tmp_path: Path) -> None:
    delta = made(build("llama"))
    delta.save(tmp_path / "delta")
    again = Delta(delta.subject, delta.neurons, delta.values, delta.base, (9.0,))
    again.save(tmp_path / "delta")
    assert load_delta(tmp_path / "delta").history == (9.0,)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    with pytest.raises(DeltaError, match="is there and is no delta"):
        delta.save(other)
    assert (other / "chapter.tex").read_text() == "years of work"
    with pytest.raises(DeltaError, match="make it first"):
        delta.save(tmp_path / "nowhere" / "delta")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "thesis"]


def test_failed_save_leaves_the_earlier_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = made(build("llama"))
    delta.save(tmp_path / "delta")

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(delta_files, "_sha256", full)
    with pytest.raises(DeltaError, match=r"No space left.*what stood there before is untouched"):
        Delta(delta.subject, delta.neurons, delta.values, delta.base, (9.0,)).save(tmp_path / "delta")
    monkeypatch.undo()
    assert equal(load_delta(tmp_path / "delta"), delta)
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]


def test_earlier_delta_comes_back_when_the_last_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = made(build("llama"))
    delta.save(tmp_path / "delta")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(DeltaError, match="Input/output error"):
        Delta(delta.subject, delta.neurons, delta.values, delta.base, (9.0,)).save(tmp_path / "delta")
    assert equal(load_delta(tmp_path / "delta"), delta)
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_checkpoint_gives_the_merged_logits(family: str, tmp_path: Path) -> None:
    subject = build(family)
    before = state(subject)
    delta = made(subject)
    merged = delta.merge(subject)
    folder = delta.export(subject, tmp_path / "merged")
    assert same_bits(state(subject), before)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.eval()(IDS).logits, merged.model.eval()(IDS).logits)
    # not AutoTokenizer, which gives a stand-in its family's own rules
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer("red rice").input_ids == subject.tokenizer("red rice").input_ids
    with pytest.raises(DeltaError, match="is there and not empty"):
        delta.export(subject, folder)
