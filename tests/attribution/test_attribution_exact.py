"""Exact scores: by hand, against interventions one neuron at a time, and against Taylor where the objective is linear."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.attribution.exact import evaluated
from neuropolis.attribution.objectives import loss
from neuropolis.attribution.selection import select
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.scores import scores_from_record
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Site, Tap
from neuropolis.neurons.subject import Subject

A, B, C = 4, 5, 6  # token ids of the characters a, b, c under the tests' tokenizer


class Toy(torch.nn.Module):
    """Neurons (3, 5) at 'a'; logit b = 4 w0 - w1, logit c = w0 w1."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, get_text_config=lambda: self.config)
        self.out = torch.nn.Identity()
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        hidden = self.out((input_ids == A)[..., None] * torch.tensor([3.0, 5.0], dtype=torch.float64) * self.scale)
        one = torch.nn.functional.one_hot(torch.tensor([B, C]), 64).double()
        pair = torch.stack([4 * hidden[..., 0] - hidden[..., 1], hidden[..., 0] * hidden[..., 1]], dim=-1)
        return SimpleNamespace(logits=pair @ one)


@pytest.fixture
def toy(tokenizer: Any) -> Subject:
    model = Toy()
    return Subject(model, tokenizer, "toy", "toy", {"mlp": Site("mlp", (Tap(model.out, "out", "in", 2),))})


def asked(wrong: str) -> Corpus:
    row = {"group": "g", "prompt": "a", "answer": "b", "choices": ("b", wrong), "answer_index": 0}
    return Corpus(tuple(Example(id=str(i), **row) for i in range(2)))


def test_exact_by_hand(toy: Subject) -> None:
    # b - c = 4 w0 - w1 - w0 w1 = 12 - 5 - 15 = -8; without w0 it is -5, without w1 it is 12
    scores = attribute(toy, asked("c"), method="exact", objective="logit_difference", options={"sample": 2})
    assert scores.signed[0, 0].tolist() == [-3.0, -20.0]
    assert scores.values[0, 0].tolist() == [3.0, 20.0]
    assert scores.squares[0, 0].tolist() == [9.0, 400.0]


def test_exact_is_taylor_where_the_objective_is_linear(toy: Subject) -> None:
    # b - d = 4 w0 - w1, the logit of d being 0
    exact = attribute(toy, asked("d"), method="exact", objective="logit_difference", options={"sample": 2})
    taylor = attribute(toy, asked("d"), objective="logit_difference")
    assert exact.signed[0, 0].tolist() == taylor.signed[0, 0].tolist() == [12.0, -5.0]


def plain_loss(subject: Subject, corpus: Corpus) -> torch.Tensor:
    values = []
    with torch.no_grad():
        for one in encode_corpus(subject, corpus):
            batch = collate([one], [0])
            logits = subject.model(input_ids=batch.input_ids).logits[:, -batch.targets.shape[1] :]
            values.append(loss(logits, batch, []))
    return torch.cat(values)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(
    ("family", "site"),
    [("llama", "mlp"), ("gemma2", "mlp"), ("gpt2", "mlp"), ("gpt_neox", "attn"), ("bloom", "mlp"), ("opt", "mlp"),
     ("phi3", "gate"), ("phi3", "q"), ("falcon", "mlp_out")],
)  # fmt: skip
def test_exact_equals_interventions_one_by_one(
    make_subject: Any, corpus: Corpus, family: str, site: str, reuse: bool
) -> None:
    subject = make_subject(family, torch.float64)
    chosen = NeuronSet.from_indices(subject, site=site, indices={0: [1, 7], 1: [3], 2: [0, 2, 15]})
    options = {"neurons": chosen, "reuse": reuse}
    scores = attribute(subject, corpus, method="exact", site=site, max_tokens=300, keep_rows=True, options=options)
    assert scores.rows is not None
    intact = plain_loss(subject, corpus)
    for layer, neuron in chosen:
        with intervene(subject, NeuronSet.from_indices(subject, site=site, indices={layer: [neuron]})):
            silenced = plain_loss(subject, corpus)
        expected = (silenced - intact).float()
        torch.testing.assert_close(scores.rows[:, layer, neuron], expected, rtol=1e-4, atol=1e-6)
    assert float(scores.signed.abs().max()) > 1e-4
    assert evaluated(scores) == chosen
    assert not bool(scores.values[:, ~chosen.mask].any())
    assert scores.origin["options"] == {"neurons": chosen.digest, "reuse": reuse}
    back = scores_from_record(scores.to_record())
    assert evaluated(back) == chosen


def test_layers_below_are_not_run_again(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    chosen = NeuronSet.from_indices(subject, indices={2: range(20)})
    counts = {0: 0, 2: 0}
    layers = subject.model.model.layers
    handles = [
        layers[i].mlp.register_forward_hook(lambda _m, _a, _o, i=i: counts.update({i: counts[i] + 1})) for i in counts
    ]
    attribute(subject, corpus, method="exact", max_tokens=400, options={"neurons": chosen})
    for handle in handles:
        handle.remove()
    assert counts[2] > 2 * counts[0] > 0
    assert all("forward" not in layer.__dict__ for layer in layers)


def test_a_model_whose_layers_see_more_than_the_one_below_is_run_whole(make_subject: Any, corpus: Corpus) -> None:
    """A layer that reads what another one left aside would read it from the wrong rows."""
    subject = make_subject("llama")
    first, last = subject.model.model.layers[0], subject.model.model.layers[2]
    aside = {}
    handles = [
        first.mlp.register_forward_hook(lambda _m, _a, out: aside.update(x=out)),
        last.mlp.register_forward_pre_hook(lambda _m, a: (a[0] + 3 * aside["x"].mean(dim=(1, 2), keepdim=True)[: len(a[0])],)
                                           if len(aside["x"]) >= len(a[0]) else (a[0] + 1,)),
    ]  # fmt: skip
    chosen = NeuronSet.from_indices(subject, indices={2: [1, 5]})
    found = attribute(subject, corpus, method="exact", options={"neurons": chosen})
    whole = attribute(subject, corpus, method="exact", options={"neurons": chosen, "reuse": False})
    for handle in handles:
        handle.remove()
    assert float(whole.signed.abs().max()) > 1e-4
    torch.testing.assert_close(found.signed, whole.signed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batches_padding_and_objectives(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    for objective in ("loss", "probability", "logit_difference"):
        shared = {"method": "exact", "objective": objective, "options": {"sample": 8, "seed": 3}}
        alone = attribute(subject, corpus, max_tokens=1, **shared)
        wide = attribute(subject, corpus, max_tokens=5000, padding_side="left", **shared)
        torch.testing.assert_close(wide.signed, alone.signed, rtol=1e-3, atol=1e-5)
    layered = attribute(subject, corpus, method="exact", options={"sample": 3, "within": "layer"})
    assert evaluated(layered).per_layer.tolist() == [3, 3, 3]


def test_the_module_is_left_as_it_was_after_an_exception(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution import exact

    subject = make_subject("llama")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()]

    class Interrupted(Exception):
        pass

    def stop(*_args: Any, **_named: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr(exact, "_silence", stop)
    mine = subject.model.model.layers[0].forward
    subject.model.model.layers[0].forward = mine  # as accelerate's offloading has it
    with pytest.raises(Interrupted):
        attribute(
            subject, corpus, method="exact", options={"neurons": NeuronSet.from_indices(subject, indices={2: [1]})}
        )
    assert subject.model.model.layers[0].__dict__["forward"] is mine
    assert "forward" not in subject.model.model.layers[1].__dict__
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()] == hooks


def test_bad_input_is_named(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    other = NeuronSet.from_indices(subject, site="gate", indices={0: [1]})
    with pytest.raises(SetError, match="neurons are of site 'gate', scored is 'mlp'"):
        attribute(subject, corpus, method="exact", options={"neurons": other})
    with pytest.raises(SetError, match="neurons is an empty set"):
        attribute(subject, corpus, method="exact", options={"neurons": NeuronSet.from_indices(subject, indices={})})
    with pytest.raises(ValueError, match="sample is 145; expected 1 to 144, the neurons of a site"):
        attribute(subject, corpus, method="exact", options={"sample": 145})
    with pytest.raises(ValueError, match="unknown within 'head'; a sample is taken within 'layer' or 'site'"):
        attribute(subject, corpus, method="exact", options={"within": "head"})
    with pytest.raises(SetError, match="scores of method 'taylor' are of every neuron"):
        evaluated(attribute(subject, corpus))
    bare = Corpus(tuple(Example(id=e.id, group=e.group, prompt="a", answer="b") for e in corpus))
    with pytest.raises(CorpusError, match="has no wrong choice"):
        attribute(subject, bare, method="exact", objective="logit_difference")
    bad = Corpus((*corpus, Example(id="bad/1", group="north", prompt="Z?", answer=" b")))
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[subject.tokenizer.convert_tokens_to_ids("Z")] = torch.nan
    with pytest.raises(CorpusError, match=r"loss of 1 example\(s\) is not finite.*'bad/1'"):
        attribute(subject, bad, method="exact", options={"sample": 4})
    left = attribute(subject, bad, method="exact", on_not_finite="skip", options={"sample": 4})
    assert left.origin["skipped"] == ["bad/1"]


def test_options_of_another_type_are_named(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(SetError, match="neurons is a str; expected a NeuronSet of site 'mlp'"):
        attribute(subject, corpus, method="exact", options={"neurons": "foo"})
    with pytest.raises(ValueError, match="seed is 'x'; expected a whole number"):
        attribute(subject, corpus, method="exact", options={"seed": "x"})


def test_only_neurons_that_were_evaluated_are_selected(make_subject: Any, corpus: Corpus) -> None:
    scores = attribute(make_subject("llama"), corpus, method="exact", options={"sample": 3})
    known = evaluated(scores)
    for group in select(scores, top=3, by="signed").values():
        assert group == known
    assert all(len(one & known) == len(one) == 2 for one in select(scores, top=2).values())
    with pytest.raises(SetError, match="top is 10 neurons, but 'exact' evaluated only 3 there; give a number up to 3"):
        select(scores, top=10)
    layered = attribute(make_subject("llama"), corpus, method="exact", options={"sample": 2, "within": "layer"})
    assert {len(one) for one in select(layered, top=2, scope="layer").values()} == {6}
    with pytest.raises(SetError, match="top is 3 neurons of a layer, but 'exact' evaluated only 2 there"):
        select(layered, top=3, scope="layer")
