from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.finetune.continual_metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    retention_ratio,
    t_interval,
)
from neuropolis.finetune.continual_result import METRICS, Continual
from neuropolis.finetune.errors import TuneError
from neuropolis.neurons.atlas import Atlas, write_atlas

# rows: after task 1, 2, 3; columns: tasks in the order of learning
A = torch.tensor([[0.75, 0.5, 0.25], [0.875, 1.0, 0.125], [0.5, 0.625, 0.75]])


def result(**changed: Any) -> Continual:
    """Two methods, one seed, tasks learned in the order c, a, b."""
    back = torch.tensor([1, 2, 0])  # place of a, b, c in the order of learning
    fields: dict[str, Any] = {
        "subject": "0" * 16, "methods": ("ncft", "per-task"), "tasks": ("a", "b", "c"), "seeds": (7,),
        "orders": torch.tensor([[2, 0, 1]]), "matrix": torch.stack([A[:, back], A[:, back]])[:, None],
        "untouched": torch.tensor([0.25, 0.0, 0.5]), "known": torch.tensor([[[0.875, 0.75, 0.5]], [[0.75, 0.75, 0.75]]]),
        "known_before": 1.0, "trainable": torch.tensor([10, 200]), "origin": {"epochs": 3},
    }  # fmt: skip
    return Continual(**(fields | changed))


def test_metrics_by_hand() -> None:
    assert float(average_accuracy(A)) == pytest.approx((0.5 + 0.625 + 0.75) / 3)
    assert float(backward_transfer(A)) == pytest.approx(((0.5 - 0.75) + (0.625 - 1.0)) / 2)
    # the untouched subject: 0.25 on the second task, 0.5 on the third; the first has nothing before it
    assert float(forward_transfer(A, torch.tensor([9.0, 0.25, 0.5]))) == pytest.approx(
        ((0.5 - 0.25) + (0.125 - 0.5)) / 2
    )
    # the first task's best is after the second stage, not after its own
    assert float(forgetting(A)) == pytest.approx(((0.875 - 0.5) + (1.0 - 0.625)) / 2)
    assert float(retention_ratio(A, torch.tensor([1.0, 0.5, 9.0]))) == pytest.approx((0.5 / 1.0 + 0.625 / 0.5) / 2)


def test_best_before_the_task_was_learned_counts_as_forgotten() -> None:
    """Chaudhry et al. take the maximum over every earlier stage, also those before the task's own."""
    a = torch.tensor([[0.5, 0.75, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 1.0]])
    assert float(forgetting(a)) == pytest.approx((0.0 + 0.5) / 2)


def test_one_task_has_nothing_to_forget() -> None:
    one = torch.tensor([[0.5]])
    assert float(average_accuracy(one)) == 0.5
    for value in (backward_transfer(one), forgetting(one), forward_transfer(one, torch.zeros(1))):
        assert math.isnan(float(value))


def test_a_ragged_matrix_is_refused() -> None:
    with pytest.raises(TuneError, match=r"after N stages, \[..., stage, task\], got \[2, 3\]"):
        average_accuracy(torch.zeros(2, 3))


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_forgetting_bounds_the_loss_of_what_was_learned(num: int, seed: int) -> None:
    """The best accuracy is at least the one after learning, so forgetting is at least minus backward transfer."""
    a = torch.rand(3, num, num, generator=torch.Generator().manual_seed(seed))
    assert bool((forgetting(a) + backward_transfer(a) > -1e-6).all())


def test_t_interval_by_hand() -> None:
    mean, low, high = t_interval(torch.tensor([[1.0, 2.0, 3.0]]))
    reach = 4.302652729911275 * 1.0 / 3**0.5  # t(0.975, 2 degrees of freedom), standard deviation 1
    assert (float(mean), float(low), float(high)) == pytest.approx((2.0, 2.0 - reach, 2.0 + reach), rel=1e-5)
    assert all(math.isnan(float(bound)) for bound in t_interval(torch.tensor([0.5]))[1:])


def test_the_result_reorders_tasks_before_it_counts() -> None:
    found = result()
    assert torch.equal(found.learned_order[0, 0], A)
    assert float(found.metric("forgetting")[0]) == pytest.approx(0.375)
    assert found.alone.tolist() == [[0.75, 1.0, 0.75]]
    assert float(found.metric("retention_ratio")[0]) == pytest.approx((0.5 / 0.75 + 0.625 / 1.0) / 2)
    # untouched, in the order c, a, b: 0.5, 0.25, 0
    assert float(found.metric("forward_transfer")[0]) == pytest.approx(((0.5 - 0.25) + (0.125 - 0.0)) / 2)
    assert found.metric("known_forgetting").tolist() == [[0.5], [0.25]]


def test_per_task_models_are_no_sequence() -> None:
    found = result()
    assert float(found.metric("average_accuracy")[1]) == pytest.approx((0.75 + 1.0 + 0.75) / 3)
    for name in set(METRICS) - {"average_accuracy", "known_forgetting"}:
        assert math.isnan(float(found.metric(name)[1])), name


def test_difference_pairs_the_seeds() -> None:
    """Two methods that rise and fall together differ by the same amount for every seed: an interval of no width."""
    matrix = torch.stack([torch.stack([A, A * 0.5]), torch.stack([A, A * 0.5]) - 0.125])
    found = result(
        methods=("ncft", "full"), seeds=(0, 1), orders=torch.tensor([[0, 1, 2]] * 2), matrix=matrix,
        known=torch.zeros(2, 2, 3),
    )  # fmt: skip
    assert found.difference("average_accuracy", "ncft", "full") == pytest.approx((0.125, 0.125, 0.125))
    mean, low, high = found.interval("average_accuracy")
    assert low[0] < mean[0] - 0.1 < mean[0] + 0.1 < high[0]
    half = found.difference("forgetting", "ncft", "full", times=0.5)
    assert half[0] == pytest.approx(0.5 * 0.75 * 0.375)


def test_the_record_brings_it_back(tmp_path: Path) -> None:
    path = write_atlas(tmp_path / "study.h5", [result(known_before=math.nan).to_record()])
    with Atlas(path) as atlas:
        back = atlas.get("continual", "continual")
    assert isinstance(back, Continual)
    for name in ("orders", "matrix", "untouched", "known", "trainable"):
        assert torch.equal(getattr(back, name), getattr(result(), name))
    assert (back.methods, back.tasks, back.seeds, back.origin) == (
        ("ncft", "per-task"), ("a", "b", "c"), (7,), {"epochs": 3},
    )  # fmt: skip
    assert math.isnan(back.known_before)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TuneError, match=r"matrix must have shape \[2, 1, 3, 3\], got \[1, 1, 3, 3\]"):
        result(matrix=A[None, None])
    with pytest.raises(TuneError, match="unknown metric 'best'; metrics are average_accuracy"):
        result().metric("best")
    with pytest.raises(TuneError, match="no method 'lora' in this result; it has ncft, per-task"):
        result().difference("forgetting", "ncft", "lora")
