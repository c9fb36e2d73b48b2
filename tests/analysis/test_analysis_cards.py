"""Cards: on a planted model whose neurons say one letter each, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from neuropolis.analysis.cards import Cards, cards_from_record, neuron_card, neuron_cards
from neuropolis.analysis.drives import pieces
from neuropolis.analysis.readout import token_text, vocabulary_logits
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model

ACTIVE = 64 / (1 + math.exp(-8))  # gate and up are both 8 at the neuron's letter: 8 * silu(8)


def test_a_card_by_hand(planted: Subject, questions: Corpus) -> None:
    card = neuron_card(planted, questions, "mlp:1:0", tokens=3, examples=2, neighbours=4)
    assert card.neurons == ("mlp:1:0",)
    # the direction is the letter x alone, which the norm makes 8 and the head passes on; the mean over 64 tokens is 1/8
    (first, logit), *rest = card.tokens(0)
    assert (first, logit) == ("x", pytest.approx(8 - 8 / 64))
    assert all(value == pytest.approx(-8 / 64) for _, value in rest + card.tokens(0, suppressed=True))
    assert card.highest[0].tolist() == pytest.approx([ACTIVE, 0, 0], rel=1e-4)
    assert card.active[0, 1:].tolist() == [0, 0]
    for text, values in card.examples(0, "a"):
        assert text["group"] == "a"
        assert len(values) == len(text["tokens"])
        assert text["tokens"][values.index(max(values))] == "a"
        assert text["tokens"][text["answer_start"] :] == ["x"]
        assert max(values) == pytest.approx(ACTIVE, rel=1e-4)
    assert len(card.examples(0, "a")) == 2
    # gate and up of another letter, the same output: a third of each unit vector is shared; other neurons have no weights
    assert {
        tuple(pair)
        for pair in zip(card.neighbour_layers[0, :2].tolist(), card.neighbour_indices[0, :2].tolist(), strict=True)
    } == {(1, 1), (1, 2)}
    assert card.neighbour_cosines[0, :2].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert card.neighbour_indices[0, 2:].tolist() == [-1, -1]


def test_scores_and_ranks_stand_on_the_card(planted: Subject, questions: Corpus) -> None:
    found = attribute(planted, questions, methods=("taylor", "gradient"), site="mlp")
    cards = neuron_cards(planted, questions, [("mlp", 1, 1), ("mlp", 0, 5)], scores=found)
    assert cards.methods == ("taylor", "gradient")
    values = found["taylor"].of("b")
    assert cards.scores[0, 0, 1] == values[1, 1]
    assert cards.ranks[0, 0].tolist()[1] == 1  # b's neuron is first for b
    assert cards.ranks[1, 0, 1] == 1 + int((values > values[0, 5]).sum())
    with pytest.raises(SetError, match="are of site 'mlp' of subject"):
        neuron_card(planted, questions, ("q", 0, 1), scores=found)


def test_cards_come_back_from_their_record(planted: Subject, questions: Corpus) -> None:
    cards = neuron_cards(planted, questions, NeuronSet.from_indices(planted, indices={1: [0, 2]}))
    back = cards_from_record(cards.to_record())
    assert back.neurons == cards.neurons == ("mlp:1:0", "mlp:1:2")
    assert back.tokens(1) == cards.tokens(1)
    assert back.examples(1, "c")[0][0]["tokens"] == cards.examples(1, "c")[0][0]["tokens"]
    for name, value in vars(cards).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(back, name), value, equal_nan=True)


def assert_same(found: Cards, expected: Cards) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(found, name), value, equal_nan=True, msg=name)


def test_cards_do_not_depend_on_batches(make_subject: Callable[..., Subject], corpus: Corpus) -> None:
    subject = make_subject("llama")
    one = neuron_cards(subject, corpus, [("mlp", 0, 3), ("mlp", 2, 7)], max_tokens=1)
    assert_same(neuron_cards(subject, corpus, [("mlp", 0, 3), ("mlp", 2, 7)], max_tokens=4096), one)
    assert float(one.activations[one.activations.isfinite()].abs().max()) > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "falcon"])
def test_logits_are_the_heads_of_the_normed_direction(make_subject: Callable[..., Subject], family: str) -> None:
    """Moving the last state along the direction, far enough that nothing else counts, gives the same logits."""
    subject = make_subject(family)
    logits = vocabulary_logits(subject, "mlp", [1], [4])
    assert logits is not None
    assert logits.shape == (1, 64)
    tap = subject.site("mlp").taps[1].module
    column = tap.weight[4] if family == "gpt2" else tap.weight[:, 4]
    norm = subject.adapter.get_component(subject.model, "ln_final")
    head = subject.model.get_output_embeddings()
    with torch.no_grad():
        there, zero = head(norm(1e4 * column[None, None])), head(norm(torch.zeros_like(column)[None, None]))
    expected = (there - zero)[0, 0]
    torch.testing.assert_close(logits[0], expected - expected.mean(), rtol=1e-4, atol=1e-4)


def test_channels_of_the_stream_and_sites_that_write_nothing(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject("llama")
    logits = vocabulary_logits(subject, "mlp_out", [0], [5])
    assert logits is not None
    row = subject.model.lm_head.weight[:, 5] * subject.model.model.norm.weight[5] * math.sqrt(32)
    torch.testing.assert_close(logits[0], (row - row.mean()).detach(), rtol=1e-4, atol=1e-4)
    assert vocabulary_logits(subject, "q", [0], [5]) is None


def test_an_offloaded_subject_has_the_same_cards(
    make_subject: Callable[..., Subject], corpus: Corpus, tmp_path: Any
) -> None:
    subject = make_subject("llama")
    subject.model.save_pretrained(tmp_path)
    subject.tokenizer.save_pretrained(tmp_path)
    away = load_model(str(tmp_path), offload="disk")
    assert away.offloaded
    neurons = [("mlp", 0, 3), ("mlp", 2, 7)]
    assert_same(neuron_cards(away, corpus, neurons), neuron_cards(subject, corpus, neurons))


def test_letters_of_several_tokens_stand_at_the_last() -> None:
    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode("utf8", errors="replace")

    assert pieces(Bytes(), "aé日!".encode()) == ["a", "", "é", "", "", "日", "!"]
    assert pieces(Bytes(), [0x61, 0xE6, 0x21]) == ["a", "", "!"]  # bytes that never make a letter


def test_wrong_neurons_are_refused(planted: Subject, questions: Corpus) -> None:
    for neuron, message in {
        "mlp:1": "expected SITE:LAYER:INDEX", "mlp:1:8": "neuron mlp:1:8 is outside the 2 layers of 8 neurons",
        "mlp:2:0": "outside the 2 layers",
    }.items():  # fmt: skip
        with pytest.raises(SetError, match=message):
            neuron_card(planted, questions, neuron)
    with pytest.raises(SiteError, match="unknown site"):
        neuron_card(planted, questions, "nowhere:0:0")
    with pytest.raises(SetError, match="no neurons"):
        neuron_cards(planted, questions, [])
    with pytest.raises(SetError, match="sites mlp, q"):
        neuron_cards(planted, questions, ["mlp:0:0", "q:0:0"])


class Pieces:
    """A tokenizer whose tokens decode to no letter of their own."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def decode(self, ids: list[int]) -> str:
        return {"A": "A"}.get(self.names[ids[0]], "\ufffd")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.names[token]


def test_parts_of_letters_are_told_apart_by_their_bytes() -> None:
    tokenizer = Pieces("A", "<0xE6>", "\u00e6", "\u0120\u00e6\u0139", "\ufffd")  # as SentencePiece and GPT-2 name them
    assert [token_text(tokenizer, token) for token in range(5)] == ["A", "<0xE6>", "<0xE6>", " <0xE6><0x97>", "token 4"]
