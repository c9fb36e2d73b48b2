"""Slices of routed experts, in the families that transformers keeps with three-dimensional weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.delta_files import load_delta
from neuropolis.finetune.entries import Entry
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.expert_slices import ExpertPart
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.finetune.trainable import trainable_slice
from neuropolis.finetune.training import answer_loss, finetune
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model
from tiny_families import EXPERTS, ROUTED, UNITS, build, same_bits, some_units, state, tiny_corpus
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IDS = torch.arange(3, 11)[None]
WAYS = ("eager", "batched_mm", "grouped_mm")


def loss_of(subject: Subject) -> Tensor:
    encoded = encode_corpus(subject, tiny_corpus())
    return answer_loss(subject, collate(encoded, list(range(len(encoded)))))


def experts(subject: Subject, layer: int) -> Any:
    return subject.site("expert").taps[layer].module


def as_stored(module: Any, tensor: Tensor, name: str) -> Tensor:
    """A weight of the experts as [expert, out, in], whatever the family."""
    return tensor.transpose(1, 2) if module.is_transposed and not name.endswith("bias") else tensor


def members(subject: Subject, layer: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """By hand, where every number of the slice stands: a weight's name and an index into [expert, out, in]."""
    module = experts(subject, layer)
    for expert, units in some_units(subject).to_experts(subject).get(layer, {}).items():
        for unit in units:
            for row in (2 * unit, 2 * unit + 1) if not module.is_concatenated else (unit, UNITS + unit):
                yield "gate_up_proj", (expert, row)
                if module.has_bias:
                    yield "gate_up_proj_bias", (expert, row)
            yield "down_proj", (expert, slice(None), unit)


def inside(subject: Subject) -> dict[tuple[int, str], Tensor]:
    """A mask over every weight of the experts, true where it belongs to the slice."""
    masks = {}
    for layer in range(2):
        module = experts(subject, layer)
        for name, parameter in module.named_parameters(recurse=False):
            masks[layer, name] = torch.zeros_like(as_stored(module, parameter, name), dtype=torch.bool)
        for name, place in members(subject, layer):
            masks[layer, name][place] = True
    return masks


@pytest.mark.parametrize("family", ROUTED)
def test_zeroed_slice_is_a_silenced_set(family: str) -> None:
    subject = build(family)
    neurons = some_units(subject)
    with torch.no_grad(), intervene(subject, neurons):
        silenced = subject.model(IDS).logits
    for entry in slice_entries(slice_parts(subject, neurons)):
        entry.write(torch.zeros(entry.shape))
    with torch.no_grad():
        zeroed = subject.model(IDS).logits
    torch.testing.assert_close(zeroed, silenced, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(zeroed, build(family).model(IDS).logits, atol=1e-6)


@pytest.mark.parametrize("family", ROUTED)
def test_parts_and_shapes(family: str) -> None:
    subject = build(family)
    parts = slice_parts(subject, some_units(subject))
    assert all(isinstance(part, ExpertPart) for part in parts)
    paths = [path for path, _ in subject.model.named_parameters() if path.endswith(("gate_up_proj", "down_proj"))]
    assert [part.path for part in parts] == [path for path in paths if ".experts." in path]
    shapes = [entry.shape for entry in slice_entries(parts)]
    rows = [[12, 16], [12]] if family == "gpt_oss" else [[12, 16]]
    fewer = [[4, 16], [4]] if family == "gpt_oss" else [[4, 16]]
    assert shapes == [*rows, [16, 6], *fewer, [16, 2]]


@pytest.mark.parametrize("family", ROUTED)
@pytest.mark.parametrize(("way", "dtype"), [(w, torch.float64) for w in WAYS[:2]] + [(w, torch.float32) for w in WAYS])
def test_gradients_are_those_of_the_full_weights(family: str, way: str, dtype: torch.dtype) -> None:
    subject, reference = build(family, dtype), build(family, dtype)
    for one in (subject, reference):
        one.model.set_experts_implementation(way)
    reference.model.requires_grad_(True)
    loss_of(reference).backward()
    masks = inside(reference)
    with trainable_slice(subject, some_units(subject)) as trainable:
        loss_of(subject).backward()
        for entry, master in zip(trainable.entries, trainable.masters, strict=True):
            assert master.grad is not None
            entry.write(master.grad)  # the gradient, in the place of what it is the gradient of
        for (layer, name), mask in masks.items():
            grad = getattr(experts(reference, layer), name).grad
            expected = as_stored(experts(reference, layer), grad, name)
            found = as_stored(experts(subject, layer), getattr(experts(subject, layer), name), name)
            tolerance = 1e-10 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=tolerance)
            assert not mask.any() or float(expected[mask].abs().max()) > 1e-4


@pytest.mark.parametrize("family", ROUTED)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_computing_keeps_its_bits(family: str, way: str) -> None:
    subject = build(family)
    subject.model.set_experts_implementation(way)
    plain = subject.model(IDS).logits
    with trainable_slice(subject, some_units(subject)):
        trained = subject.model(IDS).logits
        assert trained.requires_grad
        assert torch.equal(trained, plain)
        with torch.no_grad():
            assert torch.equal(subject.model(IDS).logits, plain)


@pytest.mark.parametrize("family", ROUTED)
@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
def test_only_the_slice_changes(family: str, dtype: torch.dtype, mixed: bool) -> None:
    """Under AdamW with weight decay, clipping and mixed precision; every entry of the slice changes."""
    subject = build(family, dtype)
    before, masks = state(subject), inside(subject)
    with trainable_slice(subject, some_units(subject)) as trainable:
        running = torch.optim.AdamW(trainable.masters, lr=0.05, weight_decay=0.5)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = loss_of(subject)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable.masters, 0.5)
            running.step()
            running.zero_grad()
        subject.model(IDS)
        trained = state(subject)
    assert same_bits(state(subject), before)
    names = {id(parameter): name for name, parameter in subject.model.named_parameters()}
    for (layer, short), mask in masks.items():
        module = experts(subject, layer)
        name = names[id(getattr(module, short))]
        old, new = (as_stored(module, weights.pop(name), short) for weights in (before, trained))
        assert same_bits({"": old[~mask]}, {"": new[~mask]})
        assert not mask.any() or float((old != new)[mask].float().mean()) > 0.9
    assert same_bits(before, trained)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_under_autocast_are_those_of_the_full_weights(family: str, way: str) -> None:
    subject, reference = build(family), build(family)
    for one in (subject, reference):
        one.model.set_experts_implementation(way)
    reference.model.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(reference)
    loss.backward()
    masks = inside(reference)
    with trainable_slice(subject, some_units(subject)) as trainable:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(subject)
        loss.backward()
        for entry, master in zip(trainable.entries, trainable.masters, strict=True):
            assert master.grad is not None
            assert master.grad.dtype == torch.float32
            entry.write(master.grad)
        for (layer, name), mask in masks.items():
            grad, found = (getattr(experts(one, layer), name) for one in (reference, subject))
            expected = as_stored(experts(reference, layer), grad.grad, name)[mask]
            found = as_stored(experts(subject, layer), found, name)[mask]
            assert (found - expected).norm() <= 0.02 * expected.norm()


def test_numbers_and_optimizer_state_are_the_slices() -> None:
    for family, one in (("olmoe", 3 * 16), ("gpt_oss", 3 * 16 + 2)):
        subject = build(family)
        with trainable_slice(subject, some_units(subject)) as trainable:
            optimizer = torch.optim.AdamW(trainable.masters)
            loss_of(subject).backward()
            optimizer.step()
            held = sum(v.numel() for s in optimizer.state.values() for name, v in s.items() if name != "step")
        assert trainable.num_parameters == 8 * one
        assert held == 2 * 8 * one


class Shapes(TorchDispatchMode):
    """Notes the size of everything that is computed, which views of the weights are not."""

    largest = 0

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in subject.model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in self.weights:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_no_gradient_of_an_experts_size_is_made(way: str) -> None:
    subject = build("mixtral")
    subject.model.set_experts_implementation(way)
    neurons = NeuronSet.from_experts(subject, indices={1: {e: [2] for e in range(EXPERTS)}})
    with trainable_slice(subject, neurons):
        loss = subject.model(IDS[:, :2]).logits.sum()
        with Shapes(subject) as computed:
            loss.backward()
    assert computed.largest < 16 * UNITS


@pytest.mark.parametrize("way", WAYS)
def test_an_expert_that_no_token_chose_has_a_gradient_of_zero(way: str) -> None:
    subject = build("mixtral")
    subject.model.set_experts_implementation(way)
    token = IDS[:, :1]
    chosen: list[Tensor] = []
    handle = experts(subject, 0).register_forward_pre_hook(lambda _m, args: chosen.append(args[1]))
    subject.model(token)
    handle.remove()
    other = next(e for e in range(EXPERTS) if e not in chosen[0].flatten().tolist())
    one = int(chosen[0].flatten()[0])
    for units, zero in (({other: [3]}, True), ({other: [3], one: [3]}, False)):
        with trainable_slice(subject, NeuronSet.from_experts(subject, indices={0: units})) as trainable:
            subject.model(token).logits.square().sum().backward()
            for entry, master in zip(trainable.entries, trainable.masters, strict=True):
                assert master.grad is not None
                by_unit = master.grad.sum(dim=1 - entry.dim)
                assert bool((by_unit == 0).all()) == zero


def test_gradients_add_up_over_forwards() -> None:
    subject = build("gpt_oss", torch.float64)
    with trainable_slice(subject, some_units(subject)) as trainable:
        loss_of(subject).backward()
        once = [master.grad.clone() for master in trainable.masters if master.grad is not None]
        (loss_of(subject) + loss_of(subject)).backward()
        for master, grad in zip(trainable.masters, once, strict=True):
            assert master.grad is not None
            assert torch.allclose(master.grad, 3 * grad)


def test_an_intervention_inside_the_experts_is_differentiated() -> None:
    """Columns of silenced units have no gradient; others have that of the dense weights under the same intervention."""
    subject, reference = build("qwen3_moe", torch.float64), build("qwen3_moe", torch.float64)
    silent = NeuronSet.from_experts(subject, indices={0: {0: [1], 1: [3]}})
    reference.model.requires_grad_(True)
    with intervene(reference, silent):
        loss_of(reference).backward()
    expected = experts(reference, 0).down_proj.grad
    with trainable_slice(subject, some_units(subject)) as trainable, intervene(subject, silent):
        loss_of(subject).backward()
        found = trainable.masters[1].grad
    assert found is not None
    by_hand = torch.stack([expected[e, :, u] for e, u in [(0, 1), (0, 5), (1, 0), (1, 3), (1, 11), (3, 7)]], dim=1)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-10)
    assert (found[:, [0, 3]] == 0).all()
    assert float(found.abs().max()) > 1e-4


def test_everything_comes_back_after_an_exception() -> None:
    subject = build("gpt_oss")
    neurons, before = some_units(subject), state(subject)
    handle = experts(subject, 1).register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("in the way")))

    def interrupted() -> None:
        with trainable_slice(subject, neurons) as trainable:
            trainable.masters[0].data.add_(1)
            subject.model(IDS)

    with pytest.raises(RuntimeError, match="in the way"):
        interrupted()
    handle.remove()
    assert same_bits(state(subject), before)
    for layer in range(2):
        assert not {"forward", "gate_up_proj", "down_proj", "gate_up_proj_bias"} & set(experts(subject, layer).__dict__)


def test_a_way_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def einsum(self: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("ti,eoi->to", hidden, self.gate_up_proj[:, :16])

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "odd", einsum)
    subject = build("mixtral")
    neurons = some_units(subject)
    subject.model.set_experts_implementation("odd")
    with (
        trainable_slice(subject, neurons),
        pytest.raises(TuneError, match=r"the experts compute with .*set_experts_implementation\('grouped_mm'\)"),
    ):
        subject.model(IDS)


@pytest.fixture
def tuned(corpus: Corpus) -> tuple[Subject, Delta]:
    subject = build("gpt_oss")
    return subject, finetune(subject, corpus, some_units(subject), lr=0.02, steps=12)


def test_finetune_learns_with_the_units_of_experts(tuned: tuple[Subject, Delta], corpus: Corpus) -> None:
    subject, delta = tuned
    assert delta.num_parameters == 8 * (3 * 16 + 2)
    assert delta.history[-1] < 0.9 * delta.history[0]
    with torch.no_grad(), delta.applied(subject):
        assert loss_of(subject) < 0.9 * build_loss()


def build_loss() -> float:
    with torch.no_grad():
        return float(loss_of(build("gpt_oss")))


def test_a_delta_comes_back_from_disk_merges_and_unmerges(tuned: tuple[Subject, Delta], tmp_path: Path) -> None:
    subject, delta = tuned
    before = state(subject)
    loaded = load_delta(delta.save(tmp_path / "delta"), subject=subject)
    assert loaded.neurons == delta.neurons
    assert same_bits(dict(loaded.values), dict(delta.values))
    merged = loaded.merge(subject)
    changed = [name for name, tensor in state(merged).items() if not torch.equal(tensor, before[name])]
    assert {name.rpartition(".")[2] for name in changed} == {"gate_up_proj", "gate_up_proj_bias", "down_proj"}
    assert same_bits(state(loaded.unmerge(merged)), before)
    assert loaded.unmerge(merged).fingerprint == subject.fingerprint
    with pytest.raises(DeltaError, match="belongs to subject"):
        loaded.check(build("mixtral"))


@pytest.mark.parametrize("family", ROUTED)
def test_an_exported_checkpoint_loads_with_from_pretrained(family: str, corpus: Corpus, tmp_path: Path) -> None:
    subject = build(family)
    delta = finetune(subject, corpus, some_units(subject), lr=0.02, steps=2)
    delta.export(subject, tmp_path / "tuned")
    loaded = load_model(str(tmp_path / "tuned"), dtype=torch.float32, device="cpu")
    with delta.applied(subject), torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, subject.model(IDS).logits)
        assert same_bits(state(loaded), state(subject))


def test_deltas_of_experts_stack_and_scale(corpus: Corpus) -> None:
    from neuropolis.finetune.algebra import stack_deltas

    subject = build("mixtral")
    one = NeuronSet.from_experts(subject, indices={0: {0: [1], 3: [7]}})
    two = NeuronSet.from_experts(subject, indices={0: {0: [0, 1], 1: [2]}, 1: {2: [2]}})
    a, b = (finetune(subject, corpus, neurons, lr=0.02, steps=2) for neurons in (one, two))
    with pytest.raises(DeltaError, match="share 1 expert neurons"):
        stack_deltas(subject, [a, b])
    last, apart = stack_deltas(subject, [a, b], overlap="last"), stack_deltas(subject, [b, a], overlap="sum")
    with b.applied(subject):
        only_b = state(subject)
    with a.applied(subject), b.applied(subject):
        both = state(subject)
    with last.applied(subject):
        assert same_bits(state(subject), both)
    with apart.applied(subject):
        summed = state(subject)
    down, plain = "model.layers.0.mlp.experts.down_proj", state(subject)
    shared = (0, slice(None), 1)
    with a.applied(subject):
        only_a = state(subject)
    change = (only_a[down] - plain[down])[shared] + (only_b[down] - plain[down])[shared]
    torch.testing.assert_close((summed[down] - plain[down])[shared], change)
    assert torch.equal(summed[down][0, :, 0], only_b[down][0, :, 0])
    assert torch.equal(summed[down][3, :, 7], only_a[down][3, :, 7])
    with stack_deltas(subject, [a, -a], overlap="sum").applied(subject):
        for name, tensor in state(subject).items():
            torch.testing.assert_close(tensor, plain[name], rtol=1e-6, atol=1e-7)


def test_peft_and_others_that_cannot_say_it_refuse(tuned: tuple[Subject, Delta], tmp_path: Path) -> None:
    from neuropolis.finetune.planting import Beds
    from neuropolis.finetune.slices import linear_parts

    subject, delta = tuned
    with pytest.raises(DeltaError, match=r"no form for single units .* delta\.export"):
        delta.export_peft(subject, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(SiteError, match="planting is for projections of one matrix"):
        Beds(subject, {"north": some_units(subject)})
    with pytest.raises(SiteError, match=r"experts\.gate_up_proj of .* holds the weights of all experts"):
        linear_parts(subject, some_units(subject), what="LoRA")


def test_bad_sets_are_refused() -> None:
    subject = build("mixtral")
    empty = NeuronSet.from_experts(subject, indices={})
    with pytest.raises(TuneError, match="has none of the 128 expert neurons"), trainable_slice(subject, empty):
        pass
    with pytest.raises(SetError, match="belongs to subject"), trainable_slice(build("olmoe"), some_units(subject)):
        pass
    neurons = some_units(subject)
    module = experts(subject, 1)
    module.down_proj.requires_grad_(False)
    module.down_proj.data = module.down_proj.data.to(torch.int8)
    with pytest.raises(SiteError, match=r"layers\.1\.mlp\.experts\.down_proj is quantised"):
        slice_parts(subject, neurons)


def test_an_entry_over_two_dimensions_reads_and_writes_in_place() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    flat = Entry("w", tensor, 0, torch.tensor([1, 4]), 3)
    assert flat.shape == [2, 4]
    assert torch.equal(flat.read(), tensor.reshape(6, 4)[[1, 4]])
    turned = Entry("w", tensor.permute(2, 0, 1), 1, torch.tensor([0, 5]), 3)
    assert turned.shape == [4, 2]
    turned.write(torch.zeros(4, 2))
    assert bool((tensor[0, 0] == 0).all() and (tensor[1, 2] == 0).all())
    assert int((tensor == 0).sum()) == 8
