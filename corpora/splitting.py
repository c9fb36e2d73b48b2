"""Splitting by item: rows that are about one thing stand on one side, and every group is shared out alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .examples import Corpus, CorpusError, Example
from .facts import stable_hash
from .hygiene_copies import alike, by_prompt
from .near import first_of_each, near_pairs

SHARES: Mapping[str, float] = {"train": 0.8, "test": 0.2}


def split_corpus(
    corpus: Corpus,
    shares: Mapping[str, float] = SHARES,
    *,
    seed: int = 0,
    by: str = "item",
    keep: bool = False,
    merge_near: float | None = None,
) -> Corpus:
    """The corpus with the tag `split` on every row, so that all rows of one item have the same.

    Items are what `Example.item` says, or with `by` the values of another tag (a template, a source). Items of the same groups
    are ordered by a hash of seed and name and cut by the shares, so each group's shares are met up to one item. The result
    depends on seed and names, not on the order of rows. Adding an item shifts where its own groups are cut, which moves at most
    about one other item of them a cut; with `keep`, rows that have a split stay there (the rest of their item joins them) and
    only new items are placed, to even out the shares.

    `merge_near`: items with prompts whose character 4-grams have at least this Jaccard coefficient become one item: the tag
    `item` becomes that of the first, and what it was the tag `item_before`.

    Raises CorpusError for shares that do not sum to 1, a row without the tag `by`, or with `keep` an item in two splits or a split
    that has no share.
    """
    _check(shares)
    if merge_near is not None:
        corpus = merged_items(corpus, near=merge_near)
    units: dict[str, list[Example]] = {}
    for example in corpus:
        units.setdefault(_unit(example, by), []).append(example)
    placed = _kept(units, shares) if keep else {}
    strata: dict[frozenset[str], list[str]] = {}
    for unit, rows in units.items():
        strata.setdefault(frozenset(one.group for one in rows), []).append(unit)
    owed: dict[str, dict[str, float]] = {group: dict.fromkeys(shares, 0.0) for group in corpus.groups}
    for groups, own in sorted(strata.items(), key=lambda stratum: (-len(stratum[1]), sorted(stratum[0]))):
        there = {name: sum(placed.get(unit) == name for unit in own) for name in shares}
        counts = _counts(shares, len(own), there, [owed[group] for group in sorted(groups)])
        for group in groups:
            for name, share in shares.items():
                owed[group][name] += share * len(own) - counts[name]
        fresh = sorted(
            (unit for unit in own if unit not in placed), key=lambda unit: (stable_hash("split", str(seed), unit), unit)
        )
        names = [name for name in shares for _ in range(counts[name] - there[name])]
        placed |= dict(zip(fresh, names, strict=True))
    tagged = (replace(one, tags={**one.tags, "split": placed[_unit(one, by)]}) for one in corpus)
    return replace(corpus, examples=tuple(tagged))


def merged_items(corpus: Corpus, *, near: float = 0.8) -> Corpus:
    """The corpus in which items that share a prompt, or have nearly the same ones, are one item.

    Prompts are nearly the same from a Jaccard coefficient of `near` (see `near_pairs`), unless they are of different groups and
    have different answers: those are minimal pairs.

    They take the name of the first of them; what an item was called before stands in the tag `item_before`.
    """
    texts, rows = by_prompt(list(corpus))
    pairs = near_pairs(texts, threshold=near)
    items = list(dict.fromkeys(one.item for one in corpus))
    place = {item: number for number, item in enumerate(items)}
    links = [(place[same[0].item], place[other.item]) for same in rows for other in same[1:]]
    for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if alike(rows[a], rows[b]):
            links.append((place[rows[a][0].item], place[rows[b][0].item]))
    names = dict(zip(items, first_of_each(len(items), links), strict=True))

    def renamed(one: Example) -> Example:
        name = items[names[one.item]]
        return one if name == one.item else replace(one, tags={**one.tags, "item": name, "item_before": one.item})

    return replace(corpus, examples=tuple(renamed(one) for one in corpus))


def _check(shares: Mapping[str, float]) -> None:
    if not shares or any(not name or not share > 0 for name, share in shares.items()):
        raise CorpusError(
            f"shares are {dict(shares)}; expected a share above 0 for every split, such as train=0.8, test=0.2"
        )
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise CorpusError(f"shares sum to {sum(shares.values()):g}; expected 1, such as train=0.8, test=0.2")


def _unit(example: Example, by: str) -> str:
    if by == "item":
        return example.item
    if by not in example.tags:
        raise CorpusError(
            f"example {example.id!r} has no tag {by!r} to split by; its tags are {', '.join(sorted(example.tags)) or 'none'}"
        )
    return example.tags[by]


def _kept(units: Mapping[str, Sequence[Example]], shares: Mapping[str, float]) -> dict[str, str]:
    """The split of every unit that has one."""
    placed = {}
    for unit, rows in units.items():
        splits = list(dict.fromkeys(one.tags["split"] for one in rows if "split" in one.tags))
        if len(splits) > 1:
            raise CorpusError(
                f"{unit!r} has rows in {' and '.join(splits)} already; split without keeping, or put them on one side"
            )
        if splits and splits[0] not in shares:
            raise CorpusError(
                f"{unit!r} is in split {splits[0]!r}, which has no share; shares are of {', '.join(shares)}"
            )
        placed |= dict.fromkeys([unit], splits[0]) if splits else {}
    return placed


def _counts(
    shares: Mapping[str, float], num: int, there: Mapping[str, int], owed: Sequence[Mapping[str, float]]
) -> dict[str, int]:
    """How many of `num` items each split gets: never fewer than are `there`, the rest to who is furthest below its share.

    `owed` says of every group of these items how many each split was left short of by other items of the group.
    """
    counts = dict(there)
    carried = {name: sum(one[name] for one in owed) / len(owed) for name in shares}
    for name, share in shares.items():
        counts[name] = max(counts[name], min(math.floor(share * num + 1e-9), counts[name] + num - sum(counts.values())))
    for _ in range(num - sum(counts.values())):
        short = {name: share * num - counts[name] + carried[name] for name, share in shares.items()}
        counts[max(short, key=lambda name: round(short[name], 9))] += 1
    return counts
