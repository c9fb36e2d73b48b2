"""LAPE: entropy and rules by hand, the published counts, and where the sign of an activation is read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.entropy import activation_sign, activity_bar, entropy, lape_masks, lape_scores, lape_sets
from neuropolis.attribution.presets import preset
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet


def test_entropy_by_hand() -> None:
    p = torch.tensor([[[0.4, 0.5, 0.0, 0.6]], [[0.4, 0.0, 0.0, 0.2]]])
    expected = [math.log(2), 0.0, 0.0, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert entropy(p)[0].tolist() == pytest.approx(expected)


def test_the_bar_is_the_authors_order_statistic() -> None:
    p = torch.arange(40.0).reshape(2, 2, 10) / 40
    assert activity_bar(p) == pytest.approx(37 / 40)  # the 38th smallest of 40
    assert activity_bar(p, 0.5) == pytest.approx(19 / 40)


def test_rules_by_hand() -> None:
    # 2 groups, 10 neurons, bar 0.8: the 16th smallest of 20 numbers is 0.5, so that p must be above 0.5
    p = torch.tensor([
        [0.9, 0.8, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0],
        [0.9, 0.1, 0.0, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0],
    ])[:, None, :]  # fmt: skip
    assert activity_bar(p, 0.8) == pytest.approx(0.5)
    # entropies are log 2, small, 0 (but not above the bar: rule 1), small, ..., 0 (silent: rule 1)
    two = lape_masks(p, top=0.2, bar=0.8)
    assert two[:, 0].nonzero().tolist() == [[0, 1], [1, 3]]
    three = lape_masks(p, top=0.3, bar=0.8)  # neuron 0 comes last and belongs to both
    assert three[:, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 3]]
    with pytest.raises(SetError, match="top is 4 neurons, but only 3 are above the bar"):
        lape_masks(p, top=0.4, bar=0.8)
    assert lape_scores(p, bar=0.8)[:, 0, 0].tolist() == pytest.approx([0, 0], abs=1e-7)
    assert lape_scores(p, bar=0.8)[1, 0].nonzero().flatten().tolist() in ([3], [0, 3])


@pytest.mark.parametrize(
    ("layers", "width", "count"),
    [  # the union of the released files: LLaMA-2 7B, 13B, 70B, BLOOM, Mistral, OPT, Phi-2
        (32, 11008, 3523), (40, 13824, 5530), (80, 28672, 22938), (30, 16384, 4915), (32, 14336, 4588), (32, 16384, 5243),
        (32, 10240, 3277),
    ],
)  # fmt: skip
def test_the_union_is_the_published_one_percent(layers: int, width: int, count: int) -> None:
    if layers * width > 400_000:  # the large ones by their number alone, to keep the test quick
        assert round(0.01 * layers * width) == count
        return
    p = torch.rand((2, layers, width), generator=torch.Generator().manual_seed(0))
    assert int(lape_masks(p).any(dim=0).sum()) == count


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 4), st.integers(30, 90), st.integers(0, 10_000))
def test_the_union_is_exactly_the_share_and_membership_follows_the_bar(
    groups: int, layers: int, width: int, seed: int
) -> None:
    p = torch.rand((groups, layers, width), generator=torch.Generator().manual_seed(seed)).double()
    masks = lape_masks(p, top=0.03)
    union = masks.any(dim=0)
    assert int(union.sum()) == max(1, round(0.03 * layers * width))
    assert torch.equal(masks, union & (p > activity_bar(p)))
    left = (p > activity_bar(p)).any(dim=0) & ~union
    if bool(left.any()):
        assert float(entropy(p)[union].max()) <= float(entropy(p)[left].min())
    # the method's score says the same
    scores = lape_scores(p)
    assert not bool((scores[p <= activity_bar(p)] != 0).any())
    best = scores.amax(dim=0).flatten().topk(int(union.sum())).values.min()
    assert torch.equal(scores.amax(dim=0) >= best, union)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.rand(1, 2, 30), "expected p .* of two or more"),
        (torch.rand(2, 2, 30) - 0.5, "expected p between 0 and 1"),
        (torch.full((2, 2, 30), torch.nan), "expected p between 0 and 1"),
        (torch.full((2, 2, 30), 0.5), "only 0 are above the bar"),
    ],
)
def test_what_is_no_probability_is_refused(p: torch.Tensor, message: str) -> None:
    with pytest.raises(SetError, match=message):
        lape_masks(p)


def test_shares_out_of_range() -> None:
    p = torch.rand(2, 2, 50)
    for top in (0, 1.5, True):
        with pytest.raises(SetError, match="expected a share of the neurons"):
            lape_masks(p, top=top)
    with pytest.raises(SetError, match="expected a quantile between 0 and 1"):
        lape_masks(p, bar=1.0)


def test_sets_come_from_p_alone() -> None:
    values = torch.rand(2, 2, 60)
    scores = Scores("gate", "s", ("a", "b"), values, values, values, torch.tensor([3, 3]), method="taylor")
    with pytest.raises(SetError, match="scores are of method 'taylor'; score with 'active'"):
        lape_sets(scores)
    sets = lape_sets(
        Scores("gate", "s", ("a", "b"), values, values, values, scores.counts, method="active"), site="mlp"
    )
    assert {one.site for one in sets.values()} == {"mlp"}
    assert sets["a"].origin["read_at"] == "gate"
    assert len(sets["a"] | sets["b"]) == 1


@pytest.mark.parametrize(
    ("family", "place"),
    [("llama", "gate"), ("qwen3", "gate"), ("gemma2", "gate"), ("phi3", "gate"), ("gpt2", "mlp"), ("bloom", "mlp"), ("opt", "mlp"),
     ("gpt_neox", "mlp"), ("falcon", "mlp")],
)  # fmt: skip
def test_the_sign_is_that_of_the_activation_function(
    make_subject: Any, corpus: Corpus, family: str, place: str
) -> None:
    """p counted by hand with a hook on the activation function itself, padding and all."""
    subject = make_subject(family)
    assert activation_sign(subject, subject.site("mlp")).name == place
    names = ("act", "act_fn", "activation_fn", "gelu_impl")
    functions = [module for name, module in subject.model.named_modules() if name.split(".")[-1] in names]
    assert len(functions) == 3
    seen: list[torch.Tensor] = []
    handles = [f.register_forward_hook(lambda _m, _a, out: seen.append(out.detach())) for f in functions]
    try:
        found = attribute(subject, corpus, method="active", site=place, max_tokens=1)
    finally:
        for handle in handles:
            handle.remove()
    layers = [torch.cat([x.reshape(-1, x.shape[-1]) for x in seen[layer::3]]) for layer in range(3)]
    tokens = torch.tensor([sum(len(e.prompt) + len(e.answer) for e in corpus if e.group == g) for g in corpus.groups])
    if family == "phi3":  # SiLU runs on the gate half alone
        assert layers[0].shape[1] == 48
    by_hand = torch.stack([(x > 0).float().sum(dim=0) for x in layers])
    ours = (found.values * tokens[:, None, None]).sum(dim=0)
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-3)


def test_lape_on_mlp_reads_the_gate(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    found = attribute(subject, corpus, method="lape")
    assert found.site == "mlp"
    p = attribute(subject, corpus, method="active", site="gate").signed
    assert torch.equal(found.signed, lape_scores(p))
    wrong = attribute(subject, corpus, method="active", site="mlp").signed
    assert not torch.equal(found.signed, lape_scores(wrong))
    assert bool(found.error.isnan().all())


def test_a_gate_that_cannot_be_found_is_an_error(make_subject: Any) -> None:
    subject = make_subject("llama")

    def hidden(name: str) -> Any:
        if name == "gate":
            raise SiteError("hidden")
        return type(subject).site(subject, name)

    class Blind:
        site = staticmethod(hidden)
        quiet, model, device = subject.quiet, subject.model, subject.device

    with pytest.raises(SiteError, match="cannot find where this FFN's activation function is applied"):
        activation_sign(Blind(), subject.site("mlp"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("family", "function"), [("llama", "act_fn"), ("gpt2", "act"), ("bloom", "gelu_impl")])
def test_silencing_the_unit_is_the_authors_deactivation(make_subject: Any, family: str, function: str) -> None:
    """They put 0 behind the activation function; a set of site mlp gives the same logits."""
    subject = make_subject(family)
    ids = torch.arange(4, 16)[None]
    acts = [m for n, m in subject.model.named_modules() if n.split(".")[-1] == function]
    chosen = {0: [1, 7], 2: [30]}

    def silence(layer: int) -> Any:
        def hook(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
            return out.index_fill(-1, torch.tensor(chosen[layer]), 0)

        return hook

    with torch.no_grad():
        plain = subject.model(ids).logits
        handles = [acts[layer].register_forward_hook(silence(layer)) for layer in chosen]
        theirs = subject.model(ids).logits
        for handle in handles:
            handle.remove()
        with intervene(subject, NeuronSet.from_indices(subject, indices=chosen)):
            ours = subject.model(ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


def test_the_rate_is_read_where_lape_reads_it(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    rate = attribute(subject, corpus, method="rate")
    assert torch.equal(rate.signed, attribute(subject, corpus, method="active", site="gate").signed)
    assert lape_sets(rate, top=0.05) == preset("lape", subject, corpus, top=0.05).sets


def test_a_share_that_rounds_above_one_is_one() -> None:
    """A mean of ones in float32 may be 1.0000001; more than that is no probability."""
    p = torch.rand(3, 2, 40, generator=torch.Generator().manual_seed(0))
    p[1, 0, 3] = 1
    rounded = p.clone()
    rounded[1, 0, 3] = 1 + torch.finfo(torch.float32).eps
    assert float(rounded.max()) > 1
    assert torch.equal(lape_masks(rounded, top=0.1), lape_masks(p, top=0.1))
    assert torch.equal(lape_scores(rounded), lape_scores(p))
    for wrong in (1.01, -0.1, torch.nan):
        with pytest.raises(SetError, match="found a number outside or NaN"):
            lape_masks(p.index_fill(0, torch.tensor(0), wrong), top=0.1)
