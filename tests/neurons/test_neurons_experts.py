"""Routed experts as a site: the units of tiny random models of each family against a loop over experts written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import transformers
from neuropolis.analysis.parameters import neuron_parameters
from neuropolis.neurons.edits import _scaled, export_silenced
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.experts import by_expert, expert_weights, input_channels
from neuropolis.neurons.interventions import KINDS, Reference, intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Tap
from neuropolis.neurons.subject import Subject, load_model
from torch import Tensor
from torch.nn.functional import silu

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL = {"moe_intermediate_size": 24, "intermediate_size": 40}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "n_routed_experts": 5,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"intermediate_size": 24, "num_local_experts": 5}),
    "qwen3_moe": ("Qwen3Moe", {**SMALL, "num_experts": 5, "head_dim": 8, "decoder_sparse_step": 1}),
    "olmoe": ("Olmoe", {"intermediate_size": 24, "num_experts": 5}),
    "gpt_oss": ("GptOss", {"intermediate_size": 24, "num_local_experts": 5, "head_dim": 8}),
    "qwen2_moe": ("Qwen2Moe", {**SMALL, "num_experts": 5, "shared_expert_intermediate_size": 20}),
    "deepseek_v3": ("DeepseekV3", {**SMALL, **LATENT}),
}
EXPERTS, UNITS = 5, 24
IDS = torch.tensor([[5, 9, 14, 3, 22, 40, 7], [31, 8, 2, 60, 11, 9, 50]])


def build(family: str, dtype: torch.dtype = torch.float32, **shape: Any) -> Any:
    stem, own = FAMILIES[family]
    config = getattr(transformers, f"{stem}Config")(**{**SHAPE, **own, **shape})
    torch.manual_seed(0)
    model = getattr(transformers, f"{stem}ForCausalLM")(config).to(dtype).eval()
    if dtype == torch.float64:  # which transformers' default, grouped_mm, does not compute
        model.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh routers and biases are zero in some families, which would hide a wrong one
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype) * 0.15)
    return model


@pytest.fixture
def make(tokenizer: Any) -> Callable[..., Subject]:
    return lambda family, dtype=torch.float32, **shape: load_model((build(family, dtype, **shape), tokenizer))


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest, make: Any) -> Subject:
    return make(request.param)


@contextmanager
def by_name(subject: Subject, name: str) -> Iterator[None]:
    """The model with another implementation of its experts, through transformers' own switch."""
    kept = subject.model.config._experts_implementation
    subject.model.set_experts_implementation(name)
    yield
    subject.model.set_experts_implementation(kept)


def logits(subject: Subject, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return subject.model(ids, use_cache=False).logits


def inputs(subject: Subject, layer: int) -> list[Tensor]:
    """What a layer's experts are called with: hidden states, chosen experts, weights."""
    seen: list[Tensor] = []
    module = subject.site("expert").taps[layer].module
    handle = module.register_forward_pre_hook(lambda _module, args: seen.extend(x.clone() for x in args))
    with by_name(subject, "eager"):
        logits(subject)
    handle.remove()
    return seen


def units_by_hand(module: Any, token: Tensor, expert: int) -> Tensor:
    """The units of one expert for one token, from the fused weights as the family stores them."""
    weight = module.gate_up_proj[expert]
    if not hasattr(module, "gate_up_proj_bias"):
        gate, up = (weight @ token).chunk(2)
        return silu(gate) * up
    both = token @ weight + module.gate_up_proj_bias[expert]
    gate, up = both[0::2].clamp(max=module.limit), both[1::2].clamp(-module.limit, module.limit)
    return (up + 1) * gate * torch.sigmoid(module.alpha * gate)


def seen_units(subject: Subject, layer: int) -> dict[tuple[int, int], Tensor]:
    """{(token row, expert): units} that a tap hands out."""
    seen: dict[tuple[int, int], Tensor] = {}

    def note(x: Tensor, expert: int, tokens: Tensor) -> None:
        assert len(x) == len(tokens) > 0
        for row, token in zip(x, tokens.tolist(), strict=True):
            assert (token, expert) not in seen
            seen[token, expert] = row.clone()

    with subject.site("expert").taps[layer].attached_routed(note):
        logits(subject)
    return seen


def test_a_site_has_the_units_of_all_experts_in_every_layer(subject: Subject) -> None:
    site = subject.site("expert")
    assert (site.num_layers, site.width) == (2, EXPERTS * UNITS)
    assert [(tap.routed, tap.units) for tap in site.taps] == [(EXPERTS, UNITS)] * 2
    assert all(dict(subject.model.named_modules())[tap.path] is tap.module for tap in site.taps)


def test_an_edit_sees_the_routed_tokens_of_each_expert_and_no_other(subject: Subject) -> None:
    for layer in range(2):
        tap = subject.site("expert").taps[layer]
        hidden, chosen, _ = inputs(subject, layer)
        seen = seen_units(subject, layer)
        assert set(seen) == {(t, int(e)) for t, row in enumerate(chosen) for e in row}
        for (token, expert), x in seen.items():
            expected = units_by_hand(tap.module, hidden[token], expert)
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_the_whole_view_is_zero_where_a_token_is_not_routed(subject: Subject) -> None:
    seen: list[Tensor] = []
    with subject.site("expert").taps[1].attached(lambda x: seen.append(x.clone())):
        logits(subject)
    whole = torch.zeros(IDS.numel(), EXPERTS, UNITS)
    for (token, expert), x in seen_units(subject, 1).items():
        whole[token, expert] = x
    assert torch.equal(seen[0], whole.flatten(1))


def test_nothing_changes_bit_for_bit_against_the_eager_loop(subject: Subject) -> None:
    with by_name(subject, "eager"):
        plain = logits(subject)
    for kind in (Tap.attached_routed, Tap.attached):
        for same in (None, "itself"):
            with ExitStack() as stack:
                for tap in subject.site("expert").taps:
                    stack.enter_context(kind(tap, lambda x, *_, same=same: x if same else None))
                assert torch.equal(logits(subject), plain)
    torch.testing.assert_close(logits(subject), plain, rtol=1e-4, atol=1e-4)


def test_bf16_is_the_eager_loop_too(make: Any) -> None:
    for family in ("mixtral", "gpt_oss"):
        subject = make(family, torch.bfloat16)
        with by_name(subject, "eager"):
            plain = logits(subject)
        with subject.site("expert").taps[0].attached_routed(lambda x, expert, tokens: x), by_name(subject, "eager"):
            assert torch.equal(logits(subject), plain)


def hooks(subject: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_hook_and_no_flag_is_left_after_an_exception(make: Any, error: type[BaseException]) -> None:
    subject = make("mixtral")
    before = logits(subject)
    flag = subject.model.config._experts_implementation
    tap = subject.site("expert").taps[0]

    def fail(x: Tensor, expert: int, tokens: Tensor) -> None:
        raise error("stop")

    with tap.attached_routed(fail):
        with pytest.raises(error, match="stop"):
            logits(subject)
        if error is ValueError:  # torch calls no hook after an interrupt
            assert subject.model.config._experts_implementation == flag
    assert hooks(subject) == 0
    assert subject.model.config._experts_implementation == flag
    assert torch.equal(logits(subject), before)


def test_only_the_tapped_layer_leaves_its_own_implementation(make: Any) -> None:
    subject = make("mixtral")
    taps = subject.site("expert").taps
    running: list[str] = []

    def note(module: Any, _args: Any) -> None:
        running.append(module.config._experts_implementation)

    with taps[0].attached_routed(lambda x, expert, tokens: None):
        handles = [tap.module.register_forward_pre_hook(note) for tap in taps]
        logits(subject)
    for handle in handles:
        handle.remove()
    assert running == ["neuropolis_routed", "grouped_mm"]


def test_edits_of_one_tap_follow_each_other_and_leave_in_any_order(make: Any) -> None:
    subject = make("mixtral")
    before = logits(subject)
    tap = subject.site("expert").taps[0]
    seen: list[float] = []
    first, second, reader = ExitStack(), ExitStack(), ExitStack()
    first.enter_context(tap.attached_routed(lambda x, expert, tokens: torch.ones_like(x)))
    second.enter_context(tap.attached(lambda x: x * 3))
    reader.enter_context(tap.attached_routed(lambda x, expert, tokens: seen.append(float(x.max()))))
    logits(subject)
    assert set(seen) == {3.0}
    first.close()
    tripled = logits(subject)
    second.close()
    with by_name(subject, "eager"):
        assert not torch.allclose(tripled, logits(subject))
    reader.close()
    assert hooks(subject) == 0
    assert torch.equal(logits(subject), before)


def chosen_set(subject: Subject) -> NeuronSet:
    """Some units of experts 0, 2 and 4."""
    generator = torch.Generator().manual_seed(3)
    units = {e: torch.randperm(UNITS, generator=generator)[:9].tolist() for e in (0, 2, 4)}
    return NeuronSet.from_experts(subject, indices={0: units, 1: units})


def test_zero_is_what_the_exported_checkpoint_computes(subject: Subject, tmp_path: Any) -> None:
    neurons = chosen_set(subject)
    plain = logits(subject)
    weights = {name: p.clone() for name, p in subject.model.named_parameters()}
    with intervene(subject, neurons, kind="zero"):
        silenced = logits(subject)
    assert not torch.allclose(silenced, plain, atol=1e-3)
    folder = export_silenced(subject, neurons, tmp_path / "edited")
    assert all(torch.equal(p, weights[name]) for name, p in subject.model.named_parameters())
    edited = load_model(str(folder), dtype=torch.float32)
    torch.testing.assert_close(logits(edited), silenced, rtol=1e-4, atol=1e-4)


def test_silencing_every_unit_leaves_what_the_experts_add_without_them(subject: Subject) -> None:
    every = ~NeuronSet.from_experts(subject, indices={})
    out: list[Tensor] = []
    tap = subject.site("expert").taps[0]
    with intervene(subject, every):
        handle = tap.module.register_forward_hook(lambda _module, _args, output: out.append(output))
        logits(subject)
        handle.remove()
    _, chosen, weights = inputs(subject, 0)
    module: Any = tap.module
    bias = module.down_proj_bias[chosen] if module.has_bias else torch.zeros(*chosen.shape, 32)
    torch.testing.assert_close(out[0], (bias * weights[..., None]).sum(dim=1), rtol=1e-5, atol=1e-6)


def test_each_kind_puts_its_value_on_the_routed_tokens(make: Any) -> None:
    subject = make("olmoe")
    neurons = chosen_set(subject)
    site = subject.site("expert")
    shape = (2, site.width)
    generator = torch.Generator().manual_seed(0)
    reference = Reference(
        "expert", subject.fingerprint, "toy", torch.randn(shape, generator=generator), torch.ones(shape),
        torch.randn((2, 6, site.width), generator=generator), torch.full((2, EXPERTS), 4),
    )  # fmt: skip
    plain = seen_units(subject, 0)
    for kind in [kind for kind in KINDS if kind != "keep"]:  # which is about all others
        with intervene(subject, neurons, kind=kind, factor=2.0, reference=reference):
            edited = seen_units(subject, 0)
        for (token, expert), x in plain.items():
            flat = torch.arange(UNITS) + expert * UNITS
            inside = neurons.mask[0, flat]
            new = edited[token, expert]
            assert torch.equal(new[~inside], x[~inside])
            expected = {"zero": x * 0, "scale": x * 2, "mean": reference.mean[0, flat]}.get(kind)
            if expected is not None:
                assert torch.equal(new[inside], expected[inside])
            if kind == "resample" and inside.any():
                rows = reference.pool[0, :, flat][:, inside]
                assert int((rows == new[inside]).all(dim=1).nonzero()) < 4
            if kind == "noise" and inside.any():
                assert not torch.allclose(new[inside], x[inside])


def test_an_expert_that_the_reference_never_reached_is_named(make: Any) -> None:
    subject = make("mixtral")
    width = EXPERTS * UNITS
    sampled = torch.tensor([[4, 4, 0, 4, 4], [4, 4, 4, 4, 4]])
    zeros = torch.zeros(2, width)
    reference = Reference("expert", subject.fingerprint, "toy", zeros, zeros, torch.zeros(2, 4, width), sampled)
    neurons = chosen_set(subject)
    for kind in ("mean", "resample", "noise"):
        with (
            pytest.raises(SetError, match="'toy' was routed to expert 2 of layer 0, which the set has 9 neurons of"),
            intervene(subject, neurons, kind=kind, reference=reference),
        ):
            pass
    assert hooks(subject) == 0


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_the_taylor_score_of_a_unit_is_the_finite_difference_of_its_scale(make: Any, family: str) -> None:
    subject = make(family, torch.float64)
    tap = subject.site("expert").taps[-1]
    norm = subject.model.model.norm  # the last rounding to float32 that transformers has on the way to the logits
    norm.forward = lambda x: norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    units: list[tuple[Tensor, int]] = []

    def loss(edit: Callable[[Tensor, int, Tensor], Tensor | None]) -> Tensor:
        with tap.attached_routed(edit):
            out = subject.model(IDS, use_cache=False).logits
        return torch.nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    def keep(x: Tensor, expert: int, tokens: Tensor) -> Tensor:
        units.append((x, expert))
        x.retain_grad()
        return x

    loss(keep).backward()
    scores = {expert: (x * x.grad).sum(dim=0).detach() for x, expert in units if x.grad is not None}
    felt = {expert: taylor for expert, taylor in scores.items() if taylor.abs().max() > 1e-4}
    assert len(felt) >= 3  # an expert that only the last tokens chose is not felt by the loss
    for expert, taylor in felt.items():
        unit = int(taylor.abs().argmax())

        def scaled(x: Tensor, e: int, tokens: Tensor, factor: float, at: tuple[int, int] = (expert, unit)) -> Tensor:
            factors = torch.ones(UNITS, dtype=x.dtype)
            factors[at[1]] = factor if e == at[0] else 1.0
            return x * factors

        with torch.no_grad():
            up, down = (loss(lambda *given, f=f, scaled=scaled: scaled(*given, f)) for f in (1 + 1e-4, 1 - 1e-4))
        torch.testing.assert_close(taylor[unit], (up - down) / 2e-4, rtol=1e-6, atol=0.0)


def test_taylor_of_the_routed_units_is_that_of_the_whole_view(make: Any) -> None:
    """Activation times gradient, summed by example: per expert with token rows, against the dense view."""
    subject = make("qwen3_moe", torch.float64)
    tap = subject.site("expert").taps[0]
    parts: list[tuple[Tensor, int, Tensor]] = []
    whole: list[Tensor] = []

    def keep(x: Tensor, expert: int, tokens: Tensor) -> Tensor:
        parts.append((x, expert, tokens))
        x.retain_grad()
        return x

    with tap.attached_routed(keep):
        subject.model(IDS, labels=IDS, use_cache=False).loss.backward()

    def keep_whole(x: Tensor) -> Tensor:
        whole.append(x)
        x.retain_grad()
        return x

    with tap.attached(keep_whole):
        subject.model(IDS, labels=IDS, use_cache=False).loss.backward()
    scores = torch.zeros(len(IDS), EXPERTS * UNITS, dtype=torch.float64)
    for x, expert, tokens in parts:
        assert x.grad is not None
        columns = scores[:, expert * UNITS : (expert + 1) * UNITS]
        columns.index_add_(0, tokens // IDS.shape[1], (x * x.grad).detach())
    assert whole[0].grad is not None
    expected = (whole[0] * whole[0].grad).detach().reshape(*IDS.shape, -1).sum(dim=1)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(scores, expected)


def test_a_neurons_parameters_are_what_its_unit_is_made_of(subject: Subject) -> None:
    module: Any = subject.site("expert").taps[1].module
    before = seen_units(subject, 1)
    rows = neuron_parameters(subject, "expert", 1).reshape(EXPERTS, UNITS, 3, 32)
    expert, unit = next(iter(before))[1], 4
    for part, fused in enumerate(input_channels(module)):
        weight = expert_weights(module)[0]
        assert torch.equal(weight[expert, fused[unit]], rows[expert, unit, part])
        kept = weight[expert, fused[unit]].clone()
        with torch.no_grad():
            weight[expert, fused[unit]] *= 3
            after = seen_units(subject, 1)
            weight[expert, fused[unit]] = kept
        moved = {
            (e, int(u)) for (t, e), x in before.items() for u in ((after[t, e] - x).abs() > 1e-5).nonzero().flatten()
        }
        assert moved == {(expert, unit)}
    hidden, _, _ = inputs(subject, 1)
    gate, up, _ = rows[expert, unit]
    if not module.has_bias:
        expected = silu(hidden @ gate) * (hidden @ up)
        for (token, e), x in before.items():
            if e == expert:
                torch.testing.assert_close(x[unit], expected[token], rtol=1e-4, atol=1e-5)
    silent = NeuronSet.from_experts(subject, indices={1: {expert: [unit]}})
    with _scaled(subject, silent, 0.0):
        assert neuron_parameters(subject, "expert", 1).reshape(EXPERTS, UNITS, 3, 32)[expert, unit, 2].abs().max() == 0
    assert torch.equal(neuron_parameters(subject, "expert", 1), rows.reshape(EXPERTS * UNITS, -1))


def test_it_works_inside_generate(make: Any) -> None:
    subject = make("mixtral")
    neurons = ~NeuronSet.from_experts(subject, indices={})
    calls = []
    with (
        intervene(subject, neurons),
        subject.site("expert").taps[0].attached_routed(lambda x, *_: calls.append(float(x.abs().max()))),
    ):
        subject.model.generate(IDS[:1], max_new_tokens=3, do_sample=False)
    assert len(calls) >= 3
    assert set(calls) == {0.0}


@pytest.mark.filterwarnings("ignore")  # TransformerLens's own
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_bridge_is_looked_through(make: Any, family: str, tokenizer: Any, tmp_path: Any) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    subject = make(family)
    neurons = chosen_set(subject)
    with intervene(subject, neurons):
        expected = logits(subject)
    tokenizer.save_pretrained(tmp_path)
    named = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = build(family)
    wrapped = load_model(build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=named))
    assert [tap.path for tap in wrapped.site("expert").taps] == [tap.path for tap in subject.site("expert").taps]
    with intervene(wrapped, neurons):
        torch.testing.assert_close(logits(wrapped), expected, rtol=1e-4, atol=1e-4)


def test_ffn_sites_point_to_the_experts(subject: Subject) -> None:
    for name in ("mlp", "gate", "up", "mlp_out"):
        with pytest.raises(
            SiteError, match=f"site {name!r}: the FFN of layer 0 .* mixture of experts; use site 'expert'"
        ):
            subject.site(name)


def test_partly_dense_models_are_refused_with_their_layers(make: Any) -> None:
    for shape in ({"mlp_only_layers": [0, 2]}, {"decoder_sparse_step": 2}):
        subject = make("qwen3_moe", num_hidden_layers=4, **shape)
        with pytest.raises(SiteError, match="layers 0, 2 of this Qwen3MoeForCausalLM have no routed experts"):
            subject.site("expert")
    with pytest.raises(SiteError, match="layers 0 of this DeepseekV3ForCausalLM have no routed experts"):
        make("deepseek_v3", first_k_dense_replace=1).site("expert")


def test_a_model_without_experts_is_refused(make_subject: Any) -> None:
    subject = make_subject("llama")
    with pytest.raises(SiteError, match="site 'expert' is not in layer 0 of this LlamaForCausalLM"):
        subject.site("expert")
    with pytest.raises(SiteError, match=r"layers\.0\.mlp\.down_proj has no routed experts"):
        subject.site("mlp").taps[0].attached_routed(lambda x, expert, tokens: None).__enter__()


def test_experts_that_compute_something_else_are_refused(make: Any) -> None:
    subject = make("mixtral")
    experts = subject.model.model.layers[1].mlp.experts
    experts.act_fn = torch.nn.SiLU()
    experts._apply_gate = lambda both: both[..., :UNITS] * both[..., UNITS:]  # not what the model's own loop does
    with pytest.raises(SiteError, match="do more than project, gate and project back"):
        subject.site("expert")
    assert hooks(subject) == 0


def test_quantised_experts_are_refused(make: Any) -> None:
    subject = make("mixtral")
    experts = subject.model.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(SiteError, match=r"layers\.0\.mlp\.experts is quantised \(torch\.float8_e4m3fn\)"):
        subject.site("expert")


def test_sets_convert_between_flat_and_expert_indices(make: Any, make_subject: Any) -> None:
    subject = make("mixtral")
    pairs = {0: {1: [0, 23], 4: [5]}, 1: {0: [7]}}
    neurons = NeuronSet.from_experts(subject, indices=pairs)
    assert neurons.to_indices() == {0: [24, 47, 101], 1: [7]}
    assert neurons.to_experts(subject) == pairs
    assert {e: u.tolist() for e, u in by_expert(torch.tensor([24, 47, 101]), units=UNITS).items()} == pairs[0]
    for expert, unit in ((5, 0), (-1, 0), (0, 24), (0, -1)):
        with pytest.raises(
            SetError, match=f"unit {unit} of expert {expert} of layer 0 is outside 5 experts of 24 units"
        ):
            NeuronSet.from_experts(subject, indices={0: {expert: [unit]}})
    dense = make_subject("llama")
    with pytest.raises(SetError, match="site 'mlp' has no experts"):
        NeuronSet.from_indices(dense, indices={0: [1]}).to_experts(dense)
