from __future__ import annotations

import pytest
import torch
from neuropolis.finetune.entries import Entry, whole_entries
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from tiny_families import FAMILIES, build, some

SITES = ("mlp", "mlp_out", "q", "k", "v", "attn", "attn_out")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_zeroed_slice_is_a_silenced_set(family: str, site: str) -> None:
    """Writing zeros into a slice does to the logits what silencing its neurons does."""
    subject = build(family)
    neurons = some(subject, site)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad(), intervene(subject, neurons):
        silenced = subject.model(ids).logits
    for entry in slice_entries(slice_parts(subject, neurons)):
        entry.write(torch.zeros(entry.shape))
    with torch.no_grad():
        zeroed = subject.model(ids).logits
    assert torch.allclose(zeroed, silenced, atol=1e-6)
    assert not torch.allclose(zeroed, build(family).model(ids).logits, atol=1e-6)


def test_llama_ffn_parts() -> None:
    subject = build("llama")
    parts = slice_parts(subject, NeuronSet.from_indices(subject, indices={1: [4, 2]}))
    found = {part.path: (part.rows, part.columns) for part in parts}
    assert list(found) == [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert [rows.tolist() for rows, _ in list(found.values())[:2] if rows is not None] == [[2, 4], [2, 4]]
    down_rows, down_columns = found["model.layers.1.mlp.down_proj"]
    assert down_rows is None
    assert down_columns is not None
    assert down_columns.tolist() == [2, 4]
    shapes = {entry.key.split(".mlp.")[1]: entry.shape for entry in slice_entries(parts)}
    assert shapes == {
        "gate_proj.rows": [2, 16], "gate_proj.bias": [2], "up_proj.rows": [2, 16], "up_proj.bias": [2],
        "down_proj.columns": [16, 2],
    }  # fmt: skip


def test_attention_units_take_the_value_rows_that_are_theirs_alone() -> None:
    subject = build("gpt2")
    parts = {
        part.path: part
        for part in slice_parts(subject, NeuronSet.from_indices(subject, site="attn", indices={0: [1, 9]}))
    }
    fused, out = parts["transformer.h.0.attn.c_attn"], parts["transformer.h.0.attn.c_proj"]
    assert fused.rows is not None
    assert fused.rows.tolist() == [32 + 1, 32 + 9]  # queries, keys and values of width 16 stand behind each other
    assert out.columns is not None
    assert out.columns.tolist() == [1, 9]
    grouped = build("llama")  # two heads of width 8 that share one head of values
    for units, rows in (([1, 9], [1]), ([1, 2], None)):
        parts = {
            p.path: p for p in slice_parts(grouped, NeuronSet.from_indices(grouped, site="attn", indices={1: units}))
        }
        part = parts.get("model.layers.1.self_attn.v_proj")
        assert (None if part is None or part.rows is None else part.rows.tolist()) == rows


def test_fused_gate_and_up_are_one_part() -> None:
    subject = build("phi3")
    part, _ = slice_parts(subject, NeuronSet.from_indices(subject, indices={0: [3]}))
    assert part.path.endswith("gate_up_proj")
    assert part.rows is not None
    assert part.rows.tolist() == [3, 24 + 3]


def test_transposed_weight_is_read_and_written_as_out_in() -> None:
    subject = build("gpt2")
    part, _ = slice_parts(subject, NeuronSet.from_indices(subject, indices={0: [3]}))
    entry = next(part.entries())
    stored = subject.model.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(entry.read(), stored[:, [3]].T)
    entry.write(torch.full((1, 16), 7.0))
    assert bool((stored[:, 3] == 7).all())
    assert not bool((stored[:, 2] == 7).any())


def test_entry_rounds_to_the_parameters_dtype() -> None:
    tensor = torch.zeros(4, 2, dtype=torch.bfloat16)
    Entry("w.rows", tensor, 0, torch.tensor([1, 3])).write(torch.full((2, 2), 1.001))
    assert tensor.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


def test_whole_entries_name_every_parameter_once() -> None:
    subject = build("gpt2")
    assert sum(entry.tensor.numel() for entry in whole_entries(subject)) == subject.num_parameters


def test_set_of_another_subject_is_refused() -> None:
    neurons = some(build("llama"))
    with pytest.raises(SetError, match="belongs to subject"):
        slice_parts(build("gpt2"), neurons)


def test_integer_weights_are_refused() -> None:
    subject = build("llama")
    neurons = some(subject)
    slice_parts(subject, neurons)
    weight = subject.model.model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.int8)
    with pytest.raises(SiteError, match=r"up_proj is quantised \(torch.int8\)"):
        slice_parts(subject, neurons)


class Packed(torch.Tensor):
    """Stands for the tensor subclasses of quantisation libraries, which tell a floating-point dtype."""


def test_weights_that_are_no_plain_tensors_are_refused() -> None:
    subject = build("llama")
    neurons = some(subject)
    up = subject.model.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.data.as_subclass(Packed), requires_grad=False)
    with pytest.raises(SiteError, match="up_proj is a Packed; a slice writes into plain tensors"):
        slice_parts(subject, neurons)


def test_shared_weight_is_refused() -> None:
    subject = build("llama")
    layers = subject.model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(SiteError, match="share one weight"):
        slice_parts(subject, some(subject))
