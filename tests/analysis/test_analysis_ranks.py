"""Rank agreement: RBO against its definition term by term, Spearman against scipy, chance against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from neuropolis.analysis.ranks import _rbo_null, rank_agreement, ranks_from_record, rbo_weights
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores


def make(values: torch.Tensor) -> Scores:
    groups = tuple("abcdef"[: len(values)])
    return Scores("mlp", "s", groups, values, values, values.square(), torch.full((len(groups),), 3))


def rbo_by_definition(first: list[int], second: list[int], p: float, depth: int) -> float:
    shared = [len(set(first[:d]) & set(second[:d])) for d in range(1, depth + 1)]
    tail = shared[-1] / depth * p**depth
    return tail + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(shared, start=1))


def test_rbo_is_its_sum() -> None:
    values = torch.rand((2, 3, 40), generator=torch.Generator().manual_seed(0))
    found = rank_agreement(make(values), top=8, draws=50)
    orders = [row.flatten().argsort(descending=True).tolist() for row in values]
    depth = found.origin["depth"]
    assert 1e-3 >= (7 / 8) ** depth > 1e-3 * 7 / 8
    assert found.rbo[0, 1].item() == pytest.approx(rbo_by_definition(*orders, 7 / 8, depth))
    assert found.rbo.diagonal().tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(found.rbo, found.rbo.T)
    assert rbo_weights(1, 10).tolist() == [1] + [0] * 9  # a reader who stops at the first
    assert rbo_weights(1000, 5)[4] > 0  # lists that end before the readers do


def test_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    values = torch.randint(0, 9, (3, 2, 30), generator=torch.Generator().manual_seed(1)).float()  # with ties
    found = rank_agreement(make(values), draws=10)
    flat = values.flatten(1).numpy()
    assert found.spearman[0, 2].item() == pytest.approx(spearmanr(flat[0], flat[2]).statistic)
    assert found.layer_spearman[1, 2, 1].item() == pytest.approx(spearmanr(values[1, 1], values[2, 1]).statistic)
    assert bool(found.spearman_p.diagonal().isnan().all())


def test_random_orders_are_within_chance_and_equal_ones_are_not() -> None:
    values = torch.rand((3, 4, 500), generator=torch.Generator().manual_seed(2))
    values[1] = values[0] + 0.05 * values[1]
    found = rank_agreement(make(values), draws=999)
    assert found.rbo_p[0, 1] == 2 / 1000
    assert found.rbo_p_corrected[0, 1] == 6 / 1000
    assert found.spearman_p[0, 1] < 1e-9 < 0.01 < found.spearman_p[0, 2]
    assert found.rbo_p[0, 2] > 0.05
    mean, low, high = found.rbo_chance.tolist()
    assert low <= mean <= high
    assert abs(found.spearman[0, 2]) < 2 * found.spearman_reach


def test_the_null_of_rbo_is_that_of_whole_orders() -> None:
    weights, rng = rbo_weights(5, 60), np.random.default_rng(0)
    slow = [
        weights[np.maximum(np.arange(60), rng.permutation(60))].sum() for _ in range(4000)
    ]  # every neuron's ranks in two orders
    fast = _rbo_null(weights, 60, 4000, np.random.default_rng(1))
    error = np.std(slow) / np.sqrt(4000)
    assert np.mean(fast) == pytest.approx(np.mean(slow), abs=5 * error)
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.1)


def test_records_and_refusals() -> None:
    found = rank_agreement(make(torch.rand((2, 2, 9))), draws=20)
    back = ranks_from_record(found.to_record())
    assert back.spearman_reach == found.spearman_reach
    assert torch.equal(back.rbo, found.rbo)
    with pytest.raises(SetError, match="two groups or more, the scores have a alone"):
        rank_agreement(make(torch.rand((1, 2, 9))))
    with pytest.raises(SetError, match="top is 100"):
        rank_agreement(make(torch.rand((2, 2, 9))), top=100)
