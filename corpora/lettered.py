"""Multiple choice as text: options listed in the prompt under letters, the letter as the answer."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from string import ascii_uppercase

from .examples import CorpusError

ANSWER = "Answer:"


def listed(options: Sequence[str]) -> str:
    """The options one to a line, each after its letter: `A. tea`."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def letters(count: int, *, space: str = " ") -> tuple[str, ...]:
    """The letters of so many options as continuations of a prompt that ends in `Answer:`.

    Letters and not the options' texts: the texts differ in length and in how common their words are, so the likelier
    text need not be the better answer, and a twin could not share answer and choices with its question.
    """
    if not 2 <= count <= len(ascii_uppercase):
        raise CorpusError(f"expected 2 to {len(ascii_uppercase)} options, found {count}")
    return tuple(space + letter for letter in ascii_uppercase[:count])


def place_by(key: str, count: int) -> int:
    """A place from 0 to count - 1 that depends on the key alone: the same in every run and on every machine."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % count


def drawn(texts: Sequence[str], count: int, *, key: str) -> list[str]:
    """So many of the texts (or all, when there are fewer), none twice, by the key alone."""
    left = list(texts)
    return [left.pop(place_by(f"{key}/{number}", len(left))) for number in range(min(count, len(left)))]


def turned(options: Sequence[str], *, key: str) -> tuple[str, ...]:
    """The options moved on in a circle by as many places as the key says, so that no place gives the answer away."""
    start = place_by(key, len(options))
    return (*options[start:], *options[:start])
