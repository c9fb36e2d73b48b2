"""Parts of the report about corpora: alignment of answers with a survey's majorities, and difficulty of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from .cells import as_array
from .parts import Part, Picture
from .style import GRID, INK, FigureError, new_figure, palette, themed
from .tables import Table, numbers
from .tables import words as column

if TYPE_CHECKING:
    from ..analysis.value_alignment import Alignment
    from ..attribution.difficulty import Difficulty


def alignment_by_culture(found: Alignment) -> Axes:
    """A dot with its 95 % interval for each culture; marks for random answers and for always the middle option."""
    with themed(found.groups):
        figure = new_figure(max(6.4, 2.6 + 0.42 * len(found.groups)), 4.0)
        axes = figure.subplots()
        places = range(len(found.groups))
        values, low, high = (as_array(one) for one in (found.values, found.low, found.high))
        (colour,) = palette(1)
        axes.errorbar(
            places, values, yerr=[values - low, high - values], fmt="o", color=colour, capsize=3, label="answers"
        )
        axes.plot(places, as_array(found.chance), "_", color=INK, markersize=12, label="random answers")
        axes.plot(places, as_array(found.middle), "x", color=INK, markersize=7, label="always the middle option")
        axes.set_xticks(list(places), list(found.groups), rotation=45 if len(found.groups) > 8 else 0)
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set(ylabel="alignment (100: the majority's answers)", title="Alignment with each culture's majority")
        figure.legend(loc="outside right upper", frameon=False)
    return axes


def alignment(found: Alignment) -> Part:
    """Scores by culture beside two baselines, with how many answers counted."""
    above = sum(bool(low > middle) for low, middle in zip(found.low, found.middle, strict=True))
    words = (
        f"The mean alignment over {len(found.groups)} cultures is {found.mean:.1f}; random answers have "
        f"{float(found.chance.mean()):.1f}, always the middle option {float(found.middle.mean()):.1f}. "
        f"For {above} of {len(found.groups)} cultures the interval lies above the middle option."
    )
    table = Table(
        "alignment",
        "Alignment by culture",
        (
            column("culture", list(found.groups)),
            numbers("alignment", found.values, ".1f"),
            numbers("95 % interval", found.low, ".1f", high=found.high),
            numbers("random", found.chance, ".1f"),
            numbers("middle option", found.middle, ".1f"),
            numbers("valid answers", found.valid),
            numbers("asked", found.asked),
        ),
    )
    picture = Picture(
        alignment_by_culture(found).figure,  # pyright: ignore[reportArgumentType]
        "Alignment by culture",
        "Bars are 95 % of a bootstrap over questions. Answers that are no number are left out, which can raise a score.",
    )
    headline = (f"{found.mean:.1f}", f"mean alignment with {len(found.groups)} cultures' majorities")
    return Part((words,), headline, (picture,), (table,))


def difficulties(found: Difficulty) -> Axes:
    """How many examples have which difficulty (log scale); the line is 1, where the prompt says nothing of the answer."""
    ifd = as_array(found.ifd)
    ifd = ifd[np.isfinite(ifd) & (ifd > 0)]
    if not len(ifd):
        raise FigureError("no example has a difficulty, so there is nothing to draw; see `missing` for why")
    with themed():
        figure = new_figure(6.4, 3.6)
        axes = figure.subplots()
        axes.hist(np.log10(ifd), bins=min(40, max(5, len(ifd) // 10)), color=palette(1)[0])
        axes.axvline(0, color=INK, linestyle=":", linewidth=1.2)
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set(xlabel="log10 of the difficulty (IFD)", ylabel="examples", title="Difficulty of the examples")
    return axes


def difficulty(found: Difficulty) -> Part:
    """How far prompts help a subject to its answers, example by example."""
    ifd = found.ifd
    known = ifd[ifd.isfinite()]
    if not len(known):
        return Part((f"None of {len(found.ids)} examples has a difficulty.",))
    words = (
        f"Of {len(found.ids)} examples {len(known)} have a difficulty (IFD); the median is {float(known.median()):.3g}. "
        f"For {float((known < 1).float().mean()):.0%} of them the prompt makes the answer likelier."
    )
    table = Table(
        "difficulty",
        "Difficulty by example",
        (
            column("example", list(found.ids)),
            numbers("difficulty", ifd, ".3g"),
            numbers("nats a token with the prompt", found.given, ".3f"),
            numbers("without it", found.alone, ".3f"),
            numbers("tokens", found.tokens),
        ),
    )
    picture = Picture(
        difficulties(found).figure,  # pyright: ignore[reportArgumentType]
        "Difficulty of the examples",
        "Left of the line the prompt helps, right of it the answer is likelier without.",
    )
    return Part((words,), (f"{float(known.median()):.3g}", "median difficulty (IFD)"), (picture,), (table,))
