"""Figures of a calibration: precision and recall, recall against the number of neurons taken, and where false finds lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from .cells import as_array
from .style import GRID, INK, FigureError, new_figure, palette, themed

if TYPE_CHECKING:
    from ..finetune.calibration_result import Calibration

BASELINE = "random"


def precision_recall(found: Calibration, variant: str | None = None) -> Axes:
    """Precision against recall as more neurons are taken, a line a method at its best ranking, mean over groups and seeds.

    The dot is where as many are taken as were planted. Raises FigureError where no plant of the variant held.
    """
    variant, rows = _rows(found, variant)
    place = int(np.abs(np.log(as_array(found.counts) / _size(found, variant))).argmin())
    with _drawn(rows, (7.6, 4.4), f"{variant}: precision and recall") as axes:
        for row, colour in _coloured(rows):
            recall, precision = (as_array(one) for one in found.curve(variant, row["method"], row["ranking"]))
            line = axes.plot(recall, precision, label=_label(row), **_line(row, colour))[0]
            axes.plot(recall[place], precision[place], marker="o", color=line.get_color(), linestyle="none")
        axes.set(xlabel="recall: share of the planted neurons found", ylabel="precision: share of those taken")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return axes


def recall_by_count(found: Calibration, variant: str | None = None) -> Axes:
    """Recall against the number of neurons taken (log scale), a line a method; the dotted line is the number planted.

    Raises FigureError where no plant of the variant held.
    """
    variant, rows = _rows(found, variant)
    counts = as_array(found.counts)
    with _drawn(rows, (7.6, 4.4), f"{variant}: recall as more neurons are taken") as axes:
        for row, colour in _coloured(rows):
            recall = as_array(found.curve(variant, row["method"], row["ranking"])[0])
            axes.plot(counts, recall, label=_label(row), **_line(row, colour))
        axes.axvline(_size(found, variant), color=INK, linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(
            "{x:,.0f}"
        )  # the default writes powers as formulas, which the theme leaves as text
        axes.set(xlabel="neurons taken for a group", ylabel="share of the planted neurons found", ylim=(-0.02, 1.02))
    return axes


def false_finds_by_layer(found: Calibration, variant: str | None = None) -> Axes:
    """Bars by layer: of the first K neurons of a group, how many are others than the planted ones, mean over groups and seeds.

    Raises FigureError where no plant of the variant held.
    """
    import seaborn

    variant, rows = _rows(found, variant)
    place = found.variants.index(variant)
    table: dict[str, list[Any]] = {"layer": [], "false finds": [], "method": []}
    for row in rows:
        m, r = found.methods.index(row["method"]), found.rankings.index(row["ranking"])
        false = as_array(found.false_finds[place, :, m, r].nanmean(dim=0))
        for layer, count in enumerate(false.tolist()):
            table["layer"].append(layer)
            table["false finds"].append(count)
            table["method"].append(_label(row))
    width = max(7.6, 3.6 + 0.16 * len(table["layer"]))
    with _drawn(rows, (width, 4.0), f"{variant}: where false finds lie") as axes:
        seaborn.barplot(
            x=table["layer"], y=table["false finds"], hue=table["method"], ax=axes, errorbar=None, linewidth=0,
            palette=[_line(row, colour)["color"] for row, colour in _coloured(rows)],
        )  # fmt: skip
        axes.set(xlabel="layer", ylabel=f"others among the first {_size(found, variant):.0f}")
    return axes


def _rows(found: Calibration, variant: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The variant, and each method's row at its best ranking."""
    variant = found.first if variant is None else variant
    rows = found.summary(variant) if variant is not None else []
    if variant is None or not rows:
        raise FigureError(
            f"no plant{'' if variant is None else f' of {variant!r}'} held, so there is nothing to draw; calibrate again with "
            "more steps of planting or more neurons a group"
        )
    return variant, rows


@contextmanager
def _drawn(rows: Sequence[dict[str, Any]], size: tuple[float, float], title: str) -> Iterator[Axes]:
    """Empty axes in the theme, with the legend beside them once they are drawn."""
    with themed([_label(row) for row in rows]):
        figure = new_figure(*size)
        axes = figure.subplots()
        axes.grid(True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(title)
        yield axes
        handles, names = axes.get_legend_handles_labels()
        if (legend := axes.get_legend()) is not None:
            legend.remove()
        figure.legend(handles, names, loc="outside right upper", frameon=False)


def _coloured(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], Any]]:
    return list(zip(rows, palette(max(2, len(rows))), strict=False))


def _line(row: dict[str, Any], colour: Any) -> dict[str, Any]:
    if row["method"] == BASELINE:
        return {"color": INK, "linestyle": "--", "linewidth": 1.2}
    return {"color": colour, "linewidth": 1.8}


def _label(row: dict[str, Any]) -> str:
    return BASELINE if row["method"] == BASELINE else f"{row['method']} ({row['ranking']})"


def _size(found: Calibration, variant: str) -> float:
    sizes = found.planted[found.variants.index(variant)]
    return float(sizes[sizes > 0].double().mean())
