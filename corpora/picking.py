"""Picking: the share of a corpus that a score says is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .examples import Corpus, CorpusError, Example
from .facts import stable_hash


@dataclass(frozen=True)
class Picked:
    """The rows that were picked, in their order, and what was left out of the choice.

    `missing` are ids of rows without a score, which are never picked. `tied` is the number of rows that have the score at which
    the cut was made, on both sides of it: which of those are in was decided by a hash of their ids.
    """

    corpus: Corpus
    missing: tuple[str, ...]
    tied: int


def pick(
    corpus: Corpus,
    by: str,
    *,
    share: float = 0.5,
    per: Literal["group", "item", "all"] = "group",
    lowest: bool = False,
    seed: int = 0,
) -> Picked:
    """The best `share` of the rows that have a score, by the number in the tag `by` (the highest, or the `lowest`).

    `per="group"` takes that share of every group, rounded and at least one row; `"item"` of every item of a group, so that none is
    lost; `"all"` of all rows at once, which may leave groups out. A tag that is "nan" or not there is no score.

    Raises CorpusError for a share outside (0, 1], a tag that no row has, or one that is not a number.
    """
    if not 0 < share <= 1:
        raise CorpusError(f"share is {share}; expected the part of the rows that is kept, above 0 up to 1")
    if per not in ("group", "item", "all"):
        raise CorpusError(f"per is {per!r}; expected group, item or all")
    scores = {one.id: value for one in corpus if not math.isnan(value := score_of(one, by))}
    if not scores:
        tags = sorted({tag for one in corpus for tag in one.tags})
        raise CorpusError(
            f"no row has a score in the tag {by!r}; tags are {', '.join(tags) or 'none'} (corpus score adds some)"
        )
    cells: dict[tuple[str, ...], list[Example]] = {}
    for one in corpus:
        if one.id in scores:
            key = {"group": (one.group,), "item": (one.group, one.item), "all": ()}[per]
            cells.setdefault(key, []).append(one)
    kept: set[str] = set()
    tied = 0
    for rows in cells.values():
        chosen, ties = _best(rows, {i: value if lowest else -value for i, value in scores.items()}, share, seed)
        kept |= chosen
        tied += ties
    missing = tuple(one.id for one in corpus if one.id not in scores)
    return Picked(replace(corpus, examples=tuple(one for one in corpus if one.id in kept)), missing, tied)


def score_of(example: Example, tag: str) -> float:
    """The number in a tag; NaN where it is not there. Raises CorpusError where it is no number."""
    try:
        return float(example.tags.get(tag, "nan"))
    except ValueError:
        raise CorpusError(f"example {example.id!r}: tag {tag!r} is {example.tags[tag]!r}; expected a number") from None


def _best(rows: Sequence[Example], costs: dict[str, float], share: float, seed: int) -> tuple[set[str], int]:
    """Ids of the cheapest share of rows, and how many rows stand at the cut where it runs through equal ones."""
    order = sorted(rows, key=lambda one: (costs[one.id], stable_hash("pick", str(seed), one.id)))
    count = max(1, round(share * len(rows)))
    kept = {one.id for one in order[:count]}
    cut = costs[order[count - 1].id]
    split = count < len(order) and costs[order[count].id] == cut
    return kept, sum(costs[one.id] == cut for one in rows) if split else 0
