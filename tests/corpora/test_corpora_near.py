"""Near-duplicates: exact coefficients, nothing missed on made-up texts, the template left out."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.near import first_of_each, near_pairs, normalised, plain_text


def grams(text: str) -> set[str]:
    padded = f" {text} ".ljust(4)
    return {padded[i : i + 4] for i in range(len(padded) - 3)}


def by_hand(a: str, b: str) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def test_a_pair_has_the_coefficient_of_its_grams() -> None:
    texts = ["what is eaten in the morning", "what is eaten in the mornings", "a wholly other thing"]
    found = near_pairs(texts)
    assert (found.first.tolist(), found.second.tolist()) == ([0], [1])
    assert found.jaccard[0] == pytest.approx(by_hand(texts[0], texts[1]))
    assert found.complete


def test_every_planted_pair_is_found_and_no_other() -> None:
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(6)) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=15)) for _ in range(300)]
    texts += [f"{text} {draw.choice(words)}" for text in texts[:60]]
    found = near_pairs(texts, threshold=0.8)
    expected = {
        (i, j) for i in range(len(texts)) for j in range(i + 1, len(texts)) if by_hand(texts[i], texts[j]) >= 0.8
    }
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert len(expected) >= 60


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="abc 東", max_size=12), min_size=1, max_size=12, unique=True))
def test_what_is_reported_is_there(texts: list[str]) -> None:
    found = near_pairs(texts, threshold=0.7)
    for a, b, value in zip(found.first, found.second, found.jaccard, strict=True):
        assert a < b
        assert value == pytest.approx(by_hand(texts[a], texts[b]))
        assert value >= 0.7 - 1e-9


def test_what_a_fifth_of_the_texts_share_is_the_template() -> None:
    draw = random.Random(1)
    template = "Answer the following question about daily life in one word, please, and say nothing else at all: "
    texts = [template + "".join(draw.choice("abcdefghijklmnop") for _ in range(12)) for _ in range(60)]
    assert by_hand(texts[0], texts[1]) > 0.7
    assert len(near_pairs(texts, threshold=0.7)) == 0


def test_many_alike_at_once_are_not_all_looked_at_but_hang_together() -> None:
    texts = [f"{'the very same long text of all of them ' * 3}{number}" for number in range(48)]
    found = near_pairs(texts)
    assert not found.complete
    links = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert set(first_of_each(48, links)) == {0}


def test_the_first_of_each_chain() -> None:
    assert first_of_each(6, [(4, 2), (2, 1), (5, 3)]) == [0, 1, 1, 3, 1, 3]


def test_normalising_ignores_width_case_and_white_space() -> None:
    assert normalised("  ＷＨＡＴ\tis\n it? ") == "what is it?"
    assert plain_text(({"role": "system", "content": "a"}, {"role": "user", "content": "b"})) == "a\nb"


def test_no_texts_and_empty_texts() -> None:
    assert len(near_pairs([])) == 0
    assert len(near_pairs(["", "a"])) == 0
    assert np.asarray(near_pairs(["a"]).jaccard).shape == (0,)


def test_a_threshold_that_minhash_cannot_serve_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"threshold of near-duplicates is 0\.2; expected .* 0\.7 to 1"):
        near_pairs(["a"], threshold=0.2)
