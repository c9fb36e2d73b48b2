"""Options under letters, and draws that depend on a name alone."""

from __future__ import annotations

from collections import Counter

import pytest
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.lettered import drawn, letters, listed, place_by, turned


def test_options_and_their_letters() -> None:
    assert listed(["tea", "mud"]) == "A. tea\nB. mud"
    assert (letters(3), letters(2, space="")) == ((" A", " B", " C"), ("A", "B"))
    with pytest.raises(CorpusError, match="expected 2 to 26 options, found 1"):
        letters(1)


def test_options_turn_in_a_circle_to_every_place_about_equally_often() -> None:
    turns = Counter(turned("abc", key=str(key)) for key in range(600))
    assert set(turns) == {tuple("abc"), tuple("bca"), tuple("cab")}
    assert min(turns.values()) > 150
    assert turned("abc", key="one") == turned("abc", key="one")


def test_draws_repeat_nothing_and_are_the_same_everywhere() -> None:
    texts = [str(number) for number in range(5)]
    draws = Counter(tuple(drawn(texts, 2, key=str(key))) for key in range(400))
    assert len(draws) == 20
    assert all(one != other for one, other in draws)
    assert sorted(drawn(texts, 9, key="x")) == texts
    assert [place_by(key, 10) for key in ("a", "b", "c")] == [0, 6, 0]
