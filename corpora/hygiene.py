"""Corpus hygiene: what a corpus is made of and what about it would mislead, before any neuron is blamed for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .examples import Corpus
from .hygiene_choices import LengthLeak, Positions, length_leaks, positions
from .hygiene_copies import Copies, copies
from .hygiene_texts import Count, Fertility, Writing, cell_names, counted, damaged, fertility, written

LEVEL = 0.05
UNEVEN = 2.0  # groups, or texts of groups, that differ by this factor are worth a sentence
COSTLY = 2.0  # a language that takes this many times the tokens of the cheapest


@dataclass(frozen=True)
class Hygiene:
    """What `check_corpus` found. `problems` are sentences; the rest is what they were drawn from.

    `told_apart_by` says what `writing` and `fertility` are by, the tag "language" or the group. `copies` is by kind (see
    `hygiene_copies.copies`). `same_control` are ids of rows whose control twin is the question itself. `damage` are ids by what is
    seen in their texts. `tokenizer` names the one that `fertility` was measured with.
    """

    corpus: str
    hash: str
    counts: tuple[Count, ...]
    told_apart_by: str
    writing: tuple[Writing, ...]
    copies: Mapping[str, Copies]
    positions: tuple[Positions, ...]
    lengths: tuple[LengthLeak, ...]
    same_control: tuple[str, ...]
    damage: Mapping[str, Sequence[str]]
    fertility: tuple[Fertility, ...] = ()
    tokenizer: str | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that would mislead; empty where nothing was found."""
        return (
            *_of_counts(self), *_of_texts(self), *_of_copies(self.copies), *_of_choices(self), *_of_fertility(self.fertility),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, NaN as None."""
        return _plain({**asdict(self), "problems": list(self.problems)})


def check_corpus(
    corpus: Corpus, *, near: float = 0.8, tokenizer: Any = None, tokenizer_name: str | None = None
) -> Hygiene:
    """Counts, writing systems, duplicates, answer positions, length leaks, control twins, and with a tokenizer its cost.

    `near` is the Jaccard coefficient of character 4-grams from which prompts count as near-duplicates. `tokenizer` is a Hugging
    Face one. Nothing is random: the same corpus gives the same result.
    """
    return Hygiene(
        corpus.name, corpus.hash, counted(corpus), cell_names(corpus)[0], written(corpus), copies(corpus, near=near),
        positions(corpus), length_leaks(corpus), tuple(one.id for one in corpus if one.control == one.prompt), damaged(corpus),
        () if tokenizer is None else fertility(corpus, tokenizer),
        None if tokenizer is None else tokenizer_name or str(getattr(tokenizer, "name_or_path", "")) or "tokenizer",
    )  # fmt: skip


def _of_counts(found: Hygiene) -> Iterator[str]:
    counts = found.counts
    rows: dict[str, int] = {}
    for one in counts:
        rows[one.group] = rows.get(one.group, 0) + one.rows
    least, most = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
    if rows[most] >= UNEVEN * rows[least]:
        yield (
            f"groups are uneven: {most} has {rows[most]} rows, {least} {rows[least]}; scores of small groups are less certain"
        )
    for one in counts:
        if one.items == 1:
            where = "" if one.split is None else f" in split {one.split}"
            yield f"group {one.group} has one item{where}: nothing generalises over items, and no interval can be given"
    splits = {one.split for one in counts}
    if len(splits) > 1 and None in splits:
        untagged = sum(one.rows for one in counts if one.split is None)
        yield f"rows without the tag 'split', where others have one: {untagged}; verbs that take a split refuse such a corpus"
    for split in sorted(splits - {None}, key=str):
        empty = [group for group in rows if group not in {one.group for one in counts if one.split == split}]
        if empty:
            yield f"split {split} has no row of {_listed(empty)}"
    missing = sum(one.without_control for one in counts)
    total = sum(rows.values())
    if missing == total:
        yield "no row has a control twin: sets cannot be contrasted with controls, nor questions with their twins"
    elif missing:
        groups = list(dict.fromkeys(one.group for one in counts if one.without_control))
        yield f"rows without a control twin: {missing} of {total} (groups {_listed(groups)}); a contrast with controls refuses them"
    if found.same_control:
        first = found.same_control[0]
        yield f"control twins that are the question itself: {len(found.same_control)} (first {first}); no contrast is left"


def _of_texts(found: Hygiene) -> Iterator[str]:
    for kind in ("prompt", "answer"):
        by_script: dict[str, dict[str, float]] = {}
        for one in found.writing:  # characters compare within one writing system only
            by_script.setdefault(next(iter(one.scripts), ""), {})[one.cell] = getattr(one, kind)
        for own in by_script.values():
            if max(own.values()) >= UNEVEN * max(1.0, min(own.values())):
                long, short = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
                yield (
                    f"{kind}s are of uneven length: the median has {own[long]:g} characters in {long}, {own[short]:g} in {short}; "
                    "scores that sum over tokens differ by that alone"
                )
    for one in found.writing:
        if one.strays:
            what = f"rows of {one.cell} that are mostly in a writing system that its other rows hardly use"
            yield f"{what}: {len(one.strays)} (first {one.strays[0]})"
    for sign, ids in found.damage.items():
        yield f"rows that hold {sign}: {len(ids)} (first {ids[0]})"


def _of_copies(found: Mapping[str, Copies]) -> Iterator[str]:
    words = {
        "repeated": ("rows that repeat the prompt and answer of another row of their group", "they count twice"),
        "contradictory": ("prompts that have several answers within one group", "at most one of them can be learned"),
        "shared": ("questions that several groups have word for word, with the same answer", "they mark neurons of neither"),
        "undecided": (
            "questions that several groups have word for word, with different answers",
            "the prompt does not say whose answer is wanted",
        ),
        "near_shared": ("pairs of questions of different groups that are nearly the same and have the same answer", "look at them"),
        "split_items": ("items that have rows in several splits", "what is measured in one was seen in the other"),
        "split_prompts": ("prompts that stand in several splits under different items", "split again with --merge-near"),
        "near_splits": (
            "pairs of nearly the same questions in different splits under different items", "split again with --merge-near",
        ),
    }  # fmt: skip
    for kind, (what, why) in words.items():
        one = found[kind]
        if one.count:
            yield f"{what}: {one.count} (first {' | '.join(one.samples[0][:2])}); {why}"


def _of_choices(found: Hygiene) -> Iterator[str]:
    tested = [one for one in found.positions if not math.isnan(one.p)]
    own = max(1, len([one for one in tested if one.group is not None]))
    for one in tested:
        tests = 1 if one.group is None else own
        if one.p * tests < LEVEL:
            most, number = max(one.counts), sum(one.counts)
            yield (
                f"right answers{_whose(one.group)} stand at place {one.counts.index(most) + 1} of {one.choices} in {most} of "
                f"{number} questions (p {_small(min(1.0, one.p * tests))} against even)"
            )
    own = max(1, len([one for one in found.lengths if one.group is not None]))
    for one in found.lengths:
        tests = 2 if one.group is None else own
        if one.p * tests < LEVEL and one.low > one.chance:
            yield (
                f"choices leak by length{_whose(one.group)}: picking the {one.pick} is right in {100 * one.accuracy:.1f} % "
                f"({100 * one.low:.1f} to {100 * one.high:.1f}), chance {100 * one.chance:.1f} %"
            )


def _of_fertility(found: Sequence[Fertility]) -> Iterator[str]:
    for one in found:
        if one.premium >= COSTLY:
            yield (
                f"the same items take {one.premium:.1f} times as many tokens in {one.cell} as in the cheapest language; scores "
                "that sum over tokens differ by that alone"
            )
        if one.unknown > 0:
            share = f"{100 * one.unknown:.1f} %"
            yield f"{share} of the tokens of {one.cell} are unknown to the tokenizer: their text is lost to the model"


def _whose(group: str | None) -> str:
    return "" if group is None else f" of {group}"


def _small(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
