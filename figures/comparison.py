"""The page of two studies side by side, from their atlases alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from .comparison_plots import effects_beside, rank_agreement, sets_in_common
from .parts import Part, Picture
from .plots import SIGNIFICANT
from .report import rendered
from .saving import write_whole
from .sections import Section, section
from .style import letters_left_to_the_reader
from .tables import Column, Form, Table, numbers, p_values, words, written

if TYPE_CHECKING:
    from ..analysis.agreement import Agreement
    from ..analysis.comparison import Comparison


def compare_page(comparison: Comparison, out: str | Path = "comparison.html") -> Path:
    """Write the page of two studies side by side and return where it is; it loads nothing.

    Raises FigureError when the page cannot be written.
    """
    return write_whole(out, page(comparison).encode("utf-8"))


def page(comparison: Comparison) -> str:
    """The page as HTML text."""
    with letters_left_to_the_reader():
        found = _sections(comparison)
    first, second = comparison.names
    about = [
        ("first", first), ("about", comparison.subjects[0]), ("second", second), ("about", comparison.subjects[1]),
    ]  # fmt: skip
    return rendered(found, title=f"{first} and {second}", about=about)


def words_of(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """What was found, in words, by part: sets, ranks, effects, notes."""
    return {
        "sets": _set_words(comparison), "ranks": tuple(_rank_words(one) for one in comparison.ranks),
        "effects": _effect_words(comparison), "notes": comparison.notes,
    }  # fmt: skip


def _sections(comparison: Comparison) -> list[Section]:
    said, found = words_of(comparison), []
    if comparison.sets:
        matched = [pair for pair in comparison.sets if pair.shared is not None]
        caption = (
            "Bars: Jaccard index of two sets of a name. Dark: the middle 95 % of random sets of these counts by layer."
        )
        pictures = (Picture(sets_in_common(comparison), "Sets in common", caption),) if matched else ()
        sure = sum(pair.p < SIGNIFICANT and pair.jaccard > pair.expected for pair in matched)
        headline = (
            (f"{sure} of {len(matched)}", "sets share more neurons than by chance (p < 0.05, Holm)")
            if matched
            else None
        )
        part = Part(said["sets"], headline, pictures, (_sets_table(comparison),))
        found.append(_titled("sets", "Sets in common", part))
    if comparison.ranks:
        pictures = tuple(
            Picture(
                rank_agreement(one),
                f"Agreement of the scores (site {one.site})",
                "Each row is a group of both studies.",
            )
            for one in comparison.ranks
        )
        part = Part(said["ranks"], None, pictures, tuple(_ranks_table(one) for one in comparison.ranks))
        found.append(_titled("ranks", "Agreement of ranks", part))
    if comparison.effects:
        pictures = ()
        if comparison.own:
            caption = (
                f"Change of {comparison.metric} on a set's own group when the set is silenced, with its 95 % interval, in both "
                "studies."
            )
            pictures = (Picture(effects_beside(comparison), "Effects beside one another", caption),)
        part = Part(said["effects"], None, pictures, (_effects_table(comparison),))
        found.append(_titled("effects", "Effects beside one another", part))
    if comparison.notes:
        found.append(_titled("notes", "To bear in mind", Part(comparison.notes)))
    return found


def _titled(key: str, title: str, part: Part) -> Section:
    made = section(key, "", part)
    return Section(made.key, title, made.part, made.pictures, made.tables)


def _set_words(comparison: Comparison) -> tuple[str, ...]:
    pairs = comparison.sets
    if not pairs:
        return ()
    matched = [pair for pair in pairs if pair.shared is not None]
    count = f"{len(pairs)} {'set stands' if len(pairs) == 1 else 'sets stand'} in both studies."
    if not matched:
        return (count,)
    more = sum(pair.p < SIGNIFICANT and pair.jaccard > pair.expected for pair in matched)
    mean, chance = (sum(getattr(pair, key) for pair in matched) / len(matched) for key in ("jaccard", "expected"))
    return (
        f"{count} Mean Jaccard index {mean:.3f}, by chance {chance:.3f}; {more} of {len(matched)} share more neurons than "
        f"random sets with the same counts by layer would (two-sided p < {SIGNIFICANT}, Holm over the sets).",
    )


def _rank_words(found: Agreement) -> str:
    rank, top = (values[:, 0, 1] for values in (found.correlation, found.jaccard))
    return (
        f"Site {found.site}, {len(found.groups)} {'group' if len(found.groups) == 1 else 'groups'}: rank correlation of the "
        f"scores {rank.mean():.3f} on the mean ({rank.min():.3f} to {rank.max():.3f}, over {found.sampled:,} neurons); the "
        f"top {100 * found.top:g} % agree by a Jaccard index of {top.mean():.3f} (by chance "
        f"{found.top / (2 - found.top):.3f})."
    )


def _effect_words(comparison: Comparison) -> tuple[str, ...]:
    own = [pair for pair in comparison.own if math.isfinite(pair.difference)]
    if not own:
        return ("No set bears the name of a group that both studies asked about.",) if comparison.effects else ()
    mean = [sum(pair.change[study] for pair in own) / len(own) for study in (0, 1)]
    apart = [pair.set for pair in own if pair.difference_low > 0 or pair.difference_high < 0]
    how = "paired over items" if own[0].paired else "not paired: the questions are not known to be the same"
    signs = [change_of(comparison, value) for value in mean]
    return (
        f"Mean change on the own group, over {len(own)} {'set' if len(own) == 1 else 'sets'}: {signs[0]} {_unit(comparison)} in "
        f"{comparison.names[0]}, {signs[1]} in {comparison.names[1]}. The 95 % interval of the difference ({how}, not "
        f"corrected for their number) lies off zero for {len(apart)} of {len(own)}"
        + (f": {', '.join(apart[:8])}{' and more' if len(apart) > 8 else ''}." if apart else "."),
    )


def change_of(comparison: Comparison, value: float) -> str:
    """A change as it is shown: points with one decimal, other units with three."""
    return written(comparison.scale * value, _form(comparison))


def _unit(comparison: Comparison) -> str:
    return "points" if comparison.unit == "share" else comparison.unit


def _form(comparison: Comparison) -> Form:
    return "+.1f" if comparison.unit == "share" else "+.3f"


def _sets_table(comparison: Comparison) -> Table:
    pairs, (first, second) = comparison.sets, comparison.names
    columns = (
        words("set", [pair.name for pair in pairs]), numbers(f"neurons, {first}", [pair.sizes[0] for pair in pairs]),
        numbers(f"neurons, {second}", [pair.sizes[1] for pair in pairs]),
        numbers("shared", [math.nan if pair.shared is None else pair.shared for pair in pairs]),
        numbers("Jaccard", [pair.jaccard for pair in pairs], ".3f"), numbers("by chance", [pair.expected for pair in pairs], ".3f"),
        numbers("95 % of chance", [pair.low for pair in pairs], ".3f", high=[pair.high for pair in pairs]),
        p_values("p (Holm)", [pair.p for pair in pairs]),
        numbers(f"depth, {first}", [pair.depth[0] for pair in pairs], ".2f"),
        numbers(f"depth, {second}", [pair.depth[1] for pair in pairs], ".2f"),
    )  # fmt: skip
    return Table("sets", "Sets of both studies; depth is the mean layer of a set, from 0 (first) to 1 (last)", columns)


def _ranks_table(found: Agreement) -> Table:
    columns = (
        words("group", found.groups), numbers("rank correlation", found.correlation[:, 0, 1], ".3f"),
        numbers(f"Jaccard of the top {100 * found.top:g} %", found.jaccard[:, 0, 1], ".3f"),
    )  # fmt: skip
    return Table("ranks", f"Agreement of the scores of both studies, by group (site {found.site})", columns)


def _effects_table(comparison: Comparison) -> Table:
    pairs, unit = comparison.effects, _unit(comparison)

    def changes(name: str, values: list[float], high: list[float] | None = None) -> Column:
        scaled = [None if ends is None else [comparison.scale * value for value in ends] for ends in (values, high)]
        return numbers(name, scaled[0], _form(comparison), high=scaled[1])

    columns = [
        words("set silenced", [pair.set for pair in pairs], filtered=True),
        words("questions of", [pair.group for pair in pairs], filtered=True),
    ]
    for study, name in enumerate(comparison.names):
        columns.append(changes(f"change, {name} ({unit})", [pair.change[study] for pair in pairs]))
        low, high = ([getattr(pair, end)[study] for pair in pairs] for end in ("low", "high"))
        columns.append(changes(f"95 % interval, {name}", low, high))
    columns += [
        changes(f"difference ({unit})", [pair.difference for pair in pairs]),
        changes(
            "95 % interval of the difference", [pair.difference_low for pair in pairs], [pair.difference_high for pair in pairs]
        ),
    ]  # fmt: skip
    caption = f"Change of {comparison.metric} by silencing, in both studies; the difference is second less first"
    return Table("effects", caption, tuple(columns))
