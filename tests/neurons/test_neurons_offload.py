"""Beyond memory: an offloaded subject and blocks computed twice give the scores of the model in memory, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SubjectError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model


@pytest.fixture
def saved(make_subject: Any, tmp_path: Path) -> Callable[..., str]:
    """Writes a tiny model to a folder."""

    def save(family: str, dtype: torch.dtype = torch.float32) -> str:
        subject = make_subject(family, dtype)
        subject.model.save_pretrained(tmp_path / family)
        subject.tokenizer.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return save


def assert_same_scores(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, scores in expected.items():
        assert scores.values.max() > 1e-3
        assert torch.equal(found[name].signed, scores.signed), name
        assert torch.equal(found[name].values, scores.values), name


def state(subject: Subject) -> list[Any]:
    """Flags, hooks and wrapped forwards of every module."""
    return [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), m.__dict__.get("forward"),
         [(n, None if p is None else p.requires_grad) for n, p in m._parameters.items()])
        for m in subject.model.modules()
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon", "phi3"])
def test_scores_of_an_offloaded_subject(
    saved: Callable[..., str], corpus: Corpus, family: str, dtype: torch.dtype
) -> None:
    folder = saved(family, dtype)
    whole, away = load_model(folder), load_model(folder, offload="disk")
    size = sum(p.numel() * p.element_size() for p in whole.model.parameters())
    half = load_model(folder, offload="disk", memory=size // 2)
    assert not whole.offloaded
    assert all(p.device.type == "meta" for p in away.model.parameters())
    assert {p.device.type for p in half.model.parameters()} == {"cpu", "meta"}
    expected = attribute(whole, corpus, methods=("taylor", "gradient"), site=("mlp", "q"), tokens="max", max_tokens=200)
    for subject in (away, half):
        assert subject.offloaded
        assert subject.fingerprint == whole.fingerprint
        assert subject.dtype == dtype
        assert subject.device == torch.device("cpu")
        found = attribute(
            subject, corpus, methods=("taylor", "gradient"), site=("mlp", "q"), tokens="max", max_tokens=200
        )
        assert_same_scores(found, expected)
    assert all(p.device.type == "meta" for p in away.model.parameters())


def test_no_more_than_a_block_is_there_at_a_time(saved: Callable[..., str], corpus: Corpus) -> None:
    from neuropolis.attribution import readings

    subject = load_model(saved("llama"), offload="disk")
    blocks, there = subject.blocks, []

    def note(_gradient: torch.Tensor) -> None:
        there.append(sum(any(p.device.type == "cpu" for p in block.parameters()) for block in blocks))

    plain = readings._Identity.backward

    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        note(grads[0])
        return plain(ctx, *grads)

    readings._Identity.backward = staticmethod(backward)
    try:
        attribute(subject, corpus)
    finally:
        readings._Identity.backward = staticmethod(plain)
    assert there
    assert max(there) == 0  # the hooks have let go of every block before its backward begins


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "falcon", "phi3", "qwen3"])
def test_blocks_computed_twice_change_nothing(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    subject.model.train()  # gpt2 has dropout, which must stay off
    subject.model.get_input_embeddings().weight.requires_grad_(False)
    before = state(subject)
    sites = ("mlp", "mlp_out", "attn")
    expected = attribute(subject, corpus, methods=("taylor", "gradient"), site=sites)
    found = attribute(subject, corpus, methods=("taylor", "gradient"), site=sites, recompute=True)
    assert_same_scores(found, expected)
    assert state(subject) == before


def test_activations_are_read_once(make_subject: Any, corpus: Corpus) -> None:
    from neuropolis.attribution.methods import METHODS, register_method

    calls = []

    @register_method("counted", reads="activation")
    def counted(activation: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return activation

    try:
        found = attribute(
            make_subject("llama"), corpus, methods=("counted", "taylor"), recompute=True, max_tokens=10_000
        )
        assert len(calls) == 3  # one batch, three layers
        assert_same_scores(
            found, attribute(make_subject("llama"), corpus, methods=("counted", "taylor"), max_tokens=10_000)
        )
    finally:
        del METHODS["counted"]


def test_activations_of_the_blocks_are_not_kept(make_subject: Any, corpus: Corpus) -> None:
    subject, held = make_subject("llama"), {}
    for recompute in (False, True):
        packed = []

        def pack(tensor: torch.Tensor, packed: list[int] = packed) -> torch.Tensor:
            packed.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            from neuropolis.attribution.encoding import batches, encode_corpus, forward

            (batch,) = batches(encode_corpus(subject, corpus), max_tokens=10_000)
            taps = subject.site("mlp").taps
            with subject.quiet(recompute=recompute), torch.enable_grad():
                embeddings = subject.model.get_input_embeddings()
                handle = embeddings.register_forward_hook(lambda _m, _a, out: out.requires_grad_())
                forward(subject, batch)
                handle.remove()
            assert len(taps) == 3
        held[recompute] = sum(packed)
    assert held[True] < held[False] / 3


def test_everything_is_as_it_was_after_an_error(saved: Callable[..., str], corpus: Corpus) -> None:
    class Interrupted(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Interrupted

    for subject in (load_model(saved("llama")), load_model(saved("llama"), offload="disk")):
        subject.site("mlp")
        before = state(subject)
        with pytest.raises(Interrupted):
            attribute(subject, corpus, progress=stop, max_tokens=50, recompute=True)
        assert state(subject) == before


def test_a_module_that_accelerate_offloaded(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload

    whole = make_subject("gpt2")
    for number, offload in enumerate(
        (cpu_offload, lambda model, device: disk_offload(model, tmp_path / "away", device))
    ):
        model = copy.deepcopy(whole.model)
        offload(model, torch.device("cpu"))
        away = load_model((model, whole.tokenizer))
        assert away.offloaded, number
        assert away.fingerprint == whole.fingerprint
        assert torch.equal(attribute(away, corpus).signed, attribute(whole, corpus).signed)


def test_an_offloaded_subject_is_intervened_on(saved: Callable[..., str]) -> None:
    whole, away = load_model(saved("llama")), load_model(saved("llama"), offload="disk")
    neurons = NeuronSet.from_indices(whole, site="mlp", indices={0: range(8), 2: [3]})
    ids = torch.arange(4, 12)[None]
    with torch.no_grad(), intervene(whole, neurons), intervene(away, neurons):
        assert torch.equal(away.model(ids).logits, whole.model(ids).logits)


def test_a_changed_weight_changes_the_fingerprint(saved: Callable[..., str]) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved("llama")
    before = load_model(folder, offload="disk").fingerprint
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
    save_file(weights, file, metadata={"format": "pt"})
    assert load_model(folder, offload="disk").fingerprint not in (before, load_model(folder + "/.").name)
    assert load_model(folder, offload="disk").fingerprint == load_model(folder).fingerprint != before


def test_weights_in_an_old_format_go_to_the_folder(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    whole = make_subject("llama")
    folder = tmp_path / "old"
    whole.model.config.save_pretrained(folder)
    whole.tokenizer.save_pretrained(folder)
    torch.save(whole.model.state_dict(), folder / "pytorch_model.bin")
    away = load_model(str(folder), offload=tmp_path / "away")
    assert any((tmp_path / "away").iterdir())
    assert away.fingerprint == whole.fingerprint
    assert torch.equal(attribute(away, corpus).signed, attribute(whole, corpus).signed)


def test_what_cannot_be_offloaded_is_said(saved: Callable[..., str], make_subject: Any) -> None:
    folder = saved("llama")
    with pytest.raises(SubjectError, match="cannot read 'much' as an amount of memory; expected such as '8GB'"):
        load_model(folder, offload="disk", memory="much")
    with pytest.raises(SubjectError, match="memory='1GB' says what stays of an offloaded model; give offload='disk'"):
        load_model(folder, memory="1GB")
    with pytest.raises(SubjectError, match="keeps weights in RAM for a GPU, and the CPU computes here; use 'disk'"):
        load_model(folder, offload="cpu", device="cpu")
    subject = make_subject("llama")
    with pytest.raises(SubjectError, match="offload is for models that are loaded by name"):
        load_model((subject.model, subject.tokenizer), offload="disk")
