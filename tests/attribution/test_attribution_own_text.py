"""Own text: what a subject writes from nothing, the same for the same seed, and long enough to hold it to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from neuropolis.attribution import own_text as room
from neuropolis.attribution.own_text import own_text
from neuropolis.corpora.examples import CorpusError


def test_texts_follow_the_subject_and_the_seed(make_subject: Any) -> None:
    subject = make_subject("llama")
    first, again = (own_text(subject, texts=12, tokens=12, batch_size=size) for size in (12, 5))
    assert first.hash == again.hash  # whatever else is in the batch
    assert own_text(subject, texts=12, tokens=12, seed=1).hash != first.hash
    assert {example.group for example in first} == {"own"}
    assert len({example.item for example in first}) == len(first) > 3
    with torch.no_grad():
        for weight in subject.model.parameters():
            weight.add_(torch.randn_like(weight))
    assert own_text(subject, texts=12, tokens=12).hash != first.hash


@pytest.mark.parametrize(
    ("tokens", "bos", "start"), [([7], 1, [7]), ([], 1, [1]), ([], None, None)], ids=["its own", "bos", "none"]
)
def test_texts_begin_as_the_tokenizer_begins_them(
    monkeypatch: pytest.MonkeyPatch, tokens: list[int], bos: int | None, start: list[int] | None
) -> None:
    class Tokenizer:
        bos_token_id, eos_token_id = bos, None

        def __len__(self) -> int:
            return 50

    seen: list[list[int]] = []

    def said(_subject: Any, starts: list[list[int]], **_: Any) -> list[str]:
        seen.extend(starts)
        return ["once there was a sparrow", "whole words", "tiny", "  one\ntwo three four "]

    monkeypatch.setattr(room, "tokenised", lambda *_, **__: {"input_ids": tokens})
    monkeypatch.setattr(room, "continued", said)
    subject: Any = SimpleNamespace(tokenizer=Tokenizer(), name="stub")
    found = own_text(subject, texts=4)
    assert [(example.prompt, example.answer) for example in found] == [
        ("once there was", " a sparrow"), ("whole", " words"), ("one\ntwo three", " four")
    ]  # fmt: skip
    assert seen == [start] * 4 if start else len({token for row in seen for token in row}) > 1


def test_a_subject_that_writes_nothing_is_told(monkeypatch: pytest.MonkeyPatch, make_subject: Any) -> None:
    monkeypatch.setattr(room, "continued", lambda _s, starts, **_: [""] * len(starts))
    with pytest.raises(CorpusError, match="wrote 0 texts of 8 characters or more in 9 tries; give text of your own"):
        own_text(make_subject("llama"), texts=9)
