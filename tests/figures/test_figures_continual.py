from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from neuropolis.figures.continual import continual
from neuropolis.figures.saving import save_figure
from neuropolis.figures.style import FigureError
from neuropolis.finetune.continual_result import Continual
from neuropolis.neurons.atlas import Atlas, write_atlas


def made(
    methods: tuple[str, ...] = ("ncft", "full"), *, seeds: int = 3, asked: bool = True, **changed: Any
) -> Continual:
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(3, generator=generator) for _ in range(seeds)])
    fields: dict[str, Any] = {
        "subject": "0" * 16, "methods": methods, "tasks": ("japan", "日本", "peru"), "seeds": tuple(range(seeds)),
        "orders": orders, "matrix": torch.rand((len(methods), seeds, 3, 3), generator=generator),
        "untouched": torch.zeros(3), "known": torch.rand((len(methods), seeds, 3), generator=generator),
        "known_before": 1.0 if asked else math.nan, "trainable": torch.arange(len(methods)),
    }  # fmt: skip
    return Continual(**(fields | changed))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_cells_and_bars_say_the_numbers_of_the_record(tmp_path: Path) -> None:
    result = made()
    with Atlas(write_atlas(tmp_path / "study.h5", [result.to_record()])) as atlas:
        figure = continual(atlas.get("continual", "continual"))
    first = figure.axes[0]
    cells = np.array([text.get_text() for text in first.texts]).reshape(3, 3)
    expected = (100 * result.learned_order[0].mean(dim=0)).numpy()
    assert (cells == np.array([[f"{value:.0f}" for value in row] for row in expected])).all()
    bars = {
        axes.get_title(loc="left"): [patch.get_width() for patch in axes.patches]
        for axes in figure.axes
        if axes.patches
    }
    assert bars["forgotten of the stream"] == pytest.approx((100 * result.interval("forgetting")[0]).tolist())
    assert bars["forgotten of what was known before"] == pytest.approx(
        (100 * result.interval("known_forgetting")[0]).tolist()
    )
    for name in ("continual.svg", "continual.png"):
        assert save_figure(figure, tmp_path / name).stat().st_size > 1000


def test_tasks_are_named_where_the_order_is_one() -> None:
    figure = continual(made(orders=torch.tensor([[2, 0, 1]] * 3)))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["peru", "japan", "日本"]
    assert [label.get_text() for label in continual(made()).axes[0].get_xticklabels()] == ["task 1", "task 2", "task 3"]


def test_what_was_not_measured_stays_empty() -> None:
    result = made(("joint", "per-task"), seeds=1, asked=False)
    matrix = result.matrix.clone()
    matrix[0, :, :2] = torch.nan
    figure = continual(made(("joint", "per-task"), seeds=1, asked=False, matrix=matrix))
    assert not [axes for axes in figure.axes if axes.patches]
    assert sum(text != "" for text in texts(figure)) == 3 + 9


def test_many_methods_are_put_in_rows() -> None:
    methods = tuple(f"method {n}" for n in range(7))
    figure = continual(made(methods))
    assert [title for axes in figure.axes if (title := axes.get_title(loc="left")).startswith("method")] == list(
        methods
    )


def test_nothing_is_refused() -> None:
    empty = made((), seeds=1, matrix=torch.zeros(0, 1, 3, 3), known=torch.zeros(0, 1, 3), trainable=torch.zeros(0))
    with pytest.raises(FigureError, match="nothing to show"):
        continual(empty)
