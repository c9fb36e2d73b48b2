"""Overlap: by hand, against enumeration of every pair of sets, against simulation, and the published chance levels."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.analysis.chance import P_FLOOR, Levels, in_layers, in_total, levels
from neuropolis.analysis.overlap import combine, overlap, overlap_from_record
from neuropolis.analysis.statistics import holm
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet


def made(*rows: str, subject: str = "s", site: str = "mlp") -> NeuronSet:
    """A set from rows of 0 and 1, one row a layer."""
    return NeuronSet(site, subject, torch.tensor([[c == "1" for c in row] for row in rows]))


def subsets(width: int, size: int) -> list[set[int]]:
    return [set(chosen) for chosen in combinations(range(width), size)]


def enumerated(a: list[int], b: list[int], width: int) -> dict[int, float]:
    """Distribution of the shared count by going through every pair of sets; by symmetry the first may stand still."""
    counts: dict[int, float] = {}
    first = [set(range(size)) for size in a]
    for second in product(*(subsets(width, size) for size in b)):
        shared = sum(len(x & y) for x, y in zip(first, second, strict=True))
        counts[shared] = counts.get(shared, 0) + 1
    total = sum(counts.values())
    return {shared: count / total for shared, count in counts.items()}


def test_overlap_by_hand() -> None:
    table = overlap({"a": made("1100", "0000"), "b": made("0110", "1000"), "c": made("0000", "0011")})
    assert table.groups == ("a", "b", "c")
    assert table.sizes.tolist() == [2, 3, 2]
    assert table.intersections.tolist() == [[2, 1, 0], [1, 3, 0], [0, 0, 2]]
    assert table.jaccard.tolist() == [[1, 1 / 4, 0], [1 / 4, 1, 0], [0, 0, 1]]
    assert table.layer_jaccard[0, 1].tolist() == [1 / 3, 0]
    assert math.isnan(table.layer_jaccard[0, 0, 1])  # no set has a neuron there
    # layer 0 has 2 and 2 of 4: 0, 1, 2 shared with probability 1/6, 4/6, 1/6; nothing can be shared in layer 1
    expected = 4 / 6 * 1 / 4 + 1 / 6 * 2 / 3
    assert table.expected[0, 1].item() == pytest.approx(expected)
    assert table.layer_expected[0, 1, 0].item() == pytest.approx(4 / 6 * 1 / 3 + 1 / 6 * 1)
    assert (table.low[0, 1].item(), table.high[0, 1].item()) == (0, pytest.approx(2 / 3))
    assert table.p[0, 1].item() == 1.0
    assert table.coefficient is not None
    assert table.coefficient_expected is not None
    assert table.coefficient.tolist() == [[1, 1 / 2, 0], [1 / 2, 1, 0], [0, 0, 1]]
    assert table.coefficient_expected[0, 1].item() == pytest.approx(1 / 2)  # 2 * 2 / 4 shared of the smaller set's 2
    assert table.layer_p is not None
    assert table.layer_p[0, 1, 0].item() == 1.0
    assert math.isnan(table.layer_p[0, 1, 1])  # a has nothing there
    for name in ("expected", "low", "high", "p", "p_corrected"):
        value = getattr(table, name)
        assert bool(value.diagonal().isnan().all())
        torch.testing.assert_close(value, value.T, equal_nan=True)


def chance(a: list[int], b: list[int], width: int, shared: list[int] | None = None) -> Levels:
    """Chance levels of one pair of sets; arrays have one row."""
    rows = [np.array([row]) for row in (a, b, shared or [0] * len(a))]
    return levels(*rows, width=width)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=3))
def test_chance_equals_enumeration(sizes: list[tuple[int, int]]) -> None:
    a, b = [x for x, _ in sizes], [y for _, y in sizes]
    first, pmf = in_layers(np.array([a]), np.array([b]), 5)
    low, total = in_total(first, pmf, np.array([a]), np.array([b]), 5)
    truth = enumerated(a, b, 5)
    for place, probability in enumerate(total[0]):
        assert probability == pytest.approx(truth.get(low[0] + place, 0.0), abs=1e-12)
    for layer, (x, y) in enumerate(sizes):
        alone = enumerated([x], [y], 5)
        for place, probability in enumerate(pmf[0, layer]):
            assert probability == pytest.approx(alone.get(first[0, layer] + place, 0.0), abs=1e-12)
    found = chance(a, b, 5)
    assert found.shared[0] == pytest.approx(sum(x * p for x, p in truth.items()))
    if sum(a) + sum(b):
        jaccard = {shared: shared / (sum(a) + sum(b) - shared) for shared in truth}
        assert found.expected[0] == pytest.approx(sum(jaccard[x] * p for x, p in truth.items()))
    for layer, (x, y) in enumerate(sizes):
        alone = chance([x], [y], 5)
        for name in ("expected", "low", "high", "p"):
            within = getattr(found, f"layer_{name}")[0, layer]
            assert within == pytest.approx(getattr(alone, name)[0], nan_ok=True), name


def test_pairs_of_unlike_sizes_are_worked_out_together() -> None:
    """A block's window and frequencies are those of its widest and of its narrowest distribution."""
    a = np.array([[0, 0], [400, 3], [1, 0], [50, 60]])
    b = np.array([[9, 2], [300, 700], [1, 1], [60, 50]])
    shared = np.array([[0, 0], [130, 2], [1, 0], [9, 1]])
    together = levels(a, b, shared, width=1000)
    for row in range(4):
        alone = levels(a[[row]], b[[row]], shared[[row]], width=1000)
        for name in vars(alone):
            assert getattr(together, name)[row] == pytest.approx(getattr(alone, name)[0], nan_ok=True, abs=1e-12), name


def test_p_is_twice_the_smaller_tail() -> None:
    # 2 and 2 of 6: 0, 1, 2 shared with probability 6/15, 8/15, 1/15
    assert chance([2], [2], 6, [2]).p[0] == pytest.approx(2 / 15)
    assert chance([2], [2], 6, [0]).p[0] == pytest.approx(12 / 15)
    assert chance([2], [2], 6, [1]).p[0] == 1.0
    assert chance([500], [500], 10000, [500]).p[0] == P_FLOOR
    assert math.isnan(chance([0], [3], 6).p[0])


@pytest.mark.parametrize(("percent", "published"), [(10, 5.3), (30, 17.6), (50, 33.3), (70, 53.8)])
def test_chance_levels_of_single_sets(percent: int, published: float) -> None:
    """k / (2 - k) for large layers."""
    k, width = percent / 100, 20_000
    size = width * percent // 100
    expected = chance([size] * 4, [size] * 4, width).expected[0]
    assert expected == pytest.approx(k / (2 - k), abs=1e-4)
    assert round(100 * expected, 1) == published


@pytest.mark.parametrize(("percent", "published"), [(10, 15.7), (30, 48.9), (50, 77.8), (70, 94.7)])
def test_chance_levels_of_unions_of_three(percent: int, published: float) -> None:
    k = 1 - (1 - percent / 100) ** 3
    size = round(k * 20_000)
    assert round(100 * chance([size], [size], 20_000).expected[0], 1) == published


def test_chance_equals_simulation() -> None:
    rng = np.random.default_rng(0)
    a, b, width = [30, 5, 0], [10, 20, 7], 50
    ratios = []
    for _ in range(4000):
        shared = sum(
            np.isin(rng.choice(width, x, False), rng.choice(width, y, False)).sum() for x, y in zip(a, b, strict=True)
        )
        ratios.append(shared / (sum(a) + sum(b) - shared))
    found = chance(a, b, width)
    assert found.expected[0] == pytest.approx(np.mean(ratios), abs=4 * np.std(ratios) / np.sqrt(4000))
    assert found.low[0] == pytest.approx(np.quantile(ratios, 0.025), abs=0.02)
    assert found.high[0] == pytest.approx(np.quantile(ratios, 0.975), abs=0.02)


def test_living_in_the_same_layer_is_no_overlap_by_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 10, 200, dtype=torch.bool)
    masks[:, 0] = torch.rand((2, 200), generator=generator) < 0.5
    sets = {str(i): NeuronSet("mlp", "s", mask) for i, mask in enumerate(masks)}
    by_layers, uniform = overlap(sets), overlap(sets, uniform=True)
    assert by_layers.p[0, 1] > 0.05
    assert uniform.p[0, 1] < 1e-6
    assert uniform.expected[0, 1] < 0.1 < by_layers.expected[0, 1]
    torch.testing.assert_close(uniform.layer_expected[0, 1], uniform.expected[0, 1].expand(10))


def test_corrected_over_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.rand((2, 300), generator=generator)
    sets = {
        str(i): NeuronSet("mlp", "s", base + 0.2 * i * torch.rand((2, 300), generator=generator) < 0.2)
        for i in range(4)
    }
    table = overlap(sets)
    rows, columns = torch.tril_indices(4, 4, offset=-1)
    torch.testing.assert_close(table.p_corrected[rows, columns], holm(table.p[rows, columns]))
    torch.testing.assert_close(table.p_corrected[columns, rows], holm(table.p[rows, columns]))


def test_layers_are_tested_and_corrected_together() -> None:
    masks = torch.rand((3, 2, 400), generator=torch.Generator().manual_seed(5)) < 0.1
    masks[1, 0] = masks[0, 0]  # layer 0 of the first two is the same
    table = overlap({str(i): NeuronSet("mlp", "s", mask) for i, mask in enumerate(masks)})
    assert table.layer_p is not None
    assert table.layer_p_corrected is not None
    assert table.layer_p[0, 1, 0] < 1e-9 < 0.01 < table.layer_p[0, 1, 1]
    rows, columns = torch.triu_indices(3, 3, offset=1)
    torch.testing.assert_close(table.layer_p_corrected[rows, columns], holm(table.layer_p[rows, columns]))
    assert overlap({"a": NeuronSet("mlp", "s", masks[0])}, uniform=True).layer_p is None


def test_an_overlap_comes_back_from_its_record() -> None:
    table = overlap({"a": made("1100", "0000"), "b": made("0110", "1000")})
    back = overlap_from_record(table.to_record())
    assert back.groups == table.groups
    for name, value in vars(table).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(back, name), value, equal_nan=True)


def test_unions_and_intersections_of_tasks() -> None:
    sets = {"sst": made("1100"), "qqp": made("0100"), "e2e": made("0011"), "xsum": made("0110")}
    groups = {"CLS": ("sst", "qqp"), "GEN": ("e2e", "xsum")}
    union = combine(sets, groups)
    assert [union[name].mask.int().tolist() for name in groups] == [[[1, 1, 0, 0]], [[0, 1, 1, 1]]]
    common = combine(sets, groups, how="intersection")
    assert [common[name].mask.int().tolist() for name in groups] == [[[0, 1, 0, 0]], [[0, 0, 1, 0]]]
    assert overlap(union).jaccard[0, 1].item() == 1 / 4
    with pytest.raises(SetError, match="'CLS' has no set 'mnli'; name some of sst, qqp, e2e, xsum"):
        combine(sets, {"CLS": ("sst", "mnli")})
    with pytest.raises(SetError, match="unknown way 'both'"):
        combine(sets, groups, how="both")  # pyright: ignore[reportArgumentType]


def test_independent_sets_are_rarely_significant() -> None:
    masks = torch.rand((30, 4, 500), generator=torch.Generator().manual_seed(0)) < 0.1
    table = overlap({str(i): NeuronSet("mlp", "s", mask) for i, mask in enumerate(masks)})
    below = torch.tril_indices(30, 30, offset=-1).unbind()
    assert 0.01 < (table.p[below] < 0.05).double().mean() < 0.08
    assert not bool((table.p_corrected[below] < 0.05).any())
    inside = (table.jaccard >= table.low) & (table.jaccard <= table.high)
    assert inside[below].double().mean() > 0.93


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(SetError, match="no sets"):
        overlap({})
    with pytest.raises(SetError, match="subject"):
        overlap({"a": made("10"), "b": made("10", subject="t")})
    with pytest.raises(SetError, match="site"):
        overlap({"a": made("10"), "b": made("10", site="q")})
