"""Duplicates: questions that groups share, questions that splits share, and questions that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .examples import Corpus, Example
from .near import NearPairs, near_pairs, normalised, plain_text

SHOWN = 5


@dataclass(frozen=True)
class Copies:
    """One kind of duplicate: how many there are (prompts, pairs, items or rows, as `what` says), and a few of them by id."""

    what: str
    count: int
    samples: tuple[tuple[str, ...], ...] = ()
    complete: bool = True


def copies(corpus: Corpus, *, near: float = 0.8) -> dict[str, Copies]:
    """Duplicates by kind. Prompts are compared after NFKC, without case and white space; `near` is the least Jaccard coefficient.

    - `repeated`: rows that repeat another row of their group, prompt and answer.
    - `contradictory`: prompts that have several answers within one group.
    - `shared`: prompts that several groups have with the same answer; `undecided`: with different answers.
    - `near_shared`: pairs of nearly the same prompts of different groups with the same answer; `near_undecided`: with different
      ones, as questions of one template have that differ in the group's name.
    - `split_items`: items with rows in several splits.
    - `split_prompts`: prompts that stand in several splits under different items.
    - `near_splits`: pairs of nearly the same prompts that stand in different splits under different items (minimal pairs left
      out, see `alike`).
    """
    texts, rows = by_prompt(list(corpus))
    found = _exact(rows) | _between_splits(corpus, rows)
    return found | _near(rows, near_pairs(texts, threshold=near))


def by_prompt(examples: Sequence[Example]) -> tuple[list[str], list[list[Example]]]:
    """The different normalised prompts, and the examples of each."""
    found: dict[str, list[Example]] = {}
    for one in examples:
        found.setdefault(normalised(plain_text(one.prompt)), []).append(one)
    return list(found), list(found.values())


def _exact(rows: Sequence[Sequence[Example]]) -> dict[str, Copies]:
    repeated, contradictory, shared, undecided = [], [], [], []
    for same in rows:
        if len(same) == 1:
            continue
        answers: dict[str, dict[str, list[str]]] = {}
        for one in same:
            answers.setdefault(one.group, {}).setdefault(normalised(one.answer), []).append(one.id)
        repeated += [ids for own in answers.values() for ids in own.values() if len(ids) > 1]
        contradictory += [_firsts(own.values()) for own in answers.values() if len(own) > 1]
        if len(answers) > 1:
            common = set.intersection(*(set(own) for own in answers.values()))
            firsts = _firsts(ids for own in answers.values() for ids in own.values())
            (shared if common else undecided).append(firsts)
    return {
        "repeated": Copies("rows that repeat another of their group", sum(map(len, repeated)) - len(repeated), _samples(repeated)),
        "contradictory": Copies("prompts with several answers in one group", len(contradictory), _samples(contradictory)),
        "shared": Copies("prompts that groups share, same answer", len(shared), _samples(shared)),
        "undecided": Copies("prompts that groups share, different answers", len(undecided), _samples(undecided)),
    }  # fmt: skip


def _between_splits(corpus: Corpus, rows: Sequence[Sequence[Example]]) -> dict[str, Copies]:
    by_item: dict[str, dict[str, str]] = {}
    for one in corpus:
        if "split" in one.tags:
            by_item.setdefault(one.item, {}).setdefault(one.tags["split"], one.id)
    items = [list(own.values()) for own in by_item.values() if len(own) > 1]
    prompts = []
    for same in rows:
        tagged = {(one.tags["split"], one.item): one.id for one in same if "split" in one.tags}
        differing = ([tagged[a], tagged[b]] for a, b in combinations(tagged, 2) if a[0] != b[0] and a[1] != b[1])
        if (ids := next(differing, None)) is not None:
            prompts.append(ids)
    return {
        "split_items": Copies("items with rows in several splits", len(items), _samples(items)),
        "split_prompts": Copies("prompts in several splits under different items", len(prompts), _samples(prompts)),
    }


def _near(rows: Sequence[Sequence[Example]], pairs: NearPairs) -> dict[str, Copies]:
    kinds: dict[str, list[list[str]]] = {"near_shared": [], "near_undecided": [], "near_splits": []}
    for place in np.argsort(-pairs.jaccard, kind="stable").tolist():
        a, b = rows[int(pairs.first[place])], rows[int(pairs.second[place])]
        ids = [a[0].id, b[0].id]
        if len({one.group for one in (*a, *b)}) > 1:
            kinds["near_shared" if _agree(a, b) else "near_undecided"].append(ids)
        if _apart(a, b) and alike(a, b):
            kinds["near_splits"].append(ids)
    what = {
        "near_shared": "pairs of near prompts of different groups, same answer",
        "near_undecided": "pairs of near prompts of different groups, different answers",
        "near_splits": "pairs of near prompts in different splits under different items",
    }
    return {kind: Copies(what[kind], len(ids), _samples(ids), pairs.complete) for kind, ids in kinds.items()}


def alike(a: Sequence[Example], b: Sequence[Example]) -> bool:
    """Whether nearly the same prompts ask the same: in one group, or with one answer.

    Prompts of different groups with different answers are minimal pairs, such as a template with another country's name in it.
    """
    return not {one.group for one in a}.isdisjoint(one.group for one in b) or _agree(a, b)


def _agree(a: Sequence[Example], b: Sequence[Example]) -> bool:
    return not {normalised(one.answer) for one in a}.isdisjoint(normalised(one.answer) for one in b)


def _apart(a: Sequence[Example], b: Sequence[Example]) -> bool:
    """Whether two prompts stand in different splits without being of one item."""
    splits = [{one.tags["split"] for one in rows if "split" in one.tags} for rows in (a, b)]
    if not splits[0] or not splits[1] or len(splits[0] | splits[1]) < 2:
        return False
    return {one.item for one in a}.isdisjoint(one.item for one in b)


def _firsts(ids: Iterable[Sequence[str]]) -> list[str]:
    return [own[0] for own in ids]


def _samples(ids: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(own[:4]) for own in ids[:SHOWN])
