"""The figure of a training run: the loss of every step, and what was held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .style import GRID, INK, FigureError, new_figure, palette, themed

_SMOOTHED = 30  # steps from which a line beside the dots helps


def training(delta: Any) -> Figure:
    """Loss by step of a finetune Delta: training, held-out and its lowest step, where a run went on with another recipe.

    The loss of a step is that of its own batch before the step; from 30 steps on, dots are steps and the line is a running
    mean over a tenth of them. Held-out losses are after the step. Raises FigureError for a delta without a history.
    """
    history = np.asarray(delta.history, dtype=float)
    if not len(history):
        raise FigureError(
            "this delta has no history of losses: it was not trained here, or it was put together from others"
        )
    steps = np.arange(1, len(history) + 1)
    colours = palette(2)
    with themed():
        figure = new_figure(7.5, 3.6)
        axes: Any = figure.subplots()
        if len(history) < _SMOOTHED:
            axes.plot(steps, history, marker="o", color=colours[0], label="training")
        else:
            axes.scatter(steps, history, s=8, color=colours[0], alpha=0.35, linewidth=0)
            axes.plot(steps, running_mean(history, len(history) // 10), color=colours[0], label="training")
        told = delta.origin.get("held_out")
        if told is not None and told["losses"]:
            places, losses = zip(*told["losses"], strict=True)
            axes.plot(places, losses, marker="s", color=colours[1], label="held out")
            best = told["best_step"]
            axes.axvline(best, color=INK, linestyle="--", linewidth=1, label=f"lowest held out, step {best}")
        for change in delta.origin.get("resumed", ()):
            axes.axvline(change["step"], color=GRID, linewidth=1.4, label=f"other recipe from step {change['step']}")
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)")
        axes.set_ylim(bottom=min(0.0, float(history.min())))
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)
        axes.legend(frameon=False)
    return figure


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over the values up to `width` // 2 places before and after each; fewer at the ends."""
    reach = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
