"""Methods that read activations: values by hand on a toy model, one forward for all of them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.attribution.activity import average_precision, weight_norms
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.encoding import batches, encode_corpus, forward
from neuropolis.attribution.methods import METHODS
from neuropolis.attribution.objectives import probability
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.edits import _scaled
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Site, Tap
from neuropolis.neurons.subject import Subject

A, B = 4, 5  # token ids of the characters a, b under the tests' tokenizer; <s> is 1


class Toy(torch.nn.Module):
    """units = relu(into @ onehot(token)) less 1 for neuron 1: at <s> (0, -1), at 'a' (3, -1), at 'b' (2, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, get_text_config=lambda: self.config)
        self.into = torch.nn.Linear(64, 2)
        self.out = torch.nn.Linear(2, 64, bias=False)
        with torch.no_grad():
            for weight in (self.into.weight, self.into.bias, self.out.weight):
                weight.zero_()
            self.into.bias[1] = -1
            self.into.weight[0, A], self.into.weight[0, B], self.into.weight[1, B] = 3.0, 2.0, 5.0
            self.out.weight[A] = torch.tensor([3.0, 0.0])
            self.out.weight[B] = torch.tensor([4.0, -1.0])

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        hidden = self.into(torch.nn.functional.one_hot(input_ids, 64).to(self.into.weight.dtype))
        return SimpleNamespace(logits=self.out(hidden))


@pytest.fixture
def toy(tokenizer: Any) -> Subject:
    model = Toy()
    sites = {
        "mlp": Site("mlp", (Tap(model.out, "out", "in", 2),)),
        "up": Site("up", (Tap(model.into, "into", "out", 2),)),
    }
    return Subject(model, tokenizer, "toy", "toy", sites)


@pytest.fixture
def letters() -> Corpus:
    """Read tokens: <s> a | <s> b a | <s> a | <s> b; the last letter is the answer, which is not read."""
    prompts = {"g/1": "a", "g/2": "ba", "h/1": "a", "h/2": "b"}
    return Corpus(tuple(Example(id=i, group=i[0], prompt=p, answer="a") for i, p in prompts.items()))


def test_values_by_hand(toy: Subject, letters: Corpus) -> None:
    names = ("mean", "active", "max", "weighted")
    for budget in (1, 10_000):  # alone, and padded beside longer ones
        found = attribute(toy, letters, methods=names, max_tokens=budget)
        # group g reads <s> a <s> b a: neuron 0 is 0 3 0 2 3, neuron 1 is -1 -1 -1 4 -1
        assert found["mean"].signed[0, 0].tolist() == pytest.approx([8 / 5, 0.0])
        assert found["mean"].values[0, 0].tolist() == pytest.approx([8 / 5, 0.0])
        assert found["active"].values[0, 0].tolist() == pytest.approx([3 / 5, 1 / 5])
        assert found["max"].signed[0, 0].tolist() == [3.0, 1.5]  # (3 + 3) / 2 and (-1 + 4) / 2
        assert found["max"].values[0, 0].tolist() == [3.0, 2.5]
        # outgoing weights have norms 5 and 1; mean |a| is 8/5 and 8/5
        assert found["weighted"].values[0, 0].tolist() == pytest.approx([8.0, 1.6])
        # group h reads <s> a <s> b
        assert found["active"].values[1, 0].tolist() == [0.5, 0.25]
        assert found["mean"].signed[1, 0].tolist() == [1.25, 0.25]


def test_the_norm_of_an_output_side_is_that_of_its_row(toy: Subject, letters: Corpus) -> None:
    incoming = attribute(toy, letters, method="weighted", site="up")
    # rows of `into`: (3, 2) and (5); mean |a| of g: 8/5 and 8/5
    assert incoming.values[0, 0].tolist() == pytest.approx([math.sqrt(13) * 1.6, 5 * 1.6])


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("site", ["mlp", "up", "v", "attn", "attn_out"])
def test_norms_of_real_projections(make_subject: Any, family: str, site: str) -> None:
    """Set neuron j's own weights to zero in a copy: its norm, and no other, becomes zero."""
    subject = make_subject(family)
    place = subject.site(site)
    before = weight_norms(place)
    assert before.shape == (3, place.width)
    assert bool((before > 0).all())
    with _scaled(subject, NeuronSet.from_indices(subject, site=site, indices={1: [5]}), 0.0):
        after = weight_norms(place)
    changed = (after != before).nonzero().tolist()
    assert changed == [[1, 5]]
    assert float(after[1, 5]) == 0


def test_norms_of_offloaded_weights_are_an_error(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    site = subject.site("mlp")
    with torch.no_grad():
        site.taps[2].module.to("meta")
    with pytest.raises(SiteError, match=r"layers.2.mlp.down_proj: its weights are kept nowhere"):
        weight_norms(site)


def test_average_precision_by_hand() -> None:
    # neuron 0: labels in falling order 1 0 1 0: AP = 1/2 * 1 + 1/2 * 2/3
    # neuron 1: 3 examples tie at the top with 2 positives, then a negative: AP = 1 * 2/3
    # neuron 2: all equal: AP is the share of positives; neuron 3: the positives last: 1/2 * 1/3 + 1/2 * 2/4
    rows = torch.tensor([[4.0, 7, 0, 1], [3.0, 7, 0, 4], [2.0, 7, 0, 2], [1.0, 5, 0, 3]])[:, None, :]
    found = average_precision(rows, torch.tensor([0, 1, 0, 1]), 2)
    assert found[0, 0].tolist() == pytest.approx([5 / 6, 2 / 3, 0.5, 5 / 12])


@settings(max_examples=40, deadline=None)
@given(
    table=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=3, max_size=12).filter(
        lambda t: {g for _, g in t} == {0, 1, 2}
    )
)
def test_average_precision_is_the_sum_over_thresholds(table: list[tuple[int, int]]) -> None:
    scores, owners = (list(column) for column in zip(*table, strict=True))
    found = average_precision(torch.tensor(scores).float()[:, None, None], torch.tensor(owners), 3)
    for group in range(3):
        positives, total, before = owners.count(group), 0.0, 0.0
        for threshold in sorted(set(scores), reverse=True):
            taken = [o for s, o in zip(scores, owners, strict=True) if s >= threshold]
            recall = taken.count(group) / positives
            total += (recall - before) * taken.count(group) / len(taken)
            before = recall
        assert float(found[group, 0, 0]) == pytest.approx(total, abs=1e-6)


def test_precision_finds_the_detector(toy: Subject, letters: Corpus) -> None:
    found = attribute(toy, letters, method="precision")
    # maxima of neuron 1: g -1 4, h -1 4: two ties, each half of g: 1/2 * 1/2 + 1/2 * 2/4
    assert found.values[:, 0, 1].tolist() == pytest.approx([0.5, 0.5])
    # maxima of neuron 0: g 3 3, h 3 2: three tie with two of g; for h 1/2 * 1/3 + 1/2 * 2/4
    assert found.values[:, 0, 0].tolist() == pytest.approx([2 / 3, 5 / 12])
    assert found.rows is None
    kept = attribute(toy, letters, method="precision", keep_rows=True)
    assert kept.rows is not None
    assert kept.rows[:, 0, 0].tolist() == [3.0, 3.0, 3.0, 2.0]


def test_precision_needs_another_group(toy: Subject, letters: Corpus) -> None:
    for method in ("precision", "lape"):
        with pytest.raises(
            CorpusError, match=f"method '{method}' compares groups and needs at least 2, the corpus has g"
        ):
            attribute(toy, letters.only("g"), method=method)


def test_control_twins_are_compared_with_one_another(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with_twins = attribute(subject, corpus, methods=("precision", "lape", "active"), controls=True)
    alone = attribute(subject, corpus, methods=("precision", "lape", "active"))
    twins = attribute(subject, corpus.controls(), methods=("precision", "lape", "active"))
    for name in alone:
        torch.testing.assert_close(with_twins[name].values, alone[name].values, rtol=0, atol=1e-6)
        torch.testing.assert_close(with_twins[name].control_values, twins[name].values, rtol=0, atol=1e-6)


def test_random_is_seeded_and_differs_by_site(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")

    def drawn(seed: int, site: str = "mlp") -> Scores:
        return attribute(subject, corpus, method="random", site=site, options={"seed": seed}, controls=True)

    first = drawn(3)
    assert torch.equal(first.values, drawn(3).values)
    assert not torch.equal(first.values, drawn(4).values)
    assert not torch.equal(first.values, drawn(3, "gate").values)
    assert first.control_values is not None
    assert not torch.equal(first.values, first.control_values)
    assert 0 <= float(first.values.min()) < 0.05 < 0.95 < float(first.values.max()) < 1
    with pytest.raises(ValueError, match="'sead' is no option of random; options are seed"):
        attribute(subject, corpus, method="random", options={"sead": 3})


def test_all_cheap_methods_share_one_forward_and_one_backward(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    names = ("taylor", "gradient", "lape", "rate", "mean", "active", "max", "weighted", "precision", "random")
    assert {name for name, m in METHODS.items() if m.shared} - {"culnig"} <= set(names)
    for site in ("mlp", "gate", "v"):
        subject.site(site)  # a site checks itself with a forward of its own when it is first asked for
    forwards, backwards = [], []
    head = subject.model.lm_head
    handles = (
        subject.model.register_forward_hook(lambda *_: forwards.append(1)),
        head.register_full_backward_hook(lambda *_: backwards.append(1)),
    )
    try:
        together = attribute(subject, corpus, methods=names, site=("mlp", "v"), max_tokens=10_000)
        assert (len(forwards), len(backwards)) == (1, 1)
        forwards.clear()
        backwards.clear()
        attribute(subject, corpus, methods=names[2:], max_tokens=10_000)
        assert (len(forwards), len(backwards)) == (1, 0)
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        single = attribute(subject, corpus, method=name, max_tokens=10_000)
        torch.testing.assert_close(together[f"{name}/mlp"].values, single.values, rtol=1e-5, atol=1e-6)


def test_without_gradients_no_logits_but_one_are_computed(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    subject.site("mlp")
    widths: list[int] = []
    handle = subject.model.lm_head.register_forward_hook(lambda _m, a, _o: widths.append(a[0].shape[1]))
    attribute(subject, corpus, method="mean", objective="loss_all")
    attribute(subject, corpus, methods=("mean", "taylor"), objective="loss_all")
    handle.remove()
    assert widths[0] == 1
    assert widths[-1] > 20


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_batches_and_padding_change_nothing(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    names = ("mean", "active", "max", "weighted", "precision")
    alone = attribute(subject, corpus, methods=names, max_tokens=1)
    for side in ("right", "left"):
        padded = attribute(subject, corpus, methods=names, max_tokens=10_000, padding_side=side)  # pyright: ignore[reportArgumentType]
        for name in set(names) - {"precision"}:  # whose ranks may turn on the last bit
            torch.testing.assert_close(padded[name].signed, alone[name].signed, rtol=1e-4, atol=1e-5)


def test_culnig_weighs_by_the_probability_and_keeps_twins_from_going_below_zero(make_subject: Any) -> None:
    corpus = Corpus(
        tuple(
            Example(id=f"{g}/{i}", group=g, prompt=f"{p} {g}", answer=a, control=p)
            for g in ("x", "y", "z")
            for i, (p, a) in enumerate(zip("abc", "def", strict=True))
        )
    )
    subject = make_subject("llama", torch.float64)
    found = attribute(subject, corpus, method="culnig", objective="probability", controls=True, tokens="sum")
    for scored, mean in ((corpus, found.signed), (corpus.controls(), found.control_signed)):
        plain = attribute(subject, scored, objective="probability", tokens="max", keep_rows=True)
        assert plain.rows is not None
        weight = torch.zeros(len(scored), dtype=torch.float64)
        with torch.no_grad():
            for batch in batches(encode_corpus(subject, scored)):
                weight[batch.rows] = probability(forward(subject, batch), batch, [])
        assert 1e-4 < float(weight.min()) < float(weight.max())
        rows = plain.rows.double() * weight[:, None, None]
        assert bool((rows < 0).any())
        rows = rows if scored is corpus else rows.clamp(min=0)
        expected = torch.stack([rows[plain.row_groups == g].mean(dim=0) for g in range(3)])
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="'culnig' is defined for objective 'probability', not 'loss'"):
        attribute(subject, corpus, method="culnig")


def test_a_nan_activation_is_named_or_skipped(make_subject: Any, corpus: Corpus) -> None:
    """NaN > 0 is false: counted as it stands, the neuron would merely look inactive."""
    subject = make_subject("llama")
    bad = (
        Example(id="bad/1", group="north", prompt="Z it", answer=" b"),
        Example(id="bad/2", group="east", prompt="a Z", answer="b"),
    )
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[subject.tokenizer.convert_tokens_to_ids("Z")] = torch.nan
    mixed = Corpus((*corpus, *bad))
    for names in (("active",), ("active", "taylor"), ("max", "precision", "lape", "weighted")):
        with pytest.raises(CorpusError, match=r"of 2 example\(s\) is not finite \(NaN or Inf\): 'bad/"):
            attribute(subject, mixed, methods=names, max_tokens=10_000)
        left = attribute(subject, mixed, methods=names, on_not_finite="skip", max_tokens=10_000)
        clean = attribute(subject, corpus, methods=names, max_tokens=10_000)
        for name in names:
            torch.testing.assert_close(left[name].values, clean[name].values, rtol=1e-4, atol=1e-5)
            assert left[name].origin["skipped"] == ["bad/1", "bad/2"]
