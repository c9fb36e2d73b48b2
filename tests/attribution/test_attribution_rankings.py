"""Rankings: every way to order neurons by the same scores, and only those that the scores allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from neuropolis.attribution.rankings import RANKINGS, ranking_parts, rankings
from neuropolis.attribution.selection import contrasted
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores


def make(groups: int, *, controls: bool = False) -> Scores:
    torch.manual_seed(0)
    values = torch.rand(groups, 2, 3)
    names = tuple("abcd"[:groups])
    found = Scores("mlp", "s" * 16, names, values, values - 0.2, values**2, torch.full((groups,), 4), method="taylor")
    return replace(found, control_values=values / 2, control_signed=values / 3) if controls else found


def test_every_pair_has_a_name_that_says_what_select_is_given() -> None:
    assert len(RANKINGS) == len(set(RANKINGS)) == 15
    assert ranking_parts("values") == ("values", None)
    assert ranking_parts("positive/ratio") == ("positive", "ratio")
    with pytest.raises(SetError, match="unknown ranking 'best'; rankings are values, signed"):
        ranking_parts("best")


def test_a_ranking_is_what_select_ranks() -> None:
    scores = make(3, controls=True)
    found = rankings(scores)
    assert tuple(found) == RANKINGS
    assert torch.equal(found["signed/controls"], scores.signed - scores.control_signed)
    for name, ranked in found.items():
        by, contrast = ranking_parts(name)
        assert torch.equal(ranked, contrasted(scores, contrast, by))


@pytest.mark.parametrize(("groups", "count"), [(1, 3), (2, 9), (3, 12)])
def test_what_the_scores_do_not_allow_is_left_out(groups: int, count: int) -> None:
    found = rankings(make(groups))
    assert len(found) == count
    assert not any("controls" in name for name in found)
