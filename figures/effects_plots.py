"""Figures of effects: dose-response curves and layer sweeps, and the harness's tasks, beside controls and twins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from .cells import as_array
from .style import GRID, INK, FigureError, new_figure, palette, text_inches, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.curves import Curve
    from ..analysis.evaluation import Evaluation

MOST_PANELS = 24
_MOST_METRICS, _MOST_ROWS = 6, 40


def dose_response(curve: Curve, *, sets: list[str] | None = None) -> Figure:
    """A panel a set: change of the metric on its own group as larger shares are silenced, with its 95 % interval.

    The grey band is the range of the controls' draws, dashed their mean; dotted the mean of the other groups; the twins,
    where they were asked, have a band of their own. `sets` names the sets to draw, by default the first 24.

    Raises FigureError for a curve along another axis, and for a set that the curve has not.
    """
    if curve.axis != "dose":
        raise FigureError(f"expected a curve along doses, found one along {curve.axis}s; draw it with layer_sweep")
    figure = _panels(curve, sets, [100 * step for step in curve.steps], "share of the neurons silenced (%)")
    shown = [100 * step for step in curve.steps]
    for axes in figure.axes:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def layer_sweep(curve: Curve, *, sets: list[str] | None = None) -> Figure:
    """A panel a set: change of the metric on its own group when one layer's share of the set is silenced at a time.

    Bands and lines are those of `dose_response`. Layers without neurons of the set change nothing.

    Raises FigureError for a curve along another axis, and for a set that the curve has not.
    """
    if curve.axis != "layer":
        raise FigureError(f"expected a curve along layers, found one along {curve.axis}s; draw it with dose_response")
    figure = _panels(curve, sets, list(curve.steps), "layer")
    every = max(1, math.ceil(len(curve.steps) / 8))
    for axes in figure.axes:
        axes.xaxis.set_major_locator(FixedLocator(list(curve.steps[::every])))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    return figure


def _panels(curve: Curve, sets: list[str] | None, places: list[float], along: str) -> Figure:
    chosen = list(curve.names[:MOST_PANELS]) if sets is None else sets
    for name in chosen:
        if name not in curve.names:
            raise FigureError(f"the curve has no set {name!r}; it has {', '.join(curve.names)}")
    if not chosen:
        raise FigureError("no sets to draw; expected at least one name")
    scale = curve.effects.scale
    own = {key: scale * as_array(values) for key, values in curve.own().items() if key != "p_controls"}
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    unit = "points" if curve.effects.unit == "share" else curve.effects.unit
    with themed([*chosen, along]):
        wide = max(2.1, text_inches(chosen) + 0.3)
        figure = new_figure(columns * wide + 2.2, rows * 1.9 + 0.7)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, chosen, strict=False):
            row = curve.names.index(name)
            _draw(axes, np.asarray(places, dtype=float), {key: values[row] for key, values in own.items()})
            axes.set_title(name)
        for axes in list(grid.flat)[len(chosen) :]:
            axes.remove()
        for place, axes in enumerate(list(grid.flat)[: len(chosen)]):
            if place + columns >= len(chosen):
                axes.tick_params(labelbottom=True)
        figure.supxlabel(along)
        figure.supylabel(f"change of {curve.effects.metric} ({unit})")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _draw(axes: Axes, places: np.ndarray, own: dict[str, np.ndarray]) -> None:
    first, second = palette(2)
    axes.axhline(0.0, color=GRID, linewidth=1.0, zorder=0)
    if np.isfinite(own["control"]).any():
        ends = (own["control_low"], own["control_high"])
        axes.fill_between(places, *ends, color="0.5", alpha=0.3, linewidth=0, label="controls, range")
        axes.plot(places, own["control"], color="0.35", linestyle="--", linewidth=1.2, label="controls, mean")
    if np.isfinite(own["others"]).any():
        axes.plot(places, own["others"], color=INK, linestyle=":", linewidth=1.2, label="other groups, mean")
    if "twin" in own:
        axes.fill_between(places, own["twin_low"], own["twin_high"], color=second, alpha=0.15, linewidth=0)
        axes.plot(
            places, own["twin"], color=second, marker="s", linestyle="-.", linewidth=1.2, label="own group's twins"
        )
    axes.fill_between(
        places, own["low"], own["high"], color=first, alpha=0.2, linewidth=0, label="own group, 95 % interval"
    )
    axes.plot(places, own["effect"], color=first, marker="o", label="own group")
    axes.grid(True, axis="y", color=GRID, linewidth=0.6)


def harness_changes(found: Evaluation) -> Figure:
    """A panel a metric, a row a task and run: change against the intact run with its 95 % interval, controls as crosses.

    The first 6 metrics and 40 rows of each. Raises FigureError where nothing was changed, or no intact run is there.
    """
    change, (low, high) = as_array(found.change), (as_array(end) for end in found.interval())
    metrics: dict[str, list[tuple[int, int]]] = {}
    for place, cell in enumerate(found.cells):
        title = cell.metric if cell.filter == "none" else f"{cell.metric} ({cell.filter})"
        metrics.setdefault(title, []).extend((place, r) for r in found.changed if np.isfinite(change[r, place]))
    drawn = [(title, rows[:_MOST_ROWS]) for title, rows in metrics.items() if rows][:_MOST_METRICS]
    if not drawn:
        raise FigureError(
            "this evaluation has no change to draw; it needs an intact run and one with a set off or a delta"
        )
    names = [[f"{found.cells[c].task}: {found.runs[r]}" for c, r in rows] for _, rows in drawn]
    with themed([name for each in names for name in each]):
        heights = [0.5 + 0.26 * len(rows) for _, rows in drawn]
        figure = new_figure(5.0 + text_inches([name for each in names for name in each]), 0.9 + sum(heights))
        panels = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, rows), labels in zip(panels, drawn, names, strict=True):
            axes.axvline(0.0, color=GRID, linewidth=1.2, zorder=0)
            for place, (c, r) in enumerate(rows):
                owned = change[found.controls(r), c]
                axes.plot(owned, [place] * len(owned), "x", color="0.45", markersize=4)
                if np.isfinite(low[r, c]):
                    axes.plot([low[r, c], high[r, c]], [place, place], color=palette(1)[0], linewidth=1.6)
                axes.plot([change[r, c]], [place], "o", color=palette(1)[0])
            axes.set_yticks(range(len(rows)), labels)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlabel(f"change of {title}")
    return figure
