"""A delta as a PEFT adapter: what the adapter's model computes is what the tuned one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.errors import DeltaError
from neuropolis.finetune.training import finetune, finetune_full
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import SITES
from neuropolis.neurons.subject import Subject
from peft import PeftModel
from test_finetune_algebra import moved
from test_finetune_delta import made
from tiny_families import CONFIGS, FAMILIES, build, same_bits, some, state

IDS = torch.arange(3, 11)[None]
# PEFT asks the model by a name that transformers calls old
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def check_adapter(subject: Subject, delta: Delta, folder: Path) -> None:
    """The adapter's logits, merged and not, are those of the delta, which are others than the subject's."""
    before = state(subject)
    plain = subject.model(IDS).logits
    with torch.no_grad(), delta.applied(subject):
        tuned = subject.model(IDS).logits
    assert not torch.allclose(plain, tuned, atol=1e-2)
    fresh = build_like(subject)
    adapted = PeftModel.from_pretrained(fresh, str(delta.export_peft(subject, folder))).eval()
    assert same_bits(state(subject), before)
    assert torch.allclose(adapted(IDS).logits, tuned, atol=1e-4)
    assert torch.allclose(adapted.merge_and_unload()(IDS).logits, tuned, atol=1e-4)


def build_like(subject: Subject) -> torch.nn.Module:
    model = type(subject.model)(subject.model.config)
    model.load_state_dict(subject.model.state_dict())
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", sorted(SITES))
def test_adapter_computes_what_the_delta_does(family: str, site: str, tmp_path: Path) -> None:
    subject = build(family)
    try:
        delta = moved(subject, site, {0: [5, 1], 1: [0, 2, 3, 6, 7]}, seed=1)
    except SiteError:
        pytest.skip(f"has no {site}")
    if family == "llama" and site in ("mlp", "gate", "up"):
        assert any(key.endswith(".bias") for key in delta.values)
    check_adapter(subject, delta, tmp_path / "adapter")


def test_trained_delta_as_an_adapter(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("phi3")
    delta = finetune(subject, corpus, some(subject), lr=0.1, steps=4)
    check_adapter(subject, delta, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert len(config["target_modules"]) == 4
    assert config["rank_pattern"] == config["alpha_pattern"]  # so that every scale is 1
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_layers_whose_numbers_begin_alike_keep_their_ranks(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 1 and layer 11: PEFT matches patterns from the right."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 12}
    config = transformers.LlamaConfig(vocab_size=20, initializer_range=0.3, **shape)
    monkeypatch.setitem(CONFIGS, "deep", lambda: config)
    subject = build("deep")
    neurons = NeuronSet.from_indices(subject, indices={1: [0, 3], 11: [1, 2, 5, 7], 10: [4]})
    check_adapter(subject, made(subject, neurons), tmp_path / "adapter")


def test_half_precision_adapter_is_near(tmp_path: Path) -> None:
    subject = build("llama", torch.bfloat16)
    delta = made(subject)
    with torch.no_grad(), delta.applied(subject):
        tuned = subject.model(IDS).logits
    adapted = PeftModel.from_pretrained(
        build_like(subject).to(torch.bfloat16), str(delta.export_peft(subject, tmp_path / "adapter"))
    )
    assert torch.allclose(adapted(IDS).logits, tuned, atol=0.05 * float(tuned.abs().max()))


def test_what_an_adapter_cannot_say_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("gpt2")
    with pytest.raises(DeltaError, match="no adapter for a delta of all parameters; write a checkpoint"):
        finetune_full(subject, corpus, steps=1).export_peft(subject, tmp_path / "adapter")
    llama = build("llama")
    for layer in llama.model.model.layers:
        layer.mlp.down_proj.bias = None
    delta = made(llama)
    with pytest.raises(DeltaError, match=r"bias of model.layers.0.mlp.gate_proj was trained, but .*down_proj has none"):
        delta.export_peft(llama, tmp_path / "adapter")
    with pytest.raises(DeltaError, match="belongs to subject"):
        delta.export_peft(subject, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DeltaError, match="is there and not empty; give a new folder for the adapter"):
        made(subject).export_peft(subject, tmp_path)
    with pytest.raises(DeltaError, match="there is no folder"):
        made(subject).export_peft(subject, tmp_path / "nowhere" / "adapter")
