"""Retrieval of neurons whose role is known: values by hand, chance, and ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.attribution.retrieval import chosen_share, found_among, recall_at, retrieval
from neuropolis.neurons.errors import SetError


def test_values_by_hand() -> None:
    scores = torch.tensor([[[9.0, 7.0], [5.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]]])
    truth = torch.tensor([[[True, False], [True, False]], [[True, True], [False, False]]])
    found = retrieval(scores, truth)
    assert found.recall.tolist() == [0.5, 0.0]
    # ranks 1 and 3: (1 + 2/3) / 2; ranks 3 and 4: (1/3 + 2/4) / 2
    torch.testing.assert_close(found.precision, torch.tensor([5 / 6, 5 / 12], dtype=torch.float64), rtol=1e-6, atol=0)
    assert found.auroc.tolist() == [0.75, 0.0]


def test_scores_that_say_nothing_are_at_chance() -> None:
    truth = torch.zeros(1, 2, 10, dtype=torch.bool)
    truth[0, 0, :4] = True
    found = retrieval(torch.zeros(1, 2, 10), truth)
    assert float(found.recall) == pytest.approx(0.2)
    assert float(found.precision) == pytest.approx(0.2)
    assert float(found.auroc) == pytest.approx(0.5)


def test_a_tie_at_the_border_counts_in_part() -> None:
    scores, truth = torch.tensor([5.0, 3.0, 3.0, 3.0]), torch.tensor([True, True, False, False])
    assert recall_at(scores, truth, 2) == pytest.approx((1 + 1 / 3) / 2)


def test_a_group_without_true_neurons_has_no_figures() -> None:
    found = retrieval(torch.rand(1, 1, 4), torch.zeros(1, 1, 4, dtype=torch.bool))
    assert bool(found.recall.isnan())


def test_shapes_and_scores_that_are_not_finite_are_refused() -> None:
    truth = torch.zeros(1, 1, 4, dtype=torch.bool)
    with pytest.raises(SetError, match="expected the same shape"):
        retrieval(torch.rand(1, 1, 5), truth)
    with pytest.raises(SetError, match="NaN or infinite"):
        retrieval(torch.full((1, 1, 4), torch.nan), truth)


def test_found_among_the_first_by_hand() -> None:
    scores, truth = torch.tensor([9.0, 7.0, 7.0, 1.0]), torch.tensor([False, True, False, True])
    found = found_among(scores, truth, torch.tensor([1, 2, 3, 4]))
    assert found.tolist() == [0.0, 0.5, 1.0, 2.0]


def test_chosen_share_by_hand() -> None:
    assert chosen_share(torch.tensor([9.0, 7.0, 7.0, 1.0]), 2).tolist() == [1.0, 0.5, 0.5, 0.0]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: any(true for _, true in pairs)
    )
)
def test_recall_at_k_and_found_among_agree(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = (torch.tensor(column) for column in zip(*pairs, strict=True))
    scores, truth = scores.double(), truth.bool()
    counts = torch.arange(1, len(pairs) + 1)
    found = found_among(scores, truth, counts) / truth.sum()
    for place, count in enumerate(counts.tolist()):
        assert float(found[place]) == pytest.approx(recall_at(scores, truth, count))
        shares = chosen_share(scores, count)
        assert float(shares.sum()) == pytest.approx(count)
        assert float(shares[truth].sum() / truth.sum()) == pytest.approx(float(found[place]))
