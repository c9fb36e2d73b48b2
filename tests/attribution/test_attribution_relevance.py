"""Relevance: the rules by hand, unchanged forward values, conservation, and families that the rules do not fit."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.relevance_rules import find_rules, frozen_norm, identity_rule, passing
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.subject import Subject
from torch import nn

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "phi3", "falcon"]


class ShiftedGain(nn.Module):
    """Gemma's RMSNorm: the gain is one plus the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 2, width, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


def test_norm_rule_by_hand() -> None:
    # RMSNorm without epsilon at (3, 4): sigma = 5 / sqrt(2); frozen, the gradient of output 0 is (gain / sigma, 0)
    norm = nn.RMSNorm(2, eps=1e-30).double()
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    line = frozen_norm(norm, x, norm(x).detach(), path="norm")
    torch.testing.assert_close(line.detach(), norm(x).detach(), rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad(line[0, 0], x)
    torch.testing.assert_close(gradient, torch.tensor([[2**0.5 / 5, 0.0]], dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize("kind", ["layer", "rms", "shifted"])
def test_norms_become_linear_in_their_input(kind: str, width: int) -> None:
    norm: Any = {"layer": nn.LayerNorm(width), "rms": nn.RMSNorm(width), "shifted": ShiftedGain(width)}[kind].double()
    torch.manual_seed(0)
    if kind != "shifted":
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    x = torch.randn(2, 3, width, dtype=torch.float64, requires_grad=True)
    y = norm(x).detach()
    line = frozen_norm(norm, x, y, path="norm")
    bias = norm.bias.detach() if kind == "layer" else 0.0
    torch.testing.assert_close(line.detach() + bias, y, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(line.sum(), x)
    gain = norm.weight.detach() + (kind == "shifted")
    middle = x.detach() - x.detach().mean(-1, keepdim=True) if kind == "layer" else x.detach()
    sigma = (middle.square().mean(-1, keepdim=True) + (getattr(norm, "eps", None) or 1e-6)).sqrt()
    expected = gain - gain.mean() if kind == "layer" else gain
    if kind == "rms":
        sigma = middle.square().mean(-1, keepdim=True).add(torch.finfo(torch.float64).eps).sqrt()
    torch.testing.assert_close(gradient, (expected / sigma).expand_as(gradient), rtol=1e-9, atol=1e-9)


def test_what_is_no_norm_is_refused() -> None:
    gate = nn.Sequential(nn.RMSNorm(6), nn.Sigmoid())
    x = torch.randn(2, 6, requires_grad=True)
    with pytest.raises(SiteError, match=r"blocks\.0\.ln1 \(Sequential\) is neither a LayerNorm nor an RMSNorm"):
        frozen_norm(gate, x, gate(x).detach(), path="blocks.0.ln1")


def test_identity_and_half_rule_by_hand() -> None:
    # silu(2) / 2 = sigmoid(2), and not silu'(2) = sigmoid(2) (1 + 2 (1 - sigmoid(2)))
    x = torch.tensor([2.0, 0.0], requires_grad=True)
    y = nn.functional.silu(x).detach()
    (gradient,) = torch.autograd.grad(identity_rule(x, y).sum(), x)
    assert gradient.tolist() == [pytest.approx(torch.sigmoid(torch.tensor(2.0)).item()), 0.0]
    (half,) = torch.autograd.grad(passing(x, share=0.5).sum(), x)
    assert half.tolist() == [0.5, 0.5]
    assert not passing(x, share=0.0).requires_grad


@pytest.mark.parametrize("attention", ["pattern", "softmax"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_values_are_the_same_bit_for_bit(make_subject: Any, family: str, attention: Any) -> None:
    subject = make_subject(family)
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = subject.model(input_ids=ids).logits
    with subject.quiet(), find_rules(subject, attention).attached(leaf_embeddings(subject)):
        under = subject.model(input_ids=ids).logits
    assert under.requires_grad
    assert torch.equal(plain, under.detach())


def leaf_embeddings(subject: Subject, kept: list[torch.Tensor] | None = None) -> Any:
    """A context in which the input embeddings are the leaves of the graph."""
    from neuropolis.neurons.sites import Tap

    def leaf(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        if kept is not None:
            kept.append(x)
        return x.clone()

    return Tap(subject.model.get_input_embeddings(), "embedding", "out", 32).attached(leaf)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_relevance_of_the_embeddings_sums_to_the_logit(make_subject: Any, family: str) -> None:
    """Without biases the network is linear in its embeddings once quotients, sigmas and patterns are constants."""
    subject = make_subject(family, torch.float64)
    ids, kept = torch.tensor([[1, 9, 20, 33, 7]]), []
    with subject.quiet(), find_rules(subject, "pattern").attached(leaf_embeddings(subject, kept)):
        logits = subject.model(input_ids=ids).logits[0, -1]
        target = logits[5] - logits[11]
    (gradient,) = torch.autograd.grad(target, kept[0])
    whole = float(target.detach())
    assert float((gradient * kept[0]).sum().detach()) == pytest.approx(whole, rel=1e-5)
    plain = []
    with subject.quiet(), leaf_embeddings(subject, plain):
        logits = subject.model(input_ids=ids).logits[0, -1]
    (slope,) = torch.autograd.grad(logits[5] - logits[11], plain[0])
    assert abs(float((slope * plain[0]).sum().detach()) - whole) > 1e-2 * abs(whole)


def test_in_the_last_layer_only_the_last_norm_differs_from_taylor(make_subject: Any, corpus: Corpus) -> None:
    """With the last norm's sigma frozen, g' = W_out^T (gain / sigma) W_U^T dF/dlogits: written out by hand."""
    subject = make_subject("llama", torch.float64)
    example = Corpus(tuple(Example(id=str(i), group="g", prompt=corpus[0].prompt, answer=".") for i in range(2)))
    scores = attribute(subject, example, method="relp", keep_rows=True)
    ids = torch.tensor([subject.tokenizer(corpus[0].prompt)["input_ids"]])
    kept = {}
    model = subject.model
    handles = [
        model.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _m, a: kept.update(w=a[0][0, -1])),
        model.model.norm.register_forward_pre_hook(lambda _m, a: kept.update(x=a[0][0, -1])),
    ]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    for handle in handles:
        handle.remove()
    target = subject.tokenizer.convert_tokens_to_ids(".")
    slope = torch.softmax(logits, -1) - torch.nn.functional.one_hot(torch.tensor(target), 64)
    sigma = (kept["x"].square().mean() + model.model.norm.variance_epsilon).sqrt()
    back = (slope @ model.lm_head.weight) * model.model.norm.weight / sigma
    expected = -(back @ model.model.layers[2].mlp.down_proj.weight) * kept["w"]
    torch.testing.assert_close(scores.signed[0, 2], expected.detach(), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(scores.signed[0, 2], attribute(subject, example).signed[0, 2], rtol=1e-2)


def test_gate_and_up_share_the_relevance_of_their_product(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama", torch.float64)
    for family in ("llama", "phi3"):
        subject = make_subject(family, torch.float64)
        found = attribute(subject, corpus, methods=("relp",), site=("mlp", "gate", "up"))
        whole = found["relp/mlp"].signed
        assert float(whole.abs().max()) > 1e-3
        torch.testing.assert_close(found["relp/gate"].signed, whole / 2, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found["relp/up"].signed, whole / 2, rtol=1e-6, atol=1e-9)
    plain = attribute(make_subject("gpt2", torch.float64), corpus, methods=("relp",), site=("mlp", "up"))
    torch.testing.assert_close(plain["relp/up"].signed, plain["relp/mlp"].signed, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_padding_change_nothing(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    alone = attribute(subject, corpus, method="relp", max_tokens=1)
    together = attribute(subject, corpus, method="relp", padding_side="left", options={"attention": "pattern"})
    assert float(alone.values.abs().max()) > 1e-3
    torch.testing.assert_close(together.signed, alone.signed, rtol=1e-4, atol=1e-5)
    softmax = attribute(subject, corpus, method="relp", options={"attention": "softmax"})
    assert not torch.allclose(softmax.signed, alone.signed, rtol=1e-2)
    torch.testing.assert_close(attribute(subject, corpus, method="lrp").signed, softmax.signed, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(softmax.signed[:, -1], alone.signed[:, -1], rtol=1e-4, atol=1e-5)  # no attention above


def test_sites_of_the_attention(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(ValueError, match="site 'q' has no relevance while the attention pattern is a constant"):
        attribute(subject, corpus, method="relp", site="q")
    scores = attribute(subject, corpus, method="relp", site="q", options={"attention": "softmax"})
    assert float(scores.values.abs().max()) > 0
    values = attribute(subject, corpus, methods=("relp",), site=("v", "attn"))
    # o = pattern @ v, linear in v: what the heads' outputs have, their values have
    heads = values["relp/attn"].signed.sum(dim=2)
    torch.testing.assert_close(values["relp/v"].signed.sum(dim=2), heads, rtol=1e-3, atol=1e-5)


def test_everything_is_put_back_after_an_exception(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("gemma2")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()]
    plain = attribute(subject, corpus)

    class Interrupted(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        attribute(subject, corpus, method="relp", progress=stop, max_tokens=50)
    with pytest.raises(Interrupted), find_rules(subject, "pattern").attached(nullcontext()):
        raise Interrupted
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()] == hooks
    assert torch.equal(attribute(subject, corpus).signed, plain.signed)


def test_families_without_a_rule_are_named(make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("llama")
    mlp = subject.model.model.layers[1].mlp
    monkeypatch.setattr(mlp, "forward", lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * (1 + mlp.up_proj(x))))
    with pytest.raises(SiteError, match=r"FFN of layer 1 of this LlamaForCausalLM is not act\(gate\) \* up \(up acts"):
        attribute(subject, corpus, method="relp")
    subject = make_subject("llama")
    norm = subject.model.model.layers[1].input_layernorm
    monkeypatch.setattr(norm, "forward", torch.tanh)
    with pytest.raises(SiteError, match=r"blocks\.1\.ln1 \(LlamaRMSNorm\) is neither a LayerNorm nor an RMSNorm"):
        attribute(subject, corpus, method="relp")
    with pytest.raises(ValueError, match="unknown attention 'sum'; expected pattern or softmax"):
        attribute(make_subject("llama"), corpus, method="relp", options={"attention": "sum"})


def test_a_bridge_gives_the_scores_of_the_plain_model(make_subject: Any, corpus: Corpus) -> None:
    import warnings

    from neuropolis.neurons.subject import load_model

    subject = make_subject("llama", torch.float64)
    plain = attribute(subject, corpus, method="relp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge.bridge import TransformerBridge

        bridge = TransformerBridge(make_subject("llama", torch.float64).model, subject.adapter, subject.tokenizer)
    other = attribute(load_model((bridge, subject.tokenizer)), corpus, method="relp")
    torch.testing.assert_close(other.signed, plain.signed, rtol=1e-5, atol=1e-7)


def test_nan_is_named_by_example(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    bad = Corpus((*corpus, Example(id="bad/1", group="north", prompt="Z?", answer=" b")))
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[subject.tokenizer.convert_tokens_to_ids("Z")] = torch.nan
    with pytest.raises(CorpusError, match=r"of 1 example\(s\) is not finite.*'bad/1'"):
        attribute(subject, bad, method="relp")
    left = attribute(subject, bad, method="relp", on_not_finite="skip")
    assert left.origin["skipped"] == ["bad/1"]
    torch.testing.assert_close(left.signed, attribute(subject, corpus, method="relp").signed, rtol=1e-4, atol=1e-5)
