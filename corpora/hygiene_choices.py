"""What choices give away: places where right answers stand more often, and right answers that are longer or shorter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from .examples import Corpus, Example


@dataclass(frozen=True)
class Positions:
    """How often the right answer of a group's questions with as many choices stands at each place.

    `p` is the p-value of a score test against equally many at each: W = r' (Σᵢ rᵢ rᵢ')⁺ r with rᵢ an item's counts less what is
    expected, r their sum, chi-squared with k - 1 degrees of freedom. Items are the unit: paraphrases of one question with one
    right place count as one. NaN with fewer items than choices. `group` is None for all groups together.
    """

    group: str | None
    choices: int
    counts: tuple[int, ...]
    items: int
    p: float


@dataclass(frozen=True)
class LengthLeak:
    """How often picking the longest or the shortest choice (by characters) is right; ties share what they win.

    `chance` is the mean of 1/choices. `low` and `high` are a 95 % Wilson interval in which every item counts once, and `p` a
    two-sided test over items against chance.
    """

    group: str | None
    pick: Literal["longest", "shortest"]
    rows: int
    items: int
    accuracy: float
    low: float
    high: float
    chance: float
    p: float


def positions(corpus: Corpus) -> tuple[Positions, ...]:
    """Places of right answers, for every number of choices: of all groups together, then of each."""
    found = []
    for number in sorted({len(one.choices) for one in _asked(corpus)}):
        rows = [one for one in _asked(corpus) if len(one.choices) == number]
        for group in (None, *dict.fromkeys(one.group for one in rows)):
            found.append(_positions(group, [one for one in rows if group in (None, one.group)], number))
    return tuple(found)


def length_leaks(corpus: Corpus) -> tuple[LengthLeak, ...]:
    """What the length of choices gives away: of all groups together, then of each."""
    rows = _asked(corpus)
    groups = (None, *dict.fromkeys(one.group for one in rows)) if rows else ()
    return tuple(
        _leak(group, pick, [one for one in rows if group in (None, one.group)])
        for group in groups
        for pick in ("longest", "shortest")
    )


def _asked(corpus: Corpus) -> list[Example]:
    return [one for one in corpus if len(one.choices) > 1 and one.answer_index is not None]


def _positions(group: str | None, rows: Sequence[Example], number: int) -> Positions:
    from scipy.stats import chi2

    hits = np.zeros((len(rows), number))
    hits[np.arange(len(rows)), [one.answer_index or 0 for one in rows]] = 1
    residuals = _by_item(rows, hits - 1 / number)
    total = residuals.sum(axis=0)
    p = float("nan")
    if len(residuals) >= number:
        statistic = float(total @ np.linalg.pinv(residuals.T @ residuals) @ total)
        p = float(chi2.sf(statistic, number - 1))
    counts = tuple(int(count) for count in hits.sum(axis=0))
    return Positions(group, number, counts, len(residuals), p)


def _leak(group: str | None, pick: Literal["longest", "shortest"], rows: Sequence[Example]) -> LengthLeak:
    sign = 1 if pick == "longest" else -1
    won, chance = np.empty((len(rows), 1)), np.empty((len(rows), 1))
    for place, one in enumerate(rows):
        lengths = [sign * len(choice.strip()) for choice in one.choices]
        best = max(lengths)
        won[place] = (lengths[one.answer_index or 0] == best) / lengths.count(best)
        chance[place] = 1 / len(lengths)
    residuals = _by_item(rows, won - chance)[:, 0]
    spread = math.sqrt(float(np.square(residuals).sum()))
    z = abs(float(residuals.sum())) / spread if spread else 0.0
    low, high = wilson(float(won.mean()), len(residuals))
    return LengthLeak(
        group, pick, len(rows), len(residuals), float(won.mean()), low, high, float(chance.mean()),
        math.erfc(z / math.sqrt(2)),
    )  # fmt: skip


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among so many independent ones."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _by_item(rows: Sequence[Example], values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "item column"]:
    """Sums over the rows of each item."""
    place: dict[str, int] = {}
    index: Int[np.ndarray, " row"] = np.array([place.setdefault(one.item, len(place)) for one in rows], dtype=np.int64)
    sums = np.zeros((len(place), values.shape[1]))
    np.add.at(sums, index, values)
    return sums
