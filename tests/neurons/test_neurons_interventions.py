"""Interventions: by hand, in generate, with seeds, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import batches, encode_corpus, forward
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.interventions import KINDS, Reference, intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from torch import Tensor

IDS = torch.tensor([[5, 9, 14, 3, 22, 7]]).repeat(4, 1) + torch.arange(4)[:, None]


def logits(subject: Subject, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return subject.model(ids).logits


def everything(subject: Subject, site: str = "mlp") -> NeuronSet:
    place = subject.site(site)
    return NeuronSet(site, subject.fingerprint, torch.ones(place.num_layers, place.width, dtype=torch.bool))


def some(subject: Subject, site: str = "mlp") -> NeuronSet:
    return NeuronSet.from_indices(subject, site=site, indices={0: [1, 4, 11], 2: [0]})


def activations(subject: Subject, layer: int = 0, site: str = "mlp") -> Tensor:
    """[token, neuron] of one layer over all tokens, as the model goes on with them."""
    seen: list[Tensor] = []
    tap = subject.site(site).taps[layer]
    with tap.attached(lambda x: seen.append(x.reshape(-1, x.shape[-1]).clone())):
        logits(subject)
    return seen[0]


def reference(subject: Subject, site: str = "mlp", **changed: Any) -> Reference:
    place, dice = subject.site(site), torch.Generator().manual_seed(0)
    shape = (place.num_layers, place.width)
    parts: dict[str, Any] = {
        "site": site, "subject": subject.fingerprint, "name": "toy",
        "mean": torch.randn(shape, generator=dice), "std": torch.rand(shape, generator=dice) + 0.5,
        "pool": torch.randn((shape[0], 5, shape[1]), generator=dice),
    }  # fmt: skip
    return Reference(**{**parts, **changed})


@contextmanager
def output_of_every_ffn(subject: Subject, value: Tensor) -> Iterator[None]:
    """The whole FFN module of every layer of a GPT-2 returns one constant, whatever comes in."""
    hooks = [
        block.mlp.register_forward_hook(lambda _module, _args, out, layer=layer: value[layer].expand_as(out))
        for layer, block in enumerate(subject.model.transformer.h)
    ]
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "keep"])
def test_ablating_nothing_changes_no_bit(make_subject: Any, kind: Any) -> None:
    subject = make_subject("llama")
    plain = logits(subject)
    nothing = NeuronSet.from_indices(subject, indices={})
    with intervene(subject, nothing, kind=kind, reference=reference(subject)):
        assert torch.equal(logits(subject), plain)


def test_ablating_every_ffn_neuron_leaves_its_bias(make_subject: Any) -> None:
    subject = make_subject("gpt2")
    biases = torch.randn(3, 32)
    with torch.no_grad():
        for block, bias in zip(subject.model.transformer.h, biases, strict=True):
            block.mlp.c_proj.bias.copy_(bias)
    with output_of_every_ffn(subject, biases):
        expected = logits(subject)
    with intervene(subject, everything(subject)):
        torch.testing.assert_close(logits(subject), expected, rtol=1e-6, atol=1e-6)
    assert (logits(subject) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_zero_is_the_column_of_the_projection_gone(make_subject: Any, family: str) -> None:
    subject, other = make_subject(family), make_subject(family)
    neurons = some(subject)
    with torch.no_grad():
        for layer, tap in enumerate(other.site("mlp").taps):
            weight = tap.module.weight.T if family != "gpt2" else tap.module.weight  # [neuron, out]
            for neuron in neurons.to_indices().get(layer, []):
                weight[neuron] = 0
    with intervene(subject, neurons):
        torch.testing.assert_close(logits(subject), logits(other), rtol=1e-5, atol=1e-5)
    assert (logits(subject) - logits(other)).abs().max() > 1e-3


@pytest.mark.parametrize(("site", "first_row"), [("gate", 0), ("up", 48)])
def test_scaling_half_of_a_fused_projection_by_hand(make_subject: Any, site: str, first_row: int) -> None:
    subject, other = make_subject("phi3"), make_subject("phi3")
    neurons = some(subject, site)
    with torch.no_grad():
        for layer, members in neurons.to_indices().items():
            for neuron in members:
                other.model.model.layers[layer].mlp.gate_up_proj.weight[first_row + neuron] *= 3
    with intervene(subject, neurons, kind="scale", factor=3):
        torch.testing.assert_close(logits(subject), logits(other), rtol=1e-5, atol=1e-5)
    assert (logits(subject) - logits(other)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_by_hand(make_subject: Any, kind: Any) -> None:
    subject = make_subject("llama")
    neurons, source, before = some(subject), reference(subject), activations(subject)
    index = neurons.indices(0)
    with intervene(subject, neurons, kind=kind, factor=3, reference=source, seed=1):
        after, untouched = activations(subject), activations(subject, 1).shape
    assert untouched == after.shape
    rest = ~neurons.mask[0]
    if kind == "keep":  # the rest at its mean, the set as it was
        index, rest = rest.nonzero().flatten(), neurons.mask[0]
    assert torch.equal(after[:, rest], before[:, rest])
    new, old = after[:, index], before[:, index]
    if kind == "zero":
        assert new.abs().max() == 0
    elif kind == "scale":
        assert torch.equal(new, old * 3)
    elif kind in ("mean", "keep"):
        assert torch.equal(new, source.mean[0, index].expand_as(new))
    elif kind == "resample":
        drawn = (new[:, None] == source.pool[0][:, index]).all(dim=-1)  # [token, sample]
        assert drawn.sum(dim=1).tolist() == [1] * len(new)
        assert len(drawn.nonzero()[:, 1].unique()) == 5
    else:
        steps = (new - old) / (3 * source.std[0, index])
        assert 0.7 < float(steps.std()) < 1.3
        assert abs(float(steps.mean())) < 0.5
        assert len(steps.unique()) == steps.numel()


@pytest.mark.parametrize("kind", ["resample", "noise"])
def test_what_is_drawn_follows_the_seed(make_subject: Any, kind: Any) -> None:
    subject = make_subject("llama")

    def run(seed: int) -> Tensor:
        with intervene(subject, some(subject), kind=kind, reference=reference(subject), seed=seed):
            return logits(subject)

    state = torch.random.get_rng_state()
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    with intervene(subject, some(subject), kind=kind, reference=reference(subject)):
        assert not torch.equal(logits(subject), logits(subject))  # drawn anew for every position


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_its_dtype(make_subject: Any, kind: Any) -> None:
    subject = make_subject("llama", torch.bfloat16)
    with intervene(subject, some(subject), kind=kind, reference=reference(subject)):
        found = logits(subject)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


def test_generate_runs_under_an_intervention(make_subject: Any) -> None:
    subject, ids, seen = make_subject("llama"), IDS[:1], []

    def generate() -> Tensor:
        return subject.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8, do_sample=False,
            use_cache=True, pad_token_id=0,
        )  # fmt: skip

    plain = generate()
    with intervene(subject, everything(subject)):
        with subject.site("mlp").taps[0].attached(lambda x: seen.append((x.shape[1], float(x.abs().max())))):
            cached = generate()
        greedy = ids
        for _ in range(8):  # the same without a cache, one whole forward for each token
            scores = logits(subject, greedy)[:, -1]
            scores[:, 2] = -torch.inf
            greedy = torch.cat([greedy, scores.argmax(dim=-1, keepdim=True)], dim=1)
    assert seen == [(6, 0.0)] + [(1, 0.0)] * 7
    assert torch.equal(cached, greedy)
    assert not torch.equal(cached, plain)
    assert torch.equal(generate(), plain)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupted])
def test_hooks_are_gone_after_an_error(make_subject: Any, error: type[BaseException]) -> None:
    subject = make_subject("llama")
    plain = logits(subject)

    def stop(_x: Tensor) -> None:
        raise error

    with pytest.raises(error), intervene(subject, everything(subject)):
        raise error
    with pytest.raises(error), intervene(subject, everything(subject)), subject.site("mlp").taps[2].attached(stop):
        logits(subject)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in subject.model.modules())
    assert torch.equal(logits(subject), plain)


def test_interventions_stack(make_subject: Any) -> None:
    subject = make_subject("llama")
    first, second = (NeuronSet.from_indices(subject, indices={0: [i], 1: [i + 1]}) for i in (3, 7))
    with intervene(subject, first | second):
        both = logits(subject)
    with intervene(subject, first), intervene(subject, second):
        torch.testing.assert_close(logits(subject), both, rtol=0, atol=0)


def test_what_does_not_fit_is_refused(make_subject: Any) -> None:
    subject, other = make_subject("llama"), make_subject("llama", seed=1)
    neurons = some(subject)

    def refuse(message: str, neurons: NeuronSet = neurons, **arguments: Any) -> None:
        with pytest.raises(SetError, match=message), intervene(subject, neurons, **arguments):
            pytest.fail("the block ran")

    refuse("the set belongs to subject", neurons=some(other))
    refuse("unknown kind 'silence'; kinds are zero, mean, scale, resample, noise, keep", kind="silence")
    refuse("unknown on='questions'; interventions stand on both, prompt, answer", on="questions")
    refuse("no set to intervene on", neurons=())
    for kind in ("mean", "resample", "noise"):
        refuse(
            rf"kind '{kind}' needs a reference: npl.reference\(subject, corpus, site='mlp'\)", kind=kind
        )  # fmt: skip
    wrong, foreign = reference(subject, site="gate"), replace(reference(subject), subject="x")
    refuse("the reference is of site 'gate', .* the set is of site 'mlp'", kind="mean", reference=wrong)
    refuse("the reference is of site 'mlp', subject x;", kind="mean", reference=foreign)


def test_keeping_nothing_is_silencing_everything(make_subject: Any) -> None:
    subject = make_subject("llama")
    nothing = NeuronSet.from_indices(subject, indices={})
    with intervene(subject, everything(subject)):
        silenced = logits(subject)
    with intervene(subject, nothing, kind="keep"):
        assert torch.equal(logits(subject), silenced)
    with intervene(subject, everything(subject), kind="keep"):
        kept = logits(subject)
    assert torch.equal(kept, logits(subject))


def test_sets_of_several_sites_act_together(make_subject: Any) -> None:
    subject = make_subject("llama")
    mlp, more, heads = some(subject), NeuronSet.from_indices(subject, indices={1: [5]}), some(subject, "attn")
    with intervene(subject, mlp | more), intervene(subject, heads):
        nested = logits(subject)
    with intervene(subject, [mlp, heads, more]):
        assert torch.equal(logits(subject), nested)
    by_site = {"mlp": reference(subject), "attn": reference(subject, "attn")}
    with intervene(subject, [mlp, heads], kind="mean", reference=by_site):
        together = logits(subject)
    one = intervene(subject, mlp, kind="mean", reference=by_site["mlp"])
    with one, intervene(subject, heads, kind="mean", reference=by_site["attn"]):
        assert torch.equal(logits(subject), together)
    refused = pytest.raises(SetError, match=r"needs a reference: .*site='attn'")
    with refused, intervene(subject, [mlp, heads], kind="mean", reference={"mlp": by_site["mlp"]}):
        pytest.fail("the block ran")


def seen_in_generate(subject: Subject, on: Any, **how: Any) -> list[tuple[int, bool]]:
    """Of every forward: its tokens, and whether the neurons of layer 0 were all zero."""
    seen: list[tuple[int, bool]] = []
    look = subject.site("mlp").taps[0].attached
    with intervene(subject, everything(subject), on=on), look(lambda x: seen.append((x.shape[1], not bool(x.any())))):
        subject.model.generate(
            IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, min_new_tokens=3, do_sample=False,
            pad_token_id=0, **how,
        )  # fmt: skip
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_generate_on_prompt_and_on_answer(make_subject: Any, family: str) -> None:
    subject = make_subject(family)
    assert seen_in_generate(subject, "both") == [(6, True), (1, True), (1, True)]
    assert seen_in_generate(subject, "prompt") == [(6, True), (1, False), (1, False)]
    assert seen_in_generate(subject, "answer") == [(6, False), (1, True), (1, True)]


def test_without_a_cache_the_answer_cannot_be_told(make_subject: Any) -> None:
    subject = make_subject("llama")
    with pytest.raises(SetError, match="use_cache=True"):
        seen_in_generate(subject, "answer", use_cache=False)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in subject.model.modules())
    assert len(seen_in_generate(subject, "both", use_cache=False)) == 3


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_scored_corpus_says_where_its_answers_are(make_subject: Any, corpus: Corpus, padding_side: Any) -> None:
    subject = make_subject("llama")
    encoded = encode_corpus(subject, corpus)
    for batch in batches(encoded, max_tokens=150, padding_side=padding_side):
        changed: dict[str, Tensor] = {}
        for on in ("prompt", "answer"):
            look = subject.site("mlp").taps[0].attached
            note = partial(lambda x, on, changed: changed.update({on: (x == 0).all(dim=-1)}), on=on, changed=changed)
            with intervene(subject, everything(subject), on=on), look(note):  # pyright: ignore[reportArgumentType]
                forward(subject, batch)
        for place, row in enumerate(batch.rows.tolist()):
            real, one = batch.real[place], encoded[row]
            assert changed["answer"][place, real].tolist() == [i >= one.start for i in range(len(one.ids) - 1)]
            assert changed["prompt"][place, real].tolist() == [i < one.start for i in range(len(one.ids) - 1)]
