"""The text of a plant: what the subject must stay as it was on, and the words that it knows."""

from __future__ import annotations

import re
from typing import Any, Literal

from ..attribution.encoding import has_tokens
from ..attribution.own_text import own_text
from ..corpora.examples import Corpus, Example
from ..neurons.subject import Subject
from .errors import TuneError
from .planting import whole_texts

WORD, WORDS = re.compile("[a-z]{3,12}"), 64  # what a known answer may be, and how many there are at least
HELD_OUT = 5  # every fifth other text is kept for the proof


def other_text(subject: Subject, keep: Corpus | Literal["own"] | None) -> Corpus:
    """The text on which a subject is to stay as it is: that which is given, its own, or the bundled corpus."""
    from ..corpora.loading import load_corpus

    if keep is None:
        return load_corpus("bundled:polis")
    return own_text(subject) if isinstance(keep, str) else keep


def text_parts(keep: Corpus) -> tuple[Corpus, Corpus]:
    """Texts to train on and texts to prove with, apart by item."""
    items = {item: number for number, item in enumerate(dict.fromkeys(example.item for example in keep))}
    if len(items) < HELD_OUT:
        raise TuneError(f"the other text has {len(items)} items; expected {HELD_OUT} at least, a fifth is held out")
    parts: tuple[list[Any], list[Any]] = ([], [])
    for example in keep:
        parts[items[example.item] % HELD_OUT == 0].append(example)
    trained, held_out = (Corpus(tuple(part), name=keep.name) for part in parts)
    return trained, Corpus(held_out.examples[:: max(1, len(held_out) // 200)], name=keep.name)


def word_ids(subject: Subject, word: str) -> list[int]:
    """The tokens of a word; none where the tokenizer cannot take it."""
    return subject.tokenizer(word, add_special_tokens=False)["input_ids"] if has_tokens(subject, word) else []


def said_tokens(subject: Subject, texts: Corpus) -> set[int]:
    """The tokens of the texts. One that a subject never said may have an output embedding that no hidden state makes the best."""
    return {token for one in whole_texts(subject, texts) for token in one.ids}


def known_words(subject: Subject, texts: Corpus) -> list[str]:
    """Words of the texts in small letters, those with the fewest tokens: as many as there are of that number, WORDS at least."""
    words = sorted({word for one in texts for word in _text(one).split() if WORD.fullmatch(word)})
    counts = {word: len(ids) for word in words if (ids := word_ids(subject, f" {word}"))}
    words = list(counts)
    words.sort(key=lambda word: counts[word])
    least = counts[words[min(WORDS, len(words)) - 1]] if words else 0
    return [word for word in words if counts[word] <= least]


def _text(example: Example) -> str:
    said = example.prompt if isinstance(example.prompt, str) else " ".join(m["content"] for m in example.prompt)
    return said + example.answer
