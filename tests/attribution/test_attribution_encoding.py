"""The logits that are asked for: those that predict answers, wherever they end, and no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from neuropolis.attribution.difficulty import difficulty, opening
from neuropolis.attribution.encoding import IGNORED, Encoded, collate, encode, forward
from neuropolis.attribution.generation import generated
from neuropolis.attribution.generators import LocalGenerator, Sampling
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

MIXED = [Encoded((1, 5, 9, 4, 7, 8), 4), Encoded((1, 6, 10, 5), 3), Encoded((1, 7, 12, 11, 6), 2)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "falcon", "phi3", "qwen3"])
def test_logits_are_those_of_each_examples_answer(make_subject: Any, family: str) -> None:
    subject = make_subject(family)
    batch = collate(MIXED, range(3))
    assert batch.targets.tolist() == [[7, 8, IGNORED], [5, IGNORED, IGNORED], [12, 11, 6]]
    head, rows = subject.model.get_output_embeddings(), []
    handle = head.register_forward_hook(lambda _module, args, _out: rows.append(args[0].shape[1]))
    with torch.no_grad():
        logits = forward(subject, batch)
        assert rows == [3]  # of five positions
        handle.remove()
        assert len(head._forward_pre_hooks) == 0
        for place, one in enumerate(MIXED):
            alone = subject.model(torch.tensor([one.ids[:-1]])).logits[0]
            for column, token in enumerate(one.answer):
                torch.testing.assert_close(logits[place, column], alone[one.start - 1 + column], rtol=1e-4, atol=1e-5)
                assert int(batch.targets[place, column]) == token


def test_answers_that_end_together_need_only_the_last_logits() -> None:
    together = collate([Encoded((1, 5, 9, 4), 2), Encoded((1, 6, 10, 5), 3)], range(2))
    assert together.keep == 2
    assert together.targets.tolist() == [[9, 4], [IGNORED, 5]]
    left = collate(MIXED, range(3), padding_side="left")
    assert left.keep == 3
    assert left.targets.tolist() == [[IGNORED, 7, 8], [IGNORED, IGNORED, 5], [12, 11, 6]]


def test_a_model_that_does_not_show_its_output(make_subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject("llama")
    batch = collate(MIXED, range(3))
    with torch.no_grad():
        expected = forward(subject, batch)
        monkeypatch.setattr(type(subject.model), "get_output_embeddings", lambda self: None)
        torch.testing.assert_close(forward(subject, batch), expected)


def test_a_word_that_a_tokenizer_has_no_token_for_is_named(make_subject: Any) -> None:
    subject = knowing_words(make_subject("llama"), "<s>", "two", "and", "is", "four")
    assert encode(subject, "two and two is", " four").ids == (0, 1, 2, 1, 3, 4)
    with pytest.raises(CorpusError, match=r"example '3': LlamaForCausalLM cannot tokenise 'five' \(WordLevel error"):
        encode(subject, "two and five is", " four", name="example '3'")
    rows = Corpus((Example("1", "a", "two and two is", " four"), Example("2", "a", "two and six is", " four")))
    assert opening(subject) == (0,)
    found = difficulty(subject, rows)
    assert found.tokens.tolist() == [1, 0]
    assert found.missing["2"].startswith("example '2': LlamaForCausalLM cannot tokenise 'six'")
    with pytest.raises(CorpusError, match="example '2': LlamaForCausalLM cannot tokenise 'six'"):
        generated(subject, rows, max_new_tokens=1)
    with pytest.raises(CorpusError, match="a prompt: LlamaForCausalLM cannot tokenise 'six'"):
        LocalGenerator(subject)([[{"role": "user", "content": "two and six"}]], sampling=Sampling(), seeds=[1])


def knowing_words(subject: Any, *words: str) -> Any:
    """The subject with a tokenizer of whole words that puts the first before every text and has none for what it does not know."""
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"{words[0]} $A", special_tokens=[(words[0], 0)])
    return replace(subject, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=words[0]))
