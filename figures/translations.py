"""The figure of translation: what tuning learned in some language pairs and lost in the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .cells import as_array
from .style import GRID, INK, new_figure, palette, text_inches, themed


def translation_changes(table: Any) -> Figure:
    """Bars of the change of chrF by method, from a finetune TranslationTable alone: learned (left) and lost (right).

    Bars are means over seeds, dots the seeds.
    """
    methods = list(table.methods)
    sides = (("learned: new, trained pairs", table.gain()), ("lost: known, other pairs", table.forgetting()))
    with themed(methods):
        figure = new_figure(max(7.5, text_inches(methods) + 6), 1.4 + 0.36 * len(methods))
        panels = figure.subplots(1, 2, sharey=True)
        colours = palette(max(2, len(methods)))
        for axes, (title, values) in zip(panels, sides, strict=True):
            for row, dots in enumerate(as_array(values)):
                known = dots[np.isfinite(dots)]
                if len(known):
                    axes.barh(row, known.mean(), height=0.6, color=colours[row], alpha=0.55)
                    place = np.linspace(row - 0.15, row + 0.15, len(known))
                    axes.scatter(known, place, s=9, color=INK, alpha=0.6, linewidth=0)
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.set(title=title, xlabel="chrF (0 to 100)")
            axes.grid(True, axis="x", color=GRID, linewidth=0.6)
        panels[0].set_yticks(range(len(methods)), methods)
        panels[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure
