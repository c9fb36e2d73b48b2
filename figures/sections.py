"""The parts of the report: for each artefact its words, figure and tables, or the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from . import plots, tables, words
from .saving import inline_svg
from .tables import Table

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..analysis.overlap import Overlap
    from ..analysis.similarity import Similarity
    from ..analysis.study import Study

_MOST_ROWS = 2500  # of one table; a browser sorts as many without a pause
_WIDE_INCHES = 18.0  # wider figures are scrolled instead of shrunk


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page."""

    svg: str
    title: str
    caption: str
    wide: bool


@dataclass(frozen=True)
class Section:
    """A part of the page, about one artefact. `command` makes what the study lacks; then there is nothing else."""

    key: str
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""


TITLES = {
    "set": "Sets of neurons", "effects": "Effects of silencing", "overlap": "Overlap against chance",
    "similarity": "Similarity of parameters", "retention": "Tuning: learned and forgotten",
    "scores": "Neurons with the highest scores",
}  # fmt: skip
_ARGUMENTS = {
    "scores": "{model} --data FILE.jsonl --out {study}",
    "set": "{study} --top 1%",
    "effects": "{model} --data FILE.jsonl --study {study} --controls 20",
    "overlap": "{study}",
    "similarity": "{study}",
    "retention": "{model} --data FILE.jsonl --study {study} --group GROUP --out DELTA --old FILE.jsonl",
}


def sections(study: Study) -> list[Section]:
    """Every part of the page, in order of reading: one for each artefact, or one that says what makes it."""
    makers = {"effects": effects, "overlap": overlap, "similarity": similarity, "retention": retention}
    found: list[Section] = []
    for kind in TITLES:
        if not study.has(kind):
            found.append(missing(kind, study))
        elif kind == "set":
            found.append(sets(study.sets))
        elif kind == "scores":
            chosen = study.sets if study.has("set") else {}
            found += [scores(artefact, label, chosen) for label, artefact in labelled(study, kind)]
        else:
            found += [makers[kind](artefact, label) for label, artefact in labelled(study, kind)]
    return found


def labelled(study: Study, kind: str) -> Iterator[tuple[str, Any]]:
    """Every artefact of a kind, with its name where the name says something that the kind does not."""
    names = study.names(kind)
    return (("" if name == kind else name, study.get(kind, name)) for name in names)


def missing(kind: str, study: Study) -> Section:
    """The part that says what makes it."""
    from ..analysis.study import MADE_BY

    model = shlex.quote(str(study.subject.get("name") or "MODEL"))
    arguments = _ARGUMENTS[kind].format(model=model, study=shlex.quote(str(study.path)))
    return Section(kind, TITLES[kind], command=f"{MADE_BY[kind]} {arguments}")


def sets(found: Mapping[str, NeuronSet]) -> Section:
    """The sets by layer."""
    caption = "Each cell is the share of a set's neurons that lie in a layer, in per cent; in brackets its neurons."
    picture = _picture(plots.neurons_by_layer(found), "set", "Where the neurons of each set lie, by layer", caption)
    return Section("set", TITLES["set"], (words.sets_words(found),), (picture,), (tables.sets_table(found),))


def effects(found: Effects, label: str = "") -> Section:
    """Effects of silencing every set."""
    key, title = _named("effects", label)
    caption = (
        "Change of accuracy in percentage points when a set is silenced, with its 95 % interval (bootstrap over "
        "items). * marks changes that are worse than those by the matched controls (one-sided sign-flip test over "
        "items, p < 0.05 after Benjamini-Hochberg over all cells). Beside: the change on the set's own group, the mean "
        "over the other groups, and the mean change by controls. Many groups leave room for less: "
        "the table below has every number."
    )
    picture = _picture(plots.effect_matrix(found), key, "Change of accuracy when a set is silenced", caption)
    cells, notes = _capped(tables.effect_cells_table(found), "effects")
    notes += (
        "The tests generalise over items, given these controls and this selection. The smallest detectable drop is a "
        "guide to what so many items can show: a smaller one that was not found is not thereby absent.",
    )
    own = (tables.effects_table(found),) if any(place is not None for place in found.own_group) else ()
    shown = _keyed(key, *own, cells)
    return Section(key, title, words.effects_words(found), (picture,), shown, notes)


def overlap(found: Overlap, label: str = "") -> Section:
    """Overlap of every pair against chance."""
    key, title = _named("overlap", label)
    caption = (
        "Colour: log2 of the Jaccard index over its mean by chance. In the cells the Jaccard index and how many times "
        "chance it is; * marks corrected p < 0.05; on the diagonal the neurons of the set. Many groups leave room for "
        "less: the table below has every number."
    )
    picture = _picture(plots.overlap_matrix(found), key, "Overlap of sets against chance", caption)
    table, notes = _capped(tables.overlap_table(found), "overlap")
    null = found.origin.get("null")
    if null:
        notes += (f"By chance: two sets drawn independently at random, {null}.",)
    return Section(key, title, (words.overlap_words(found),), (picture,), _keyed(key, table), notes)


def similarity(found: Similarity, label: str = "") -> Section:
    """Parameter similarity by layer."""
    key, title = _named("similarity", label)
    if len(found.groups) < 2:
        return Section(key, title, ("There is one set only, and nothing to compare its parameters with.",))
    caption = (
        "Lines: mean over pairs of sets of the cosine of their mean parameter vectors; bands: the middle 90 % of the "
        "pairs. Grey: random sets with the same counts by layer, mean and mean 95 % interval. Shared neurons raise a "
        "cosine by themselves."
    )
    name = "Similarity of the parameters of two sets, by layer"
    picture = _picture(plots.similarity_by_layer(found), key, name, caption)
    return Section(key, title, (words.similarity_words(found),), (picture,))


def retention(found: Any, label: str = "") -> Section:
    """What tuning learned and forgot."""
    key, title = _named("retention", label)
    caption = (
        "Dashed: before tuning. Large dots with 95 % intervals: after; the interval of a mean over groups combines "
        "theirs as independent. Small dots: the trained groups one by one."
    )
    picture = _picture(plots.forgetting(found), key, "Accuracy before and after tuning, by method", caption)
    table, notes = _capped(tables.retention_table(found), "retention")
    return Section(key, title, tuple(words.retention_words(found)), (picture,), _keyed(key, table), notes)


def scores(found: Scores, label: str, sets: Mapping[str, NeuronSet]) -> Section:
    """The top neurons of each group."""
    key, title = _named("scores", label)
    notes = (
        "Scores of different groups have different scales; compare ranks, or sets. A high score says that the "
        "first-order estimate of silencing the neuron is large, not that silencing it alone would change an answer.",
    )
    table = tables.top_neurons_table(found, sets)
    return Section(key, title, (words.scores_words(found),), tables=_keyed(key, table), notes=notes)


def _named(kind: str, label: str) -> tuple[str, str]:
    """Key and title of the part about the artefact of this name; the key is fit for an id."""
    if not label:
        return kind, TITLES[kind]
    return f"{kind}-{label.encode().hex()}", f"{TITLES[kind]} ({label})"


def _keyed(key: str, *shown: Table) -> tuple[Table, ...]:
    return tuple(replace(table, key=f"{key}-{place}") for place, table in enumerate(shown))


def _picture(figure: Figure, key: str, title: str, caption: str) -> Picture:
    svg = inline_svg(figure, prefix=f"figure-{key}", title=title, description=caption)
    return Picture(svg, title, caption, figure.get_figwidth() > _WIDE_INCHES)


def _capped(table: Table, attribute: str) -> tuple[Table, tuple[str, ...]]:
    """The table, cut where a page would become unusable, and a note that says so."""
    if len(table.rows) <= _MOST_ROWS:
        return table, ()
    note = f"The table shows the first {_MOST_ROWS:,} of {len(table.rows):,} rows; npl.load(...).{attribute} holds all."
    return replace(table, rows=table.rows[:_MOST_ROWS]), (note,)
