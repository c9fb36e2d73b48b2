"""Heat maps: cells that are as large as their number allows and say as much as fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from torch import Tensor

from .style import PAPER, text_inches

FULL, SHORT, BARE = "full", "short", "bare"
_EQUAL_CONTRAST = 0.22  # the luminance on which white and the dark ink have the same contrast (WCAG 2.1)
_LARGEST_VECTOR_MESH = 2500  # above it the cells become one embedded picture, or a page weighs megabytes


@dataclass(frozen=True)
class CellSize:
    """How large a cell is (inches) and how much it says: value and interval, the value alone, or nothing."""

    detail: str
    width: float
    height: float
    points: float


def cell_size(count: int) -> CellSize:
    """The size of the cells of a matrix whose longer side has this many."""
    if count <= 16:
        return CellSize(FULL, 0.82, 0.44, 7.5)
    if count <= 40:
        return CellSize(SHORT, 0.44, 0.28, 6.5)
    return CellSize(BARE, 0.2, 0.2, 6.5)


def heat(
    axes: Axes,
    values: np.ndarray,
    *,
    columns: Sequence[str],
    rows: Sequence[str] | None,
    colours: Colormap,
    limits: tuple[float, float],
    notes: np.ndarray | None = None,
    points: float = 7.5,
    bar: str | None = None,
    level: bool = False,
    open_ended: bool = False,
) -> None:
    """Draw `values` [row, column] as cells, with `notes` written in them and a colour bar that says `bar`.

    NaN cells stay empty. `level` keeps the columns' names level; `open_ended` says that values may lie beyond the
    limits.
    """
    import seaborn

    bar_options: dict[str, Any] = {
        "label": bar,
        "aspect": 28,
        "shrink": 0.9,
        "pad": 0.015,
        "extend": "both" if open_ended else "neither",
    }
    long_side = max(values.shape) if values.size else 1
    seaborn.heatmap(
        values, ax=axes, cmap=colours, vmin=limits[0], vmax=limits[1], annot=False, xticklabels=False,
        yticklabels=False, linewidths=0.6 if long_side <= 40 else 0, linecolor=PAPER,
        cbar=bar is not None, cbar_kws=bar_options,
    )  # fmt: skip
    if notes is not None:
        _write(axes, values, notes, colours, limits, points)
    turn: dict[str, Any] = {"rotation": 0} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    # not by seaborn, which draws long names upright to see whether they fit
    axes.set_xticks(np.arange(len(columns)) + 0.5, labels=list(columns), **turn)
    if rows is not None:
        axes.set_yticks(np.arange(len(rows)) + 0.5, labels=list(rows), rotation=0)
    axes.tick_params(length=0)
    if values.size > _LARGEST_VECTOR_MESH:
        axes.collections[0].set_rasterized(True)


def _write(
    axes: Axes, values: np.ndarray, notes: np.ndarray, colours: Colormap, limits: tuple[float, float], points: float
) -> None:
    """Notes in the cells, dark on light ones and light on dark ones; cells without one cost nothing."""
    span = (limits[1] - limits[0]) or 1.0
    for row, column in zip(*np.nonzero((notes != "") & np.isfinite(values)), strict=True):
        channels = np.array(colours(float(np.clip((values[row, column] - limits[0]) / span, 0, 1)))[:3])
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        light = float(linear @ [0.2126, 0.7152, 0.0722]) > _EQUAL_CONTRAST
        axes.text(
            column + 0.5, row + 0.5, notes[row, column], ha="center", va="center", size=points, linespacing=1.15,  # pyright: ignore[reportArgumentType]
            color=".15" if light else "w",
        )  # fmt: skip


def frame(rows: Sequence[str], columns: Sequence[str], *, cell: CellSize, extra: float = 0.0) -> tuple[float, float]:
    """(width, height) in inches of a figure with one such matrix, its names and a colour bar; `extra` widens it."""
    width = 1.5 + text_inches(rows) + cell.width * len(columns) + extra
    height = 1.1 + 0.75 * text_inches(columns) + cell.height * len(rows)
    return max(width, 4.5), max(height, 2.8)


def signed(value: Any, *, digits: int = 1) -> str:
    """A number with its sign, typeset: +1.2, −3.4, and 0.0 without one; empty where there is none."""
    if not np.isfinite(value):
        return ""
    text = f"{value:+.{digits}f}".replace("-", "\u2212")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def as_array(tensor: Any) -> np.ndarray:
    """A tensor as a numpy array."""
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)
