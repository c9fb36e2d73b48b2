"""Parts that readers share: the space before an answer, halves of a sentence, wrong choices, twins, picks."""

from __future__ import annotations

import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .examples import CorpusError, Example
from .formats import Dropped

T = TypeVar("T")

UNSPACED = {  # languages written without blanks between words, by both kinds of ISO 639 code
    *("zh", "zho", "cmn", "yue", "wuu", "ja", "jpn", "th", "tha", "lo", "lao", "km", "khm", "my", "mya"),
    *("bo", "bod", "dz", "dzo"),
}


def only(found: Mapping[str, T], wanted: str | None, *, path: Path, what: str) -> dict[str, T]:
    """The entries named in a list joined by commas, all when it is None; CorpusError says which one is not there."""
    names = [name.strip() for name in wanted.split(",")] if wanted else list(found)
    missing = [name for name in names if name not in found]
    if missing or not found:
        known = sorted(found)
        more = f" and {len(known) - 12} more" if len(known) > 12 else ""
        sought = f"{what} {missing[0]!r}" if missing else what.removesuffix(" of")
        raise CorpusError(f"{path}: no {sought}; there are {', '.join(known[:12]) or 'none'}{more}")
    return {name: found[name] for name in names}


def parted(rows: Iterable[Example | Dropped]) -> tuple[list[Example], list[Dropped]]:
    """The examples, and the rows left out."""
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for row in rows:
        if isinstance(row, Example):
            examples.append(row)
        else:
            dropped.append(row)
    return examples, dropped


def evenly(rows: Sequence[T], most: int | None) -> list[T]:
    """At most so many of the rows, evenly spread over them; all when it is None."""
    count = len(rows) if most is None else min(most, len(rows))
    return [rows[step * len(rows) // count] for step in range(count)]


def space_before(language: str, cue: str = "") -> str:
    """The blank between a cue and an answer in a language, by its ISO 639 code (`ja`, `jpn`, `jpn_Jpan`): " " or "".

    A cue that ends in a full-width mark holds its blank already.
    """
    wide = unicodedata.east_asian_width(cue[-1:] or " ") in "FW"
    return "" if wide or language.replace("_", "-").split("-")[0] in UNSPACED else " "


def halves(text: str) -> tuple[str, str]:
    """A text cut near its middle: at a blank (which begins the second half), else between two characters.

    The blank must lie in the middle half of the text; without one there (scripts without blanks) the cut is the middle,
    moved behind marks that belong to the character before. The second half is empty for fewer than two characters.
    """
    text, middle = text.strip(), len(text.strip()) // 2
    blanks = [place for place, char in enumerate(text) if char.isspace() and abs(place - middle) <= len(text) / 4]
    place = min(blanks, key=lambda blank: abs(blank - middle), default=middle)
    while not blanks and place < len(text) and _joins(text[place]):
        place += 1
    return text[:place], text[place:]


def placed(answer: str, wrong: Sequence[str], *, key: str) -> tuple[tuple[str, ...], int]:
    """The answer among the wrong choices, and its place: the same for the same key, about evenly spread over keys."""
    place = zlib.crc32(key.encode()) % (len(wrong) + 1)
    return (*wrong[:place], answer, *wrong[place:]), place


def with_choices(
    examples: Iterable[Example], *, num: int = 4, near: Callable[[str], float] = len
) -> tuple[Example, ...]:
    """The examples with answers of others as wrong choices: `num` choices of the same group and split, nearest by `near`.

    By default choices are alike in length, so that length does not give the right one away. Answers of the same item are
    never wrong choices of each other. Fewer are given where there are fewer; an example with none stays without choices.
    """
    rows = tuple(examples)
    answers: dict[Hashable, set[str]] = defaultdict(set)
    own: dict[Hashable, set[str]] = defaultdict(set)
    for row in rows:
        answers[_pool(row)].add(row.answer)
        own[_pool(row), row.item].add(row.answer)
    ordered = {pool: sorted(found, key=lambda text: (near(text), text)) for pool, found in answers.items()}
    places = {pool: {text: place for place, text in enumerate(found)} for pool, found in ordered.items()}
    made = []
    for row in rows:
        pool = _pool(row)
        wrong = _around(ordered[pool], places[pool][row.answer], num=num - 1, but=own[pool, row.item])
        choices, place = placed(row.answer, wrong, key=row.item)
        made.append(replace(row, choices=choices, answer_index=place) if wrong else row)
    return tuple(made)


def with_others_prompts(
    examples: Iterable[Example], *, within: Callable[[Example], Hashable] | None = None
) -> tuple[Example, ...]:
    """The examples with another's prompt as the control: of the same group and split, about another item, other answer.

    The twin has the language, the form and the answer of its example; only that the answer follows from the prompt is
    gone. `within` may keep the pairing closer (same kind of question). Where every answer is the same there is no twin.
    The pairing is a fixed shuffle by item: translations of an item get translations of one twin where both are there.
    """
    rows = tuple(examples)
    pools: dict[Hashable, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        pools[_pool(row), within(row) if within else None].append(place)
    twins: dict[int, Any] = {}
    for pool in pools.values():
        ring = sorted(pool, key=lambda place: (zlib.crc32(rows[place].item.encode()), rows[place].item))
        twins |= {place: rows[other].prompt for place, other in _next_other(rows, ring)}
    return tuple(replace(row, control=twins[n]) if n in twins else row for n, row in enumerate(rows))


def _pool(row: Example) -> Hashable:
    return row.group, row.tags.get("split")


def _joins(char: str) -> bool:
    """Whether a character belongs to the one before: combining marks, joiners."""
    return unicodedata.category(char).startswith("M") or char in "\u200c\u200d"


def _around(ordered: Sequence[str], place: int, *, num: int, but: set[str]) -> list[str]:
    """The `num` texts nearest to a place in the order, left and right in turn, without those in `but`."""
    found: list[str] = []
    for step in range(1, len(ordered)):
        for other in (place - step, place + step):
            if 0 <= other < len(ordered) and len(found) < num and ordered[other] not in but:
                found.append(ordered[other])
        if len(found) == num:
            break
    return found


def _next_other(rows: Sequence[Example], ring: Sequence[int]) -> Iterator[tuple[int, int]]:
    """For every row of a ring the next one whose answer and item are others; a row without one is left out."""
    if len({rows[place].answer for place in ring}) < 2:
        return
    following: int | None = None
    for step in range(2 * len(ring) - 1, -1, -1):  # twice around, so that the last rows find the first
        here, after = (ring[place % len(ring)] for place in (step, step + 1))
        if _differ(rows[here], rows[after]):
            following = after
        elif following is None or not _differ(rows[here], rows[following]):
            following = next((other for other in ring if _differ(rows[here], rows[other])), None)
        if step < len(ring) and following is not None:
            yield here, following


def _differ(one: Example, other: Example) -> bool:
    return one.answer != other.answer and one.item != other.item
