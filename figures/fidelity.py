"""The figure of how well methods order neurons: what is lost when the first ones are silenced, and when all others are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .cells import as_array
from .style import GRID, INK, new_figure, palette, themed

if TYPE_CHECKING:
    from ..attribution.fidelity_result import Fidelity


def fidelity_curves(fidelity: Fidelity) -> Figure:
    """Deletion and insertion curves, means over groups, a line a method; random orders dashed, with their range.

    In the left panel a higher line is better (the first neurons are those that the groups need), in the right one a lower line.
    """
    shares = 100 * as_array(fidelity.shares)
    titles = ("first neurons silenced: higher is better", "all but the first silenced: lower is better")
    with themed([*fidelity.methods, *titles]):
        figure = new_figure(9.0, 3.6)
        panels = figure.subplots(1, 2)
        colours = palette(max(len(fidelity.methods), 2))
        for axes, curve, title in zip(panels, ("deletion", "insertion"), titles, strict=True):
            control = as_array(fidelity.by_group(getattr(fidelity, f"control_{curve}")).mean(dim=2))
            axes.fill_between(shares, control.min(axis=0), control.max(axis=0), color=GRID, linewidth=0)
            axes.plot(shares, control.mean(axis=0), color=INK, linestyle="--", linewidth=1.2, label="random")
            lines = as_array(fidelity.by_group(getattr(fidelity, curve)).mean(dim=2))
            for method, line, colour in zip(fidelity.methods, lines, colours, strict=True):
                axes.plot(shares, line, marker="o", color=colour, label=method)
            axes.set_xscale("log")
            axes.set(title=title, xlabel=f"share of the {fidelity.site} neurons (%)")
            axes.grid(True, color=GRID, linewidth=0.6)
        panels[0].set_ylabel(f"{fidelity.objective} lost, mean over {len(fidelity.groups)} groups")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", frameon=False)
    return figure
