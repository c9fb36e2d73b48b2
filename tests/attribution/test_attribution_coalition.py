"""Coalition: redundant neurons by hand, the same as Taylor beside silenced candidates, batches, twins, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.selection import contrasted, select, specificity
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Site, Tap
from neuropolis.neurons.subject import Subject

VOCABULARY = 64
A, B = 4, 5  # token ids of the characters a, b under the tests' tokenizer


class Saturated(torch.nn.Module):
    """logit of b = 4 * min(n1 + n2, 1.5) with n1 = n2 = 1: either neuron alone would do; a third one says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, get_text_config=lambda: self.config)
        self.table = torch.nn.Embedding(VOCABULARY, 3)
        self.out = torch.nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.table.weight.zero_()
            self.table.weight[A] = 1.0
            self.out.weight[:] = torch.tensor([[1.0, 1.0, 0.0]])

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        total = self.out(torch.relu(self.table(input_ids))).clamp(max=1.5)
        one = torch.nn.functional.one_hot(torch.tensor(B), VOCABULARY).to(total)
        return SimpleNamespace(logits=4 * total * one)


@pytest.fixture
def saturated(tokenizer: Any) -> Subject:
    model = Saturated().double()
    return Subject(model, tokenizer, "saturated", "saturated", {"mlp": Site("mlp", (Tap(model.out, "out", "in", 3),))})


def asked() -> Corpus:
    row = {"group": "g", "prompt": "a", "answer": "b", "choices": ("b", "c"), "answer_index": 0}
    return Corpus(tuple(Example(id=f"g/{i}", **row) for i in range(2)))


def test_redundant_neurons_by_hand(saturated: Subject) -> None:
    # the sum 2 is cut off at 1.5, so that no gradient reaches either; with both silent it is 4 for each, and each is 1
    options = {"candidates": 1.0, "off": 1.0, "draws": 3}
    how: dict[str, Any] = {"objective": "logit_difference"}
    assert attribute(saturated, asked(), **how).signed.abs().max() == 0
    found = attribute(saturated, asked(), method="coalition", options=options, **how)
    assert found.signed.flatten().tolist() == pytest.approx([4, 4, 0], abs=1e-12)
    # each silent with probability 1/2, as the tokens and the seed say: 4 where one of them is silent or both are
    some = attribute(saturated, asked(), method="coalition", options=options | {"off": 0.5, "draws": 200}, **how)
    assert some.signed.flatten().tolist() == pytest.approx([3, 3, 0], abs=0.3)


def test_what_is_no_candidate_has_its_taylor_score_beside_silent_candidates(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama", torch.float64)
    plain = attribute(subject, corpus)
    count = round(0.1 * plain.values[0].numel())
    ranked = specificity((plain.values + plain.signed) / 2, plain.values)
    found = attribute(subject, corpus, method="coalition", options={"candidates": 0.1, "off": 1.0, "draws": 1})
    for row, group in enumerate(plain.groups):
        chosen = torch.zeros(ranked[row].numel(), dtype=torch.bool)
        chosen[ranked[row].flatten().topk(count).indices] = True
        silent = NeuronSet("mlp", subject.fingerprint, chosen.reshape(ranked[row].shape))
        with intervene(subject, silent):
            beside = attribute(subject, corpus.only(group))
        torch.testing.assert_close(found.signed[row][~silent.mask], beside.signed[0][~silent.mask])
        assert float(found.signed[row][silent.mask].abs().max()) > 0
        assert beside.signed[0][silent.mask].abs().max() == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_batch_size_padding_side_and_order_change_nothing(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    options = {"draws": 2, "candidates": 0.1}
    alone = attribute(subject, corpus, method="coalition", max_tokens=1, options=options)
    assert alone.values.abs().max() > 1e-3
    for how in ({"max_tokens": 10_000}, {"max_tokens": 10_000, "padding_side": "left"}):
        other = attribute(subject, corpus, method="coalition", options=options, **how)
        torch.testing.assert_close(other.values, alone.values, rtol=1e-4, atol=1e-5)
    backwards = attribute(subject, Corpus(corpus.examples[::-1]), method="coalition", options=options)
    order = [backwards.groups.index(g) for g in alone.groups]
    torch.testing.assert_close(backwards.values[order], alone.values, rtol=1e-4, atol=1e-5)


def test_rows_are_meaned_over_draws_and_the_seed_draws(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    options = {"draws": 3, "candidates": 0.2}
    kept = attribute(subject, corpus, method="coalition", options=options, keep_rows=True)
    assert kept.rows is not None
    assert kept.row_groups is not None
    for row in range(len(kept.groups)):
        torch.testing.assert_close(kept.rows[kept.row_groups == row].mean(dim=0), kept.signed[row])
    again = attribute(subject, corpus, method="coalition", options=options)
    other = attribute(subject, corpus, method="coalition", options=options | {"seed": 1})
    assert torch.equal(again.signed, kept.signed)
    assert not torch.equal(other.signed, kept.signed)


def test_twins_stand_beside_the_candidates_of_their_own_group(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    same = Corpus(tuple(replace(e, control=e.prompt) for e in corpus))
    found = attribute(subject, same, method="coalition", controls=True, options={"draws": 2, "candidates": 0.1})
    assert found.control_signed is not None
    torch.testing.assert_close(found.control_signed, found.signed, rtol=1e-5, atol=1e-7)


def test_a_state_is_kept_for_every_draw_and_taken_away(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject = make_subject("llama")
    options: dict[str, Any] = {"draws": 2, "candidates": 0.1}
    plain = attribute(subject, corpus, method="coalition", options=options)
    stopped: list[int] = []

    def stop(_done: int, _total: int) -> None:
        stopped.append(1)
        if len(stopped) == 12:
            raise InterruptedError

    how: dict[str, Any] = {"method": "coalition", "options": options, "max_tokens": 60, "checkpoint_every": 0}
    with pytest.raises(InterruptedError):
        attribute(subject, corpus, checkpoint=tmp_path / "run", progress=stop, **how)
    assert len(list(tmp_path.iterdir())) > 1
    again = attribute(subject, corpus, checkpoint=tmp_path / "run", **how)
    torch.testing.assert_close(again.signed, plain.signed, rtol=1e-4, atol=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 0}, "draws is 0; expected how many coalitions"),
        ({"candidates": 0}, "candidates is 0; expected a share above 0"),
        ({"off": 1.5}, "off is 1.5; expected a share above 0, up to 1"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number"),
    ],
)
def test_bad_options_are_named(make_subject: Any, corpus: Corpus, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attribute(make_subject("llama"), corpus, method="coalition", options=options)


def scored(values: list[list[float]], signed: list[list[float]]) -> Scores:
    shape = (len(values), 1, len(values[0]))
    tensors = {"values": torch.tensor(values).reshape(shape), "signed": torch.tensor(signed).reshape(shape)}
    tensors["squares"] = tensors["values"] ** 2
    groups = tuple("abc"[: len(values)])
    return Scores(site="mlp", subject="s", method="taylor", objective="loss", groups=groups,
                  counts=torch.tensor([2] * len(values)), **tensors)  # fmt: skip


def test_ratio_and_positive_part_by_hand() -> None:
    scores = scored([[4.0, 2.0], [1.0, 1.0]], [[2.0, -2.0], [1.0, 0.0]])
    assert contrasted(scores, None, "positive").flatten().tolist() == [3.0, 0.0, 1.0, 0.5]
    # the mean of all |scores| is 2, 0.3 of it 0.6; the first group's others have (1, 1), the second's (4, 2)
    expected = torch.tensor([3 / 1.6, 0 / 1.6, 1 / 4.6, 0.5 / 2.6])
    torch.testing.assert_close(contrasted(scores, "ratio", "positive").flatten(), expected)
    with pytest.raises(SetError, match="rank by 'values', 'signed', 'positive'"):
        select(scores, by="size")
