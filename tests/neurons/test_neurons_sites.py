"""Sites by behaviour: what a model computes from a tap says whether it is what it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.sites import SITES, Site, Tap
from neuropolis.neurons.subject import Subject, load_model
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

GATED = {"mlp": 48, "gate": 48, "up": 48, "mlp_out": 32, "q": 32, "k": 16, "v": 16, "attn": 32, "attn_out": 32}
WIDE = {"mlp": 128, "up": 128, "mlp_out": 32, "q": 32, "k": 32, "v": 32, "attn": 32, "attn_out": 32}
WIDTHS: dict[str, dict[str, int]] = {
    "llama": GATED,
    "qwen3": GATED,
    "gemma2": GATED,
    "phi3": GATED,
    "gpt2": WIDE,
    "bloom": WIDE,
    "gpt_neox": WIDE | {"mlp": 48, "up": 48},
    "opt": WIDE | {"mlp": 48, "up": 48},
    "falcon": WIDE | {"k": 8, "v": 8},
}
ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "llama": silu,
    "qwen3": silu,
    "phi3": silu,
    "gemma2": lambda x: gelu(x, approximate="tanh"),
    "gpt2": lambda x: gelu(x, approximate="tanh"),
    "bloom": lambda x: gelu(x, approximate="tanh"),
    "gpt_neox": gelu,
    "falcon": gelu,
    "opt": relu,
}
IDS = torch.tensor([[5, 9, 14, 3, 22]])
HEAD = 8  # neurons of one head in every family of the tests


def falcon(tokenizer: Any, **shape: Any) -> Subject:
    config = transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, **shape
    )  # fmt: skip
    torch.manual_seed(0)
    return load_model((transformers.FalconForCausalLM(config).eval(), tokenizer))


@pytest.fixture(params=[*WIDTHS, "falcon, a key per query"])
def subject(request: pytest.FixtureRequest, make_subject: Any, tokenizer: Any) -> Subject:
    if request.param not in WIDTHS:
        return falcon(tokenizer, multi_query=False)
    subject = make_subject(request.param)
    with torch.no_grad():  # fresh biases are zero, which would hide a bias that is split wrongly
        for name, parameter in subject.model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return subject


def read(
    subject: Subject, site: str, edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None, ids: Tensor = IDS
) -> Tensor:
    """The neurons of a site in layer 0 [token, neuron], while other sites of layer 0 are edited (as [token, neuron])."""
    seen: list[Tensor] = []
    with ExitStack() as stack, torch.no_grad():
        for name, edit in (edits or {}).items():
            tap = subject.site(name).taps[0]
            stack.enter_context(
                tap.attached(lambda x, edit=edit: edit(x.reshape(-1, x.shape[-1]).clone()).reshape(x.shape))
            )
        stack.enter_context(
            subject.site(site).taps[0].attached(lambda x: seen.append(x.reshape(-1, x.shape[-1]).clone()))
        )
        subject.model(ids)
    return seen[0]


def changed(subject: Subject, site: str, neuron: int | None, token: int) -> set[tuple[int, int]]:
    """(token, head) of the attention output that differs when one neuron (or all) of a site moves at one token."""

    def move(x: Tensor) -> Tensor:
        x[token, slice(None) if neuron is None else neuron] += 3.0
        return x

    moved = (read(subject, "attn", {site: move}) - read(subject, "attn")).abs().reshape(len(IDS[0]), -1, HEAD)
    return {(int(t), int(h)) for t, h in (moved.amax(dim=-1) > 1e-5).nonzero()}


@pytest.mark.parametrize("family", WIDTHS)
def test_every_site_resolves_with_its_width_or_is_refused_by_name(make_subject: Any, family: str) -> None:
    subject = make_subject(family)
    for name in SITES:
        if name in WIDTHS[family]:
            site = subject.site(name)
            assert (site.name, site.width, site.num_layers) == (name, WIDTHS[family][name], 3)
            assert len({tap.path for tap in site.taps}) == 3
            assert subject.site(name) is site
        else:
            with pytest.raises(
                SiteError, match=f"site {name!r} is not in layer 0 of this .*; sites it may have: mlp, "
            ):
                subject.site(name)


def test_values_reach_the_output_of_the_first_token(subject: Subject) -> None:
    # a first token attends to itself alone: its output is its value, repeated for the query heads that share it
    value = read(subject, "v")[0].reshape(-1, HEAD)
    expected = value.repeat_interleave(4 // len(value), dim=0).flatten()
    torch.testing.assert_close(read(subject, "attn")[0], expected, rtol=1e-5, atol=1e-6)
    silent = read(subject, "attn", {"v": torch.zeros_like})
    assert silent.abs().max() == 0


def test_a_query_moves_its_own_token_and_head(subject: Subject) -> None:
    assert {token for token, _ in changed(subject, "q", None, 2)} == {2}
    for neuron in (0, HEAD + 3, 31):
        assert changed(subject, "q", neuron, 2) <= {(2, neuron // HEAD)}
    assert any(changed(subject, "q", neuron, 2) for neuron in range(HEAD))


def test_a_key_moves_its_own_token_and_later_ones(subject: Subject) -> None:
    width = subject.site("k").width
    share = 32 // width  # query heads that share a key head
    assert {token for token, _ in changed(subject, "k", None, 2)} == {2, 3, 4}
    assert changed(subject, "k", None, 0) & {(0, head) for head in range(4)} == set()
    for neuron in (0, width - 1):
        heads = {neuron // HEAD * share + i for i in range(share)}
        assert {head for _, head in changed(subject, "k", neuron, 1)} <= heads
    assert any(changed(subject, "k", neuron, 1) for neuron in range(HEAD))


@pytest.mark.parametrize("family", ACTIVATION)
def test_the_ffn_is_its_formula(make_subject: Any, family: str) -> None:
    subject = make_subject(family)
    up = read(subject, "up")
    expected = ACTIVATION[family](up)
    if "gate" in WIDTHS[family]:
        expected = ACTIVATION[family](read(subject, "gate")) * up
    torch.testing.assert_close(read(subject, "mlp"), expected, rtol=1e-4, atol=1e-5)
    tap = subject.site("mlp").taps[0]
    with torch.no_grad():
        out = tap.module(read(subject, "mlp"))
    torch.testing.assert_close(read(subject, "mlp_out"), out, rtol=1e-4, atol=1e-5)


def test_a_split_that_does_not_fit_is_refused(tokenizer: Any) -> None:
    # Falcon's new architecture keeps a group's queries, key and value together; the adapter takes them as three blocks
    fitting = falcon(tokenizer, new_decoder_architecture=True, multi_query=False, num_kv_heads=4)
    other = falcon(tokenizer, new_decoder_architecture=True, num_kv_heads=2)
    for name in ("q", "k", "v"):
        with pytest.raises(SiteError, match=rf"site {name!r}: the parts of .*query_key_value do not act as query"):
            fitting.site(name)
        with pytest.raises(SiteError, match="cannot take this FalconLinear of 64 outputs apart"):
            other.site(name)
    assert fitting.site("mlp").width == 128
    assert other.site("attn").width == 32


@pytest.mark.parametrize(("family", "names"), [("gpt2", "qkv"), ("phi3", "qkv"), ("phi3", ("gate", "up"))])
def test_swapped_parts_are_noticed(
    make_subject: Any, monkeypatch: pytest.MonkeyPatch, family: str, names: tuple[str, ...]
) -> None:
    from neuropolis.neurons import sites

    split = sites._split_channels
    for first, second in [(0, 1), (1, 2), (0, 2)][: 1 if len(names) == 2 else 3]:

        def swapped(*args: Any, first: int = first, second: int = second) -> list[Tensor]:
            parts = split(*args)
            parts[first], parts[second] = parts[second], parts[first]
            return parts

        monkeypatch.setattr(sites, "_split_channels", swapped)
        for name in names:
            with pytest.raises(SiteError, match="do not act as"):
                make_subject(family).site(name)


def test_a_split_must_cover_every_channel_once(make_subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("gpt2")
    attention: Any = subject.adapter.component_mapping["blocks"].submodules["attn"]
    split = attention.split_qkv_matrix
    monkeypatch.setattr(attention, "split_qkv_matrix", lambda owner: (split(owner)[0],) * 3)
    with pytest.raises(SiteError, match="split of Conv1D does not cover its 96 output channels exactly once"):
        subject.site("q")


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (lambda tap: Tap(tap.module, tap.path, tap.side, tap.width + 1), r"expected width 49, found width 48"),
        (
            lambda tap: Tap(torch.nn.Linear(48, 32), "spare", "in", 48),
            r"\(spare\): expected width 48, found no forward",
        ),
    ],
)
def test_a_tap_that_lies_is_found(
    make_subject: Any, monkeypatch: pytest.MonkeyPatch, lie: Callable[[Tap], Tap], found: str
) -> None:
    from neuropolis.neurons import subject as room

    resolve = room.resolve_site

    def lying(*args: Any, **named: Any) -> Site:
        site = resolve(*args, **named)
        return Site(site.name, (*site.taps[:1], lie(site.taps[1]), *site.taps[2:]))

    monkeypatch.setattr(room, "resolve_site", lying)
    subject = make_subject("llama")
    for _ in range(2):  # a refused site is not kept
        with pytest.raises(SiteError, match=rf"site 'mlp', layer 1 .*{found}"):
            subject.site("mlp")


def test_layers_of_different_widths_are_refused(make_subject: Any) -> None:
    subject = make_subject("llama")
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=40)
    subject.model.model.layers[1].mlp = type(subject.model.model.layers[1].mlp)(config)
    with pytest.raises(SiteError, match=r"site 'mlp' has layers of different widths \[40, 48\]"):
        subject.site("mlp")


def test_an_unknown_name_or_family_is_refused(make_subject: Any, tokenizer: Any) -> None:
    with pytest.raises(SiteError, match="unknown site 'ffn'; sites are mlp, gate, up, mlp_out, q, k, v, attn"):
        make_subject("llama").site("ffn")

    class Novel(torch.nn.Linear):
        config = transformers.LlamaConfig(hidden_size=8, num_attention_heads=2)

    with pytest.raises(SiteError, match=r"cannot find the layers of a Novel: .*load a decoder-only causal LM"):
        load_model((Novel(2, 2), tokenizer)).site("mlp")


def test_checking_leaves_no_hook_and_no_flag_behind(make_subject: Any) -> None:
    subject = make_subject("phi3")
    subject.model.train()
    for name in WIDTHS["phi3"]:
        subject.site(name)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in subject.model.modules())
    assert all(m.training for m in subject.model.modules())
    assert all(p.requires_grad and p.grad is None for p in subject.model.parameters())
