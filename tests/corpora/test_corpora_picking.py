"""Picking: shares by group, ties by hash, rows without a score left out and named."""

from __future__ import annotations

import pytest
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.corpora.picking import pick


def corpus(*scores: tuple[str, str | None]) -> Corpus:
    return Corpus(
        tuple(
            Example(f"{group}{place}", group, "p", "a", tags={} if score is None else {"dual": score})
            for place, (group, score) in enumerate(scores)
        )
    )


def ids(rows: Corpus) -> list[str]:
    return [one.id for one in rows]


def test_the_best_share_of_every_group_in_the_order_of_rows() -> None:
    rows = corpus(("n", "0.1"), ("n", "3"), ("s", "-1"), ("s", "-2"), ("n", "2e0"), ("n", "0.5"))
    assert ids(pick(rows, "dual").corpus) == ["n1", "s2", "n4"]
    assert ids(pick(rows, "dual", lowest=True).corpus) == ["n0", "s3", "n5"]
    assert ids(pick(rows, "dual", per="all").corpus) == ["n1", "n4", "n5"]
    assert ids(pick(rows, "dual", share=0.01).corpus) == ["n1", "s2"]


def test_no_item_is_lost_where_the_share_is_of_each() -> None:
    rows = [
        Example(f"{item}{n}", "g", "p", "a", tags={"item": item, "dual": str(10 * (item == "x") + n)})
        for item in "xyz" for n in range(4)
    ]  # fmt: skip
    found = pick(Corpus(tuple(rows)), "dual", per="item").corpus
    assert ids(found) == ["x2", "x3", "y2", "y3", "z2", "z3"]
    assert {one.item for one in pick(Corpus(tuple(rows)), "dual", share=1 / 3).corpus} == {"x"}


def test_rows_without_a_score_are_named_and_never_picked() -> None:
    found = pick(corpus(("n", None), ("n", "1"), ("n", "nan"), ("n", "2")), "dual", share=1.0)
    assert ids(found.corpus) == ["n1", "n3"]
    assert found.missing == ("n0", "n2")


def test_ties_at_the_cut_are_counted_and_decided_by_id() -> None:
    rows = corpus(*[("n", "1")] * 8)
    found = pick(rows, "dual", share=0.5)
    assert len(found.corpus) == 4
    assert found.tied == 8
    turned = pick(Corpus(rows.examples[::-1]), "dual", share=0.5)
    assert set(ids(turned.corpus)) == set(ids(found.corpus))
    assert any(set(ids(pick(rows, "dual", seed=seed).corpus)) != set(ids(found.corpus)) for seed in range(1, 4))
    assert pick(corpus(("n", "2"), ("n", "1"), ("n", "1"), ("n", "0")), "dual", share=0.75).tied == 0


def test_what_cannot_be_picked_from_is_refused() -> None:
    rows = corpus(("n", "good"))
    with pytest.raises(CorpusError, match="example 'n0': tag 'dual' is 'good'; expected a number"):
        pick(rows, "dual")
    with pytest.raises(CorpusError, match="no row has a score in the tag 'pi'; tags are dual"):
        pick(rows, "pi")
    with pytest.raises(CorpusError, match=r"share is 1\.5"):
        pick(rows, "dual", share=1.5)
    with pytest.raises(CorpusError, match="per is 'language'"):
        pick(rows, "dual", per="language")  # pyright: ignore[reportArgumentType]
