"""The figure of what is tuned: accuracy by share of the neurons, on groups trained on and not."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .cells import as_array
from .style import GRID, INK, FigureError, new_figure, palette, themed


def sweep_lines(sweep: Any) -> Figure:
    """Lines of accuracy by share of the neurons that are tuned, a line for every overlap, from a finetune Sweep alone.

    Left the groups that were trained on, right those that were not; means over seeds with their 95 % t interval, dashed
    the accuracy before tuning. Raises FigureError for a sweep without settings.
    """
    if not sweep.settings:
        raise FigureError("a sweep without settings has nothing to show")
    shares = np.array([100 * one["share"] for one in sweep.settings])
    kinds = [one.get("overlap", "natural") for one in sweep.settings]
    lines = list(dict.fromkeys(kinds))
    sides = (("trained on", sweep.in_domain), ("not trained on", sweep.out_of_domain))
    with themed([*sweep.groups]):
        figure = new_figure(9.0, 3.4)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, (title, groups) in zip(panels, sides, strict=True):
            mean, low, high = (100 * as_array(part) for part in sweep.interval(groups))
            places = [sweep.groups.index(group) for group in groups]
            if places:
                before = 100 * float(as_array(sweep.untouched)[places].mean())
                axes.axhline(before, color=INK, linestyle="--", linewidth=1, label="before")
            for kind, colour in zip(lines, palette(max(2, len(lines))), strict=False):
                at = [row for row, one in enumerate(kinds) if one == kind]
                at.sort(key=lambda row: shares[row])
                reach = np.nan_to_num(np.stack([mean[at] - low[at], high[at] - mean[at]]), nan=0.0)
                label = kind if isinstance(kind, str) else f"{100 * kind:g} %"
                axes.errorbar(shares[at], mean[at], yerr=reach, fmt="o-", color=colour, capsize=3, label=label)
            axes.set_title(f"{title}: {len(groups)} {'group' if len(groups) == 1 else 'groups'}")
            axes.set_xlabel("neurons tuned (% of the site)")
            axes.grid(True, color=GRID, linewidth=0.6)
        panels[0].set_ylabel("accuracy (%)")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", frameon=False, title="overlap")
    return figure
