"""Permutation: planted neurons are found, relabelled and random ones are not, items are the units."""

from __future__ import annotations

import math

import pytest
import torch
from neuropolis.attribution.permutation import permutation
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores


def make_scores(
    rows: torch.Tensor, groups: list[int], items: list[int], names: tuple[str, ...] = ("a", "b", "c")
) -> Scores:
    number = torch.tensor(groups)
    values = torch.stack([rows[number == g].abs().mean(dim=0) for g in range(len(names))])
    signed = torch.stack([rows[number == g].mean(dim=0) for g in range(len(names))])
    return Scores(
        "mlp", "s", names, values, signed, values.square(), torch.bincount(number, minlength=len(names)),
        rows=rows, row_groups=number, row_items=torch.tensor(items),
    )  # fmt: skip


def noise(units: int, seed: int = 0, copies: int = 1) -> tuple[torch.Tensor, list[int], list[int]]:
    """Rows of 3 groups, `units` items each, every item `copies` identical rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * units, 2, 400, generator=generator).repeat_interleave(copies, dim=0)
    groups = [g for g in range(3) for _ in range(units * copies)]
    items = [i for i in range(3 * units) for _ in range(copies)]
    return rows, groups, items


def test_planted_neurons_are_found_and_no_others() -> None:
    rows, groups, items = noise(20)
    rows[:20, 1, :5] += 6.0
    found = permutation(make_scores(rows, groups, items), draws=200, by="signed").sets(0.05)
    assert set(found["a"]) == {(1, n) for n in range(5)}
    assert not found["b"]
    assert not found["c"]


def test_the_statistic_is_welchs_t() -> None:
    from scipy.stats import ttest_ind

    rows, groups, items = noise(8)
    t = permutation(make_scores(rows, groups, items), draws=1, by="signed").statistic
    expected = ttest_ind(rows[8:16].numpy(), torch.cat([rows[:8], rows[16:]]).numpy(), equal_var=False).statistic
    torch.testing.assert_close(t[1].double(), torch.tensor(expected).double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("correction", ["none", "family", "discoveries"])
def test_noise_is_not_called_specific(correction: str) -> None:
    shares = []
    for seed in range(10):
        found = permutation(make_scores(*noise(12, seed)), draws=100, by="signed", seed=seed)
        sets = found.sets(0.05, correction=correction)  # pyright: ignore[reportArgumentType]
        shares += [one.share if correction == "none" else float(bool(one)) for one in sets.values()]
    mean = sum(shares) / len(shares)
    # alone: a twentieth of all neurons; over the family: a twentieth of the sets has any neuron at all (binomial, 30 sets)
    assert 0.03 < mean < 0.06 if correction == "none" else mean <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 30)


def test_copies_of_an_item_are_no_evidence() -> None:
    once = permutation(make_scores(*noise(8)), draws=50, by="signed")
    often = permutation(make_scores(*noise(8, copies=5)), draws=50, by="signed")
    assert once.num_units == often.num_units == 24
    torch.testing.assert_close(once.statistic, often.statistic)
    assert torch.equal(once.p, often.p)


def test_items_that_all_groups_share_are_shuffled_within() -> None:
    # every item drives neuron 0 to its own level, the same in each group, and neuron 1 a little more in group a
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 1, 50, generator=generator) * 0.1
    items = [i % 10 for i in range(30)]
    groups = [i // 10 for i in range(30)]
    rows[:, 0, 1] += 5 * torch.tensor(items)
    rows[:10, 0, 1] += 1.0
    shared = permutation(make_scores(rows, groups, items), draws=500, by="signed")
    apart = permutation(make_scores(rows, groups, list(range(30))), draws=500, by="signed")
    assert float(shared.p[0, 0, 1]) < 0.01  # beside its own item's other groups the difference stands out
    assert float(apart.p[0, 0, 1]) > 0.1


def test_bad_input_is_said() -> None:
    rows, groups, items = noise(4)
    scores = make_scores(rows, groups, items)
    with pytest.raises(SetError, match="keep_rows=True"):
        permutation(Scores("mlp", "s", scores.groups, scores.values, scores.signed, scores.squares, scores.counts))
    with pytest.raises(SetError, match="has 2 items"):
        permutation(make_scores(rows[2:], groups[2:], items[2:]))
    with pytest.raises(SetError, match="draw more"):
        permutation(scores, draws=10).sets(0.05)
    with pytest.raises(SetError, match="unknown correction"):
        permutation(scores, draws=10).sets(0.5, correction="holm")  # pyright: ignore[reportArgumentType]
