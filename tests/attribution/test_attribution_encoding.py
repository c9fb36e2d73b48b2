"""The logits that are asked for: those that predict answers, wherever they end, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import IGNORED, Encoded, collate, forward

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
