"""Similarity with its choices changed, before and after training, of offloaded subjects, and against transfer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from neuropolis.analysis.alignment import table_of, unshared_table
from neuropolis.analysis.movement import movement, movement_from_record
from neuropolis.analysis.parameters import matrix_names, neuron_parameters, output_direction
from neuropolis.analysis.similarity import Similarity, similarity
from neuropolis.analysis.transfer import measured_gains, transfer, transfer_from_record
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model

Make = Callable[..., Subject]
E = torch.eye(4)
VECTORS = torch.stack([E[0], E[1], E[0], E[0] + E[1], 3 * E[2]])
SETS = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)  # e0, e1 and e0, e0 + e1, 3 e2


def test_alignments_by_hand() -> None:
    half = 1 / math.sqrt(2)
    # mean vectors (1, 1, 0) / 2 and (2, 1, 3) / 3
    assert table_of(VECTORS, SETS, "mean")[0, 1].item() == pytest.approx(3 * half / math.sqrt(14))
    # cosines of the six pairs: e0 with 1, half, 0 and e1 with 0, half, 0
    assert table_of(VECTORS, SETS, "pairs")[0, 1].item() == pytest.approx((1 + 2 * half) / 6)
    # (e0, e1) beside (e0, e0 + e1): 2 / (sqrt(2) sqrt(3))
    assert table_of(VECTORS, SETS, "index")[0, 1].item() == pytest.approx(2 / math.sqrt(6))
    order = torch.tensor([[1.0, 2, 0, 0, 0], [0, 0, 1, 2, 3]])  # (e1, e0) beside (3 e2, e0 + e1)
    assert table_of(VECTORS, SETS, "score", order)[0, 1].item() == pytest.approx(1 / (math.sqrt(2) * math.sqrt(11)))
    # the best assignment takes e0 with e0, e1 with e0 + e1
    assert table_of(VECTORS, SETS, "match")[0, 1].item() == pytest.approx((1 + half) / 2)
    for align in ("mean", "index", "match"):
        assert table_of(VECTORS, SETS, align).diagonal().tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("align", ["mean", "pairs", "index", "score", "match"])
def test_shared_neurons_are_left_out(align: Any) -> None:
    order = torch.rand((2, 6), generator=torch.Generator().manual_seed(0))
    vectors = torch.randn((6, 5), generator=torch.Generator().manual_seed(1))
    masks = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    without = masks & ~masks.all(dim=0)
    expected = table_of(vectors, without, align, order)[0, 1]
    found = unshared_table(vectors, masks, align, order)
    torch.testing.assert_close(found[0, 1], expected)
    torch.testing.assert_close(found[1, 0], expected)
    assert bool(found.diagonal().isnan().all())
    assert not torch.isclose(table_of(vectors, masks, align, order)[0, 1], expected)
    nothing = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    assert bool(unshared_table(vectors, nothing, align, order).isnan().all())


def pair_of(subject: Subject) -> dict[str, NeuronSet]:
    return {
        "a": NeuronSet.from_indices(subject, indices={0: [0, 1, 2], 1: [3]}),
        "b": NeuronSet.from_indices(subject, indices={0: [2, 3], 1: [4]}),
    }


def test_matrices_and_centring(make_subject: Make) -> None:
    subject = make_subject("llama")
    mlp = subject.model.model.layers[0].mlp
    assert matrix_names(subject, "mlp") == ("gate", "up", "down")
    found = neuron_parameters(subject, "mlp", 0, matrices=["down", "gate"])
    assert torch.equal(found[5], torch.cat([mlp.down_proj.weight[:, 5], mlp.gate_proj.weight[5]]))
    alike = similarity(subject, pair_of(subject), matrices=["up"], center=True, controls=0)
    rows = mlp.up_proj.weight - mlp.up_proj.weight.mean(dim=0)
    expected = torch.cosine_similarity(rows[:3].mean(dim=0), rows[2:4].mean(dim=0), dim=0)
    torch.testing.assert_close(alike.values[0, 1, 0], expected)
    assert alike.origin["matrices"] == ["up"]
    with pytest.raises(SiteError, match="has no matrix 'in'; name some of gate, up, down"):
        similarity(subject, pair_of(subject), matrices=["in"])
    with pytest.raises(SiteError, match="name some of up, down"):
        neuron_parameters(make_subject("gpt2"), "mlp", 0, matrices=["gate"])


def test_scores_give_the_order(make_subject: Make) -> None:
    subject = make_subject("llama")
    sets = pair_of(subject)
    values = torch.rand((2, 3, 48), generator=torch.Generator().manual_seed(0))
    scores = Scores("mlp", subject.fingerprint, ("a", "b"), values, values, values, torch.tensor([1, 1]))
    alike = similarity(subject, sets, align="score", scores=scores, controls=2)
    rows = neuron_parameters(subject, "mlp", 0)
    first = max((0, 1, 2), key=lambda n: values[0, 0, n])
    order = sorted((0, 1, 2), key=lambda n: -values[0, 0, n])[:2]
    other = sorted((2, 3), key=lambda n: -values[1, 0, n])
    assert order[0] == first
    expected = torch.cosine_similarity(rows[order].flatten(), rows[other].flatten(), dim=0)
    torch.testing.assert_close(alike.values[0, 1, 0], expected)
    with pytest.raises(SetError, match="give scores="):
        similarity(subject, sets, align="score")
    with pytest.raises(SetError, match="unknown align 'sorted'"):
        similarity(subject, sets, align="sorted")  # pyright: ignore[reportArgumentType]


def trained(subject: Subject) -> Subject:
    """Neurons 0 and 3 of layer 0 moved: the first by its gate, the second doubled."""
    model = copy.deepcopy(subject.model)
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[0] += 1
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
            weight[3] *= 2
    return load_model((model, subject.tokenizer))


def test_deltas_of_training(make_subject: Make) -> None:
    before = make_subject("llama")
    after = trained(before)
    sets = pair_of(before)
    alike = similarity(after, sets, base=before, of="deltas", controls=0)
    change = neuron_parameters(after, "mlp", 0) - neuron_parameters(before, "mlp", 0)
    expected = torch.cosine_similarity(change[0], change[3], dim=0)  # the others did not move
    torch.testing.assert_close(alike.values[0, 1, 0], expected)
    assert bool(alike.values[:, :, 1].isnan().all())
    assert alike.subject == before.fingerprint
    plain = similarity(after, sets, base=before, controls=0)  # the sets are of the subject before
    rows = neuron_parameters(after, "mlp", 0)
    expected = torch.cosine_similarity(rows[:3].mean(dim=0), rows[2:4].mean(dim=0), dim=0)
    torch.testing.assert_close(plain.values[0, 1, 0], expected)
    with pytest.raises(SetError, match="belongs to subject"):
        similarity(after, sets)
    with pytest.raises(SetError, match="without a base"):
        similarity(before, sets, of="deltas")


def test_movement_by_hand(make_subject: Make) -> None:
    before = make_subject("llama")
    after = trained(before)
    sets = {
        "moved": NeuronSet.from_indices(before, indices={0: [3]}),
        "stayed": NeuronSet.from_indices(before, indices={0: [7, 9], 2: [1]}),
    }
    found = movement(before, after, sets, controls=5)
    assert found.change[0, 0].item() == pytest.approx(1)  # doubled
    assert found.cosine[0, 0].item() == pytest.approx(1)
    assert found.change[1, 0].item() == found.change[1, 2].item() == 0
    assert math.isnan(found.change[0, 1])
    assert found.control_change.shape == (2, 5, 3)
    back = movement_from_record(found.to_record())
    torch.testing.assert_close(back.change, found.change, equal_nan=True)
    with pytest.raises(SetError, match="two checkpoints of one model"):
        movement(before, make_subject("gpt2"), sets)


def test_output_directions(make_subject: Make) -> None:
    subject = make_subject("llama")
    layer = subject.model.model.layers[1]
    assert torch.equal(output_direction(subject, "gate", 1, 5), layer.mlp.down_proj.weight[:, 5])
    assert torch.equal(output_direction(subject, "attn", 1, 5), layer.self_attn.o_proj.weight[:, 5])
    with pytest.raises(SiteError, match="'k' do not write to the residual stream"):
        output_direction(subject, "k", 1, 5)
    with pytest.raises(SiteError, match="neuron 48 is outside 0 to 47"):
        output_direction(subject, "mlp", 1, 48)


def experts_model() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=32, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_an_offloaded_subject_has_the_same_similarity(make_subject: Make, tmp_path: Path, family: str) -> None:
    """Its weights stay where they are kept: they are read there, and none is left in memory."""
    whole = load_model((experts_model(), make_subject().tokenizer)) if family == "mixtral" else make_subject(family)
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    away = load_model(str(tmp_path), offload="disk")
    assert away.offloaded
    site = "expert" if family == "mixtral" else "mlp"
    sets = {
        "a": NeuronSet.from_indices(whole, site=site, indices={0: [0, 1, 2], 1: [3]}),
        "b": NeuronSet.from_indices(whole, site=site, indices={0: [5, 3], 1: [4]}),
    }
    expected, found = (similarity(subject, sets, controls=3) for subject in (whole, away))
    assert bool(expected.values_unshared[0, 1, :2].isfinite().all())
    for name in ("values", "values_unshared", "chance", "chance_low", "chance_high"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    assert all(p.device.type == "meta" for p in away.model.parameters())
    moved = movement(whole, away, sets, controls=1)
    assert moved.change[:, :2].abs().max() == 0


def alike_of(values: torch.Tensor) -> Similarity:
    num, layers = len(values), values.shape[2]
    nothing = torch.full(values.shape, torch.nan)
    groups = tuple("abcdefgh"[:num])
    return Similarity("mlp", "s", groups, torch.ones(num, layers).long(), values, values, nothing, nothing, nothing)


def test_gains_come_from_the_arrays_of_a_continual_run() -> None:
    matrix = torch.zeros((2, 2, 3, 3))
    matrix[0, 0] = torch.arange(9).reshape(3, 3) / 10
    matrix[0, 1] = torch.arange(9).reshape(3, 3) / 10 + 0.1
    result = SimpleNamespace(
        methods=("per-task", "ncft"), tasks=("a", "b", "c"), matrix=matrix, untouched=torch.tensor([0.1, 0.1, 0.2]),
        orders=torch.tensor([[0, 1, 2], [2, 1, 0]]),
    )  # fmt: skip
    found = measured_gains(result, method="per-task")
    # task a was learned alone at stage 0 of the first seed and at stage 2 of the second
    expected = (matrix[0, 0, 0] + matrix[0, 1, 2]) / 2 - result.untouched
    torch.testing.assert_close(found[0].float(), expected)
    with pytest.raises(SetError, match="never learned b first"):
        measured_gains(result, method="ncft")
    with pytest.raises(SetError, match="it has per-task, ncft"):
        measured_gains(result, method="joint")


def test_transfer_that_follows_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((7, 7, 2), generator=generator)
    values = values + values.transpose(0, 1)
    gains = 2 * values.mean(dim=2).double() - 1 + 0.01 * torch.rand((7, 7), generator=generator)
    found = transfer(alike_of(values), gains, draws=199)
    r, low, high, p, null_low, null_high = found.overall[0].tolist()
    assert 0.99 < r <= 1
    assert 0.9 < low <= high <= 1
    assert p == 1 / 200
    assert null_low < 0 < null_high
    column = [1, 2, 3, 4, 5, 6]
    x, y = values.mean(dim=2)[column, 0].double(), gains[column, 0]
    assert found.by_target[0, 0].item() == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]))
    assert found.by_layer.shape == (2, 2, 6)
    back = transfer_from_record(found.to_record())
    torch.testing.assert_close(back.overall, found.overall)
    with pytest.raises(SetError, match="the similarity has 7 groups"):
        transfer(alike_of(values), gains[:6, :6])
