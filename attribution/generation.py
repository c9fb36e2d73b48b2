"""Generation: what a subject says after each prompt of a corpus, greedily and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..corpora.examples import Corpus
from ..neurons.subject import Subject
from .encoding import _rendered, pad_id, tokenised

Batch = tuple[list[int], list[list[int]]]


def generated(
    subject: Subject,
    corpus: Corpus,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    stops: Sequence[str] = ("\n",),
) -> list[str]:
    """What the subject says after each prompt, in the corpus's order: greedy, up to its end-of-text token or a stop.

    A text is cut before the first of `stops` in it (blanks before it aside), and stripped of blanks. Prompts of
    similar length go together, padded on the left and masked.
    """
    ids = [_prompt_ids(subject, corpus, row) for row in range(len(corpus))]
    said = continued(subject, ids, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [_cut(text, stops) for text in said]


def continued(
    subject: Subject,
    ids: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    choose: Callable[[Sequence[int], int], Any] | None = None,
) -> list[str]:
    """What follows each row of tokens, up to an end-of-text token, in batches with a key-value cache.

    Greedy, or as `choose` says: called with a batch's rows and the length that they are padded to, it gives a logits
    processor that leaves one token a row.
    """
    said = [""] * len(ids)
    with subject.quiet(), torch.no_grad():
        for rows, prompts in _by_length(ids, batch_size):
            length = max(map(len, prompts))
            tokens = torch.full((len(rows), length), pad_id(subject))
            real = torch.zeros_like(tokens)
            for place, prompt in enumerate(prompts):
                tokens[place, length - len(prompt) :] = torch.tensor(prompt)
                real[place, length - len(prompt) :] = 1
            out = subject.model.generate(
                input_ids=tokens.to(subject.device), attention_mask=real.to(subject.device), do_sample=False, num_beams=1,
                max_new_tokens=max_new_tokens, pad_token_id=pad_id(subject), eos_token_id=_ends(subject),
                logits_processor=None if choose is None else [choose(rows, length)],
            )  # fmt: skip
            texts = subject.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                said[row] = text
    return said


def _ends(subject: Subject) -> list[int] | None:
    """Tokens that end a text: the tokenizer's, and those of the model's own settings (the end of a turn of a chat)."""
    told = getattr(getattr(subject.model, "generation_config", None), "eos_token_id", None)
    every = {subject.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}
    return sorted(every) or None


def _prompt_ids(subject: Subject, corpus: Corpus, row: int) -> list[int]:
    prompt = corpus[row].prompt
    if isinstance(prompt, str):
        return list(tokenised(subject, prompt, name=f"example {corpus[row].id!r}")["input_ids"])
    text = _rendered(subject, prompt, f"example {corpus[row].id!r}")
    return list(subject.tokenizer(text, add_special_tokens=False)["input_ids"])


def _by_length(ids: Sequence[list[int]], batch_size: int) -> Iterator[Batch]:
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield rows, [ids[row] for row in rows]


def _cut(text: str, stops: Sequence[str]) -> str:
    text = text.lstrip()
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()
