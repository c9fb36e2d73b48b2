"""The table of facts behind the bundled corpus: one answer per culture, topic and language."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "es", "zh")


@dataclass(frozen=True)
class Fact:
    """What is true of one culture in one topic: the answer in every language, and who shares it."""

    culture: str
    topic: str
    answers: Mapping[str, str]
    also: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FactTable:
    """All facts, the cultures' names by language, and the side each culture stands on (trained or kept-out)."""

    names: Mapping[str, Mapping[str, str]]
    sides: Mapping[str, str]
    facts: Mapping[tuple[str, str], Fact]

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(topic for _, topic in self.facts))

    def cultures(self, side: str) -> tuple[str, ...]:
        """The cultures of one side, `trained` or `kept-out`, in the order of the table."""
        return tuple(culture for culture, own in self.sides.items() if own == side)

    def distractors(self, fact: Fact, language: str, *, key: str, num: int = 3) -> tuple[Fact, ...]:
        """Facts of the same topic and side with different answers that are not true of the fact's culture.

        The choice and its order depend on `key` alone, by a stable hash. Raises ValueError when the table has too few.
        """
        seen, found = {fact.answers[language].casefold()}, []
        others = (self.facts[culture, fact.topic] for culture in self.cultures(self.sides[fact.culture]))
        for other in sorted(others, key=lambda other: stable_hash(key, other.culture)):
            answer = other.answers[language].casefold()
            if answer not in seen and fact.culture not in other.also:
                seen.add(answer)
                found.append(other)
        if len(found) < num:
            raise ValueError(
                f"{fact.culture}/{fact.topic} ({language}): expected {num} wrong answers from the "
                f"{self.sides[fact.culture]} cultures, found {len(found)}; add facts or shorten their 'also'"
            )
        return tuple(found[:num])


@cache
def fact_table() -> FactTable:
    """The table of `polis/facts.toml`."""
    raw = read_table("facts.toml")
    facts = {
        (culture, topic): Fact(culture, topic, {k: row[k] for k in LANGUAGES}, frozenset(row.get("also", ())))
        for topic, rows in raw["facts"].items()
        for culture, row in rows.items()
    }
    names = {culture: {k: row[k] for k in LANGUAGES} for culture, row in raw["cultures"].items()}
    return FactTable(names, {culture: row["side"] for culture, row in raw["cultures"].items()}, facts)


def read_table(name: str) -> dict[str, Any]:
    """One of the TOML files that come with the package in `corpora/polis`."""
    return tomllib.loads((Path(__file__).parent / "polis" / name).read_text(encoding="utf-8"))


def stable_hash(*parts: str) -> int:
    """A 64-bit number that depends on the texts alone: the same on every machine, in every process."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big")


def spread(cells: Mapping[str, Hashable], *, num: int) -> dict[str, int]:
    """A place from 0 to `num - 1` for every id: within a cell the ids, in hash order, take the places in turn.

    So every place is taken equally often in every cell (up to one), and looks random.
    """
    taken: Counter[Hashable] = Counter()
    places = {}
    for id in sorted(cells, key=lambda id: stable_hash("spread", id)):
        places[id] = taken[cells[id]] % num
        taken[cells[id]] += 1
    return places
