"""Splitting: items stay whole, shares are met in every group, additions move little, near-duplicates join."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.corpora.bundled import polis
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.corpora.splitting import merged_items, split_corpus


def row(item: str, group: str = "north", number: int = 0, **more: str) -> Example:
    return Example(
        f"{group}/{item}/{number}", group, f"{group} asks {item} {number}:", " yes", tags={"item": item, **more}
    )


def items_by_split(corpus: Corpus) -> dict[str, dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {}
    for one in corpus:
        found.setdefault(one.group, {}).setdefault(one.tags["split"], set()).add(one.item)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 23), min_size=1),
    st.sampled_from([{"train": 0.8, "test": 0.2}, {"train": 0.5, "dev": 0.25, "test": 0.25}]),
    st.integers(0, 5),
)
def test_items_stay_whole_and_every_group_meets_its_shares(
    sizes: dict[str, int], shares: dict[str, float], seed: int
) -> None:
    rows = [row(f"{g}{i}", g, n) for g, size in sizes.items() for i in range(size) for n in range(1 + i % 3)]
    found = split_corpus(Corpus(tuple(rows)), shares, seed=seed)
    splits: dict[str, set[str]] = {}
    for one in found:
        splits.setdefault(one.item, set()).add(one.tags["split"])
    assert all(len(own) == 1 for own in splits.values())
    for group, own in items_by_split(found).items():
        for name, share in shares.items():
            assert abs(len(own.get(name, ())) - share * sizes[group]) < 1


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    corpus = polis().only(language="en")
    placed = {one.id: one.tags["split"] for one in split_corpus(corpus)}
    turned = split_corpus(replace(corpus, examples=corpus.examples[::-1]))
    assert {one.id: one.tags["split"] for one in turned} == placed
    other = split_corpus(corpus, seed=1)
    assert {one.id: one.tags["split"] for one in other} != placed


def test_items_of_several_groups_are_shared_out_alike() -> None:
    rows = [row(str(i), g) for i in range(10) for g in ("en", "es")]
    rows += [row(f"only {g} {i}", g) for i in range(5) for g in ("en", "es")]
    own = items_by_split(split_corpus(Corpus(tuple(rows)), {"train": 0.8, "test": 0.2}))
    assert {g: len(parts["test"]) for g, parts in own.items()} == {"en": 3, "es": 3}


def test_an_added_item_moves_few_others() -> None:
    corpus = Corpus(tuple(row(str(i)) for i in range(50)))
    before = {one.id: one.tags["split"] for one in split_corpus(corpus)}
    after = {one.id: one.tags["split"] for one in split_corpus(corpus + Corpus((row("new"),)))}
    assert sum(before[id] != after[id] for id in before) <= 1


def test_keeping_leaves_what_was_placed_and_evens_out() -> None:
    old = split_corpus(Corpus(tuple(row(str(i)) for i in range(10))), {"train": 0.9, "test": 0.1})
    new = Corpus((*(row(f"new {i}") for i in range(10)), row("0", number=7)))
    found = split_corpus(old + new, {"train": 0.6, "test": 0.4}, keep=True)
    kept = {one.id: one.tags["split"] for one in found}
    assert all(kept[one.id] == one.tags["split"] for one in old)
    assert kept["north/0/7"] == kept["north/0/0"]
    assert Counter(len(own) for own in items_by_split(found)["north"].values()) == {12: 1, 8: 1}


def test_keeping_refuses_what_is_on_both_sides() -> None:
    rows = Corpus((row("a", split="train"), row("a", number=1, split="test")))
    with pytest.raises(CorpusError, match="'a' has rows in train and test already"):
        split_corpus(rows, keep=True)
    with pytest.raises(CorpusError, match="'a' is in split 'dev', which has no share"):
        split_corpus(Corpus((row("a", split="dev"),)), keep=True)


def test_another_tag_can_stay_together() -> None:
    rows = [row(str(i), template=f"t{i % 4}") for i in range(20)]
    found = split_corpus(Corpus(tuple(rows)), {"train": 0.5, "test": 0.5}, by="template")
    placed = {(one.tags["template"], one.tags["split"]) for one in found}
    assert len(placed) == 4
    with pytest.raises(CorpusError, match="has no tag 'source' to split by; its tags are item, template"):
        split_corpus(Corpus(tuple(rows)), by="source")


def test_near_duplicates_become_one_item_and_minimal_pairs_do_not() -> None:
    long = "what do people in a small town of the coast eat on the first morning of the year"
    rows = (
        Example("1", "north", long + "?", " soup", tags={"item": "a"}),
        Example("2", "north", long + "?!", " bread", tags={"item": "b"}),
        Example("3", "south", long + "!?", " corn", tags={"item": "c"}),
        Example("4", "south", "something else entirely", " corn", tags={"item": "d"}),
    )
    found = merged_items(Corpus(rows), near=0.8)
    assert [one.item for one in found] == ["a", "a", "c", "d"]
    assert [one.tags.get("item_before") for one in found] == [None, "b", None, None]
    same = (*rows[:2], replace(rows[2], answer=" soup"), rows[3])
    assert [one.item for one in merged_items(Corpus(same))] == ["a", "a", "a", "d"]
    split = split_corpus(Corpus(same), {"train": 0.5, "test": 0.5}, merge_near=0.8)
    assert len({one.tags["split"] for one in split.examples[:3]}) == 1


@pytest.mark.parametrize(
    "shares", [{}, {"train": 0.0, "test": 1.0}, {"train": 0.5, "test": 0.4}, {"train": -1.0, "test": 2.0}]
)
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(CorpusError, match="shares"):
        split_corpus(Corpus((row("a"),)), shares)


def test_a_group_gets_back_what_its_shared_items_left_it_short_of() -> None:
    """Two items alone go to train whole (1.6 rounds up): four times that would leave `a`, whose share is 1.6, no test item."""
    rows = [row(f"{other}{i}", g) for other in ("b", "c", "d") for i in range(2) for g in ("a", other)]
    rows += [row(f"a{i}", "a") for i in range(2)]
    own = items_by_split(split_corpus(Corpus(tuple(rows)), {"train": 0.8, "test": 0.2}))
    assert {name: len(items) for name, items in own["a"].items()} == {"train": 7, "test": 1}


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("strata", [3, 8, 20])
def test_a_group_whose_items_stand_in_many_others_meets_its_shares_too(size: int, strata: int) -> None:
    rows = [row(f"{place}/{i}", g) for place in range(strata) for i in range(size) for g in ("all", str(place))]
    own = items_by_split(split_corpus(Corpus(tuple(rows)), {"train": 0.8, "test": 0.2}))["all"]
    assert abs(len(own.get("test", ())) - 0.2 * size * strata) < 1.5
