"""The subject: what its fingerprint tells apart, what loading refuses, and that a bridge is the model that it wraps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.edits import export_silenced
from neuropolis.neurons.errors import SubjectError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import fingerprint, load_model, tokenizer_fingerprint
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(make_subject: Any, tmp_path: Path) -> Path:
    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path / "model")
    subject.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_one_checkpoint_has_one_fingerprint_in_every_dtype(make_subject: Any, family: str) -> None:
    model = make_subject(family).model
    name = fingerprint(model)
    assert fingerprint(model.bfloat16()) == name
    assert fingerprint(model.float()) == name
    assert fingerprint(model.double()) == name
    assert len(name) == 16


def test_models_have_different_fingerprints(make_subject: Any) -> None:
    subjects = [make_subject("llama"), make_subject("llama", seed=1), make_subject("qwen3"), make_subject("gpt2")]
    assert len({subject.fingerprint for subject in subjects}) == 4
    assert make_subject("llama").fingerprint == subjects[0].fingerprint


def test_every_changed_weight_changes_the_fingerprint(make_subject: Any) -> None:
    subject, dice = make_subject("gpt2"), torch.Generator().manual_seed(0)
    for parameter in subject.model.parameters():
        flat = parameter.data.view(-1)
        for place in torch.randint(flat.numel(), (3,), generator=dice).tolist():
            kept = flat[place].clone()
            flat[place] += 0.1
            assert fingerprint(subject.model) != subject.fingerprint
            flat[place] = kept
    assert fingerprint(subject.model) == subject.fingerprint


def test_swapped_rows_and_columns_change_the_fingerprint(make_subject: Any) -> None:
    subject = make_subject("llama")
    weight = subject.model.model.layers[1].mlp.down_proj.weight.data
    kept = weight.clone()
    for dim in (0, 1):
        for first in range(weight.shape[dim] - 1):
            order = torch.arange(weight.shape[dim])
            order[[first, first + 1]] = order[[first + 1, first]]
            weight.copy_(kept.index_select(dim, order))
            assert fingerprint(subject.model) != subject.fingerprint, (dim, first)
            weight.copy_(kept)


def test_a_tokenizers_fingerprint_is_of_its_rules(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    name = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(loaded) == name
    loaded(["a", "a b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(loaded) == name
    loaded.add_tokens(["tea"])
    assert tokenizer_fingerprint(loaded) != name


def test_a_folder_loads(folder: Path, make_subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load_model(folder)
    assert (subject.fingerprint, subject.name) == (make_subject("llama").fingerprint, str(folder))
    assert not subject.model.training
    assert tokenizer_fingerprint(subject.tokenizer) == tokenizer_fingerprint(make_subject().tokenizer)
    assert load_model(str(folder), dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert load_model(subject) is subject
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("~/model").fingerprint == subject.fingerprint


def test_a_module_loads_with_its_tokenizer(make_subject: Any, tokenizer: Any) -> None:
    model = make_subject("gpt2").model
    subject = load_model((model, tokenizer))
    assert subject.model is model
    assert subject.tokenizer is tokenizer
    assert load_model(model, tokenizer=tokenizer).fingerprint == subject.fingerprint
    assert subject.name == "GPT2LMHeadModel"
    assert (subject.num_layers, subject.dtype, subject.device) == (3, torch.float32, torch.device("cpu"))
    assert subject.num_parameters == sum(p.numel() for p in model.parameters())


def empty(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def lost_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "novel"}')


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "spoil", [empty, no_weights, cut_weights, lost_weight, broken_config, unknown_family, no_tokenizer]
)
def test_a_spoilt_folder_is_one_line(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(SubjectError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert message.startswith("no model in" if spoil is empty else "cannot load model")


def test_what_is_no_model_is_refused(tokenizer: Any, make_subject: Any, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(SubjectError, match=f"no model in '{missing}': expected a folder with config.json and weights"):
        load_model(missing)
    with pytest.raises(SubjectError, match="no bundled model 'bundled:rome'; bundled models are bundled:polis"):
        load_model("bundled:rome")
    with pytest.raises(SubjectError, match="cannot load model 'no-one/no-such-model': "):
        load_model("no-one/no-such-model")
    with pytest.raises(SubjectError, match=r"LlamaForCausalLM: no tokenizer; give load_model\(\(module, tokenizer\)\)"):
        load_model(make_subject().model)
    with pytest.raises(SubjectError, match="a Linear has no 'config'; expected a Hugging Face causal LM"):
        load_model((torch.nn.Linear(2, 2), tokenizer))
    with pytest.raises(SubjectError, match="cannot load a model from a int; give a hub id, a folder"):
        load_model(3)


def test_quiet_puts_flags_back_also_after_an_exception(make_subject: Any) -> None:
    subject = make_subject("llama")
    subject.model.train()
    subject.model.model.layers[1].eval()
    subject.model.lm_head.requires_grad_(False)
    modes = [module.training for module in subject.model.modules()]
    flags = [parameter.requires_grad for parameter in subject.model.parameters()]
    assert len(set(modes)) == len(set(flags)) == 2
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), subject.quiet():  # noqa: PT012
            assert not any(module.training for module in subject.model.modules())
            assert not any(parameter.requires_grad for parameter in subject.model.parameters())
            raise error
        assert [module.training for module in subject.model.modules()] == modes
        assert [parameter.requires_grad for parameter in subject.model.parameters()] == flags


@pytest.fixture
def bridged(make_subject: Any, tokenizer: Any, tmp_path: Path) -> Callable[[str], Any]:
    """Wraps a fresh model of a family in a TransformerLens bridge."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def build(family: str) -> Any:
        model = make_subject(family, torch.float64).model
        named = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        return build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=named)

    return build


@pytest.mark.filterwarnings("ignore")  # TransformerLens's own
@pytest.mark.parametrize(
    ("family", "sites"),
    [
        ("llama", ["mlp", "q"]),
        ("gpt2", ["mlp", "v"]),
        ("phi3", ["gate", "k"]),
        ("gpt_neox", ["attn", "q"]),
        ("falcon", ["mlp_out", "v"]),
    ],
)
def test_a_bridge_is_the_model_that_it_wraps(
    make_subject: Any, bridged: Any, corpus: Corpus, family: str, sites: list[str]
) -> None:
    plain, bridge = make_subject(family, torch.float64), bridged(family)
    wrapped = load_model(bridge)
    assert wrapped.fingerprint == plain.fingerprint
    for site in sites:
        expected = attribute(plain, corpus, site=site).signed
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(attribute(wrapped, corpus, site=site).signed, expected, rtol=1e-5, atol=1e-6)
        neurons = NeuronSet.from_indices(plain, site=site, indices={0: range(8), 2: [3]})
        ids = torch.arange(4, 12)[None]
        with torch.no_grad(), intervene(plain, neurons, kind="scale"), intervene(wrapped, neurons, kind="scale"):
            torch.testing.assert_close(bridge(ids), plain.model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_bridge_is_not_exported(bridged: Any, tmp_path: Path) -> None:
    subject = load_model(bridged("llama"))
    with pytest.raises(SubjectError, match=r"wrapped by a TransformerLens bridge.*load the model again without"):
        export_silenced(subject, NeuronSet.from_indices(subject, indices={0: [1]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_bridge_scores_several_sites_in_one_pass(
    make_subject: Any, bridged: Any, corpus: Corpus, family: str
) -> None:
    plain, wrapped = make_subject(family, torch.float64), load_model(bridged(family))
    sites = ("mlp", "up", "mlp_out", "q", "k", "v", "attn")
    expected = attribute(plain, corpus, methods=("taylor", "gradient"), site=sites, max_tokens=200)
    for recompute in (False, True):
        found = attribute(
            wrapped, corpus, methods=("taylor", "gradient"), site=sites, max_tokens=200, recompute=recompute
        )
        for name, scores in expected.items():
            assert scores.values.max() > 1e-4 or name == "gradient/k"  # a bias of the keys changes nothing
            torch.testing.assert_close(found[name].signed, scores.signed, rtol=1e-5, atol=1e-6)
            assert found[name].subject == scores.subject


class Packed(torch.Tensor):
    """Stands for the tensor subclasses of quantisation libraries."""


def test_weights_that_are_no_plain_tensors_are_refused_in_one_line(make_subject: Any) -> None:
    subject = make_subject("llama")
    up = subject.model.model.layers[1].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.data.as_subclass(Packed), requires_grad=False)
    with pytest.raises(
        SubjectError,
        match=r"layers\.1\.mlp\.up_proj\.weight .* is a Packed, not a plain tensor .*load it on one device",
    ):
        load_model((subject.model, subject.tokenizer))
