"""Statistics: values worked out by hand, and a coverage check."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.analysis.statistics import (
    benjamini_hochberg,
    bootstrap,
    cluster_sums,
    holm,
    label_test,
    sign_flip_test,
    standard_error,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_cluster_sums() -> None:
    sums, sizes = cluster_sums(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), torch.tensor([7, 3, 7]))
    assert sums.tolist() == [[2.0, 1.0], [4.0, 0.0]]
    assert sizes.tolist() == [1.0, 2.0]


def test_sign_flip_is_exact() -> None:
    assert sign_flip_test(column(-1, -1, -1, -1)).item() == 1 / 16
    assert sign_flip_test(column(-1, -1, -1, 1)).item() == 5 / 16  # no plus sign, or one
    assert sign_flip_test(column(-3, -2, 1)).item() == 2 / 8  # sums -6 and -4
    assert sign_flip_test(column(1, 1, 1)).item() == 1.0
    assert sign_flip_test(column(0, 0, -1)).item() == 1 / 2  # items without a difference do not count
    assert sign_flip_test(column(0, 0)).item() == 1.0
    assert math.isnan(sign_flip_test(torch.zeros(0, 1)).item())


def test_sign_flip_by_chance_counts_the_observed_pattern() -> None:
    everywhere = sign_flip_test(-torch.ones(40, 1), draws=999)
    assert everywhere.item() == 1 / 1000
    mixed = column(*[-1.0] * 9 + [1.0] * 5)
    # P(at most 5 of 14 are positive), by the binomial distribution
    exact = sum(math.comb(14, k) for k in range(6)) / 2**14
    assert sign_flip_test(mixed).item() == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(mixed, draws=2**14).item() == pytest.approx(exact, abs=1e-12)


def test_label_permutation_is_exact() -> None:
    own = torch.tensor([[True], [True], [False], [False], [False]])
    ones = torch.ones(5, 1)
    assert label_test(column(-1, -1, 0, 0, 0), ones, own).item() == 1 / 10
    assert label_test(column(-1, 0, -1, 0, 0), ones, own).item() == 7 / 10  # one of two at least: all but 3 of 10
    assert label_test(column(0, 0, 0, 0, 0), ones, own).item() == 1.0
    assert math.isnan(label_test(column(0, 0, 0, 0, 0), ones, torch.ones(5, 1, dtype=torch.bool)).item())


def test_label_permutation_by_chance() -> None:
    values = torch.zeros(60, 2)
    values[:20, 0] = -1
    own = torch.zeros(60, 2, dtype=torch.bool)
    own[:20, 0] = True
    own[:30, 1] = True  # another number of own clusters in the other column
    p = label_test(values, torch.ones(60, 2), own, draws=499)
    assert p.tolist() == [1 / 500, 1.0]


def test_weights_make_means_of_questions() -> None:
    # own: 1 of 4 questions lost in two clusters of 3 and 1; others: 1 of 2
    sums, weights = column(-1, 0, -1, 0), column(3, 1, 1, 1)
    own = torch.tensor([[True], [True], [False], [False]])
    # differences for the six ways to choose two own clusters: -1/4+1/2, -2/4-0, -1/4+1/2, 0+2/4, ...
    expected = []
    for i in range(4):
        for j in range(i):
            rest = [k for k in range(4) if k not in (i, j)]
            mine = (sums[i] + sums[j]) / (weights[i] + weights[j])
            theirs = sums[rest].sum() / weights[rest].sum()
            expected.append((mine - theirs).item())
    observed = -1 / 4 + 1 / 2
    assert label_test(sums, weights, own).item() == pytest.approx(sum(e <= observed + 1e-9 for e in expected) / 6)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04, made monotone .02 .03 .06 .06
    adjusted = holm(torch.tensor([[0.01, 0.04], [0.03, 0.005]]))
    torch.testing.assert_close(
        adjusted, torch.tensor([[0.03, 0.06], [0.06, 0.02]], dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert holm(torch.tensor([0.9, 0.8])).tolist() == [1.0, 1.0]
    gap = holm(torch.tensor([0.01, math.nan, 0.02], dtype=torch.float64))
    assert gap[0].item() == 0.02
    assert gap[1].isnan()


def test_benjamini_hochberg_by_hand() -> None:
    adjusted = benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, math.nan, 0.005], dtype=torch.float64))
    expected = torch.tensor([0.02, 0.04, 0.04, math.nan, 0.02], dtype=torch.float64)
    torch.testing.assert_close(adjusted, expected, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_only_raise_and_keep_order(values: list[float]) -> None:
    p = torch.tensor(values, dtype=torch.float64)
    for adjusted in (holm(p), benjamini_hochberg(p)):
        assert bool((adjusted >= p - 1e-12).all())
        assert bool((adjusted <= 1).all())
        assert bool((adjusted[p.argsort()].diff() >= -1e-12).all())
    assert bool((benjamini_hochberg(p) <= holm(p) + 1e-12).all())


def test_bootstrap_resamples_clusters_not_rows() -> None:
    # 20 clusters of 50 equal rows: the interval is that of 20 values, not of 1000
    rows = torch.arange(20).repeat_interleave(50)
    values = (torch.arange(20) % 2).double().repeat_interleave(50)[None]
    low, high = bootstrap(*cluster_sums(values, rows))
    assert low.item() == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(20), abs=0.06)
    assert high.item() == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(20), abs=0.06)
    naive_low, _ = bootstrap(*cluster_sums(values, torch.arange(1000)))
    assert naive_low.item() > 0.46


def test_bootstrap_covers_the_truth() -> None:
    """Items of 1 to 4 questions that are right together, with probability 0.7; 90 % intervals of 200 samples."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for sample in range(200):
        sizes = torch.randint(1, 5, (40,), generator=generator).double()
        right = (torch.rand(40, generator=generator) < 0.7).double()
        low, high = bootstrap((right * sizes)[:, None], sizes, level=0.9, draws=400, seed=sample)
        covered += bool(low <= 0.7 <= high)
    assert 0.83 <= covered / 200 <= 0.96


def test_degenerate_intervals() -> None:
    low, high = bootstrap(column(2.0), torch.tensor([4.0]).double())
    assert low.isnan()
    assert high.isnan()
    low, high = bootstrap(column(1, 1, 1), torch.ones(3).double())
    assert (low.item(), high.item()) == (1.0, 1.0)


def test_standard_error_of_equal_clusters_is_the_textbook_one() -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    found = standard_error(values[:, None] * 3, torch.full((5,), 3.0, dtype=torch.float64))
    assert found.item() == pytest.approx((values.std() / math.sqrt(5)).item())
