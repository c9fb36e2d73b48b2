"""The parts of the report: for each kind of artefact its words, its figure, its tables, or the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from . import plots, tables, words
from .saving import inline_svg
from .tables import Table

if TYPE_CHECKING:
    from ..analysis.study import Study

_MOST_ROWS = 2500  # of one table; a browser sorts as many without a pause
_WIDE_INCHES = 16.0


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page."""

    svg: str
    title: str
    caption: str
    wide: bool


@dataclass(frozen=True)
class Section:
    """A part of the page. `command` makes what the study lacks; then there is nothing else."""

    key: str
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""


def sections(study: Study) -> list[Section]:
    """Every part of the page, in order of reading."""
    makers = {
        "set": sets, "effects": effects, "overlap": overlap, "similarity": similarity, "retention": retention, "scores": scores,
    }  # fmt: skip
    return [maker(study) if study.has(kind) else missing(kind, study) for kind, maker in makers.items()]


TITLES = {
    "scores": "Neurons with the highest scores", "set": "Sets of neurons", "effects": "Effects of silencing",
    "overlap": "Overlap against chance", "similarity": "Similarity of parameters", "retention": "Tuning: learned and forgotten",
}  # fmt: skip
_COMMANDS = {
    "scores": "neuropolis locate {model} --data FILE.jsonl --out {study}",
    "set": "neuropolis select {study} --top 1%",
    "effects": "neuropolis ablate {model} --data FILE.jsonl --study {study} --controls 20",
    "overlap": "neuropolis compare {study}",
    "similarity": "neuropolis compare {study}",
    "retention": "neuropolis tune {model} --data FILE.jsonl --study {study} --group GROUP --out FOLDER",
}


def missing(kind: str, study: Study) -> Section:
    """The part that says what makes it."""
    model = shlex.quote(str(study.subject.get("name") or "MODEL"))
    return Section(kind, TITLES[kind], command=_COMMANDS[kind].format(model=model, study=shlex.quote(str(study.path))))


def scores(study: Study) -> Section:
    """The top neurons of each group."""
    sets = study.sets if study.has("set") else {}
    notes = (
        "Scores of different groups have different scales; compare ranks, or sets. A high score says that the first-order "
        "estimate of silencing the neuron is large, not that silencing it alone would change an answer.",
    )
    table = tables.top_neurons_table(study.scores, sets)
    return Section("scores", TITLES["scores"], (words.scores_words(study.scores),), tables=(table,), notes=notes)


def sets(study: Study) -> Section:
    """The sets by layer."""
    picture = _picture(
        plots.neurons_by_layer(study.sets), "set", "Where the neurons of each set lie, by layer",
        "Each cell is the share of a set's neurons that lie in a layer, in per cent; in brackets the neurons of the set.",
    )  # fmt: skip
    return Section("set", TITLES["set"], (words.sets_words(study.sets),), (picture,), (tables.sets_table(study.sets),))


def effects(study: Study) -> Section:
    """Effects of silencing every set."""
    found = study.effects
    caption = (
        "Change of accuracy in percentage points when a set is silenced, with its 95 % interval (bootstrap over items). "
        "* marks changes that are worse than those by the matched controls (one-sided sign-flip test over items, p < 0.05 "
        "after Benjamini-Hochberg over all cells). Beside: the change on the set's own group, the mean over the other groups, and the mean "
        "change by controls. Many groups leave room for less: the table below has every number."
    )
    picture = _picture(plots.effect_matrix(found), "effects", "Change of accuracy when a set is silenced", caption)
    cells, notes = _capped(tables.effect_cells_table(found), "effects")
    notes += (
        "The tests generalise over items, given these controls and this selection. The smallest detectable drop is a guide to "
        "what this many items could show: a set below it that shows nothing is no proof of absence.",
    )
    own = (tables.effects_table(found),) if any(place is not None for place in found.own_group) else ()
    return Section("effects", TITLES["effects"], words.effects_words(found), (picture,), (*own, cells), notes)


def overlap(study: Study) -> Section:
    """Overlap of every pair against chance."""
    found = study.overlap
    caption = (
        "Colour: log2 of the Jaccard index over its mean for two random sets of the same sizes. In the cells the Jaccard index "
        "and how many times chance it is; * marks corrected p < 0.05; on the diagonal the neurons of the set. Many groups leave "
        "room for less: the table below has every number."
    )
    picture = _picture(plots.overlap_matrix(found), "overlap", "Overlap of sets against chance", caption)
    table, notes = _capped(tables.overlap_table(found), "overlap")
    notes += (
        "Chance here means sets drawn at random from the whole site. Sets that prefer the same layers overlap more than that "
        "for this reason alone; the study's overlap holds both, layer by layer.",
    )
    return Section("overlap", TITLES["overlap"], (words.overlap_words(found),), (picture,), (table,), notes)


def similarity(study: Study) -> Section:
    """Parameter similarity by layer."""
    if len(study.similarity.groups) < 2:
        return Section("similarity", TITLES["similarity"], ("There is one set only, and nothing to compare it with.",))
    picture = _picture(
        plots.similarity_by_layer(study.similarity), "similarity", "Similarity of the parameters of two sets, by layer",
        "Lines: mean over pairs of sets of the cosine of their mean parameter vectors; bands: the middle 90 % of the pairs. "
        "Grey: random sets with the same counts by layer, mean and mean 95 % interval. Shared neurons raise a cosine by themselves.",
    )  # fmt: skip
    return Section("similarity", TITLES["similarity"], (words.similarity_words(study.similarity),), (picture,))


def retention(study: Study) -> Section:
    """What tuning learned and forgot."""
    picture = _picture(
        plots.forgetting(study.retention), "retention", "Accuracy before and after tuning, by method",
        "Dashed: before tuning. Large dots with 95 % intervals: after; the interval of a mean over groups combines theirs as "
        "independent. Small dots: the trained groups one by one.",
    )  # fmt: skip
    table, notes = _capped(tables.retention_table(study.retention), "retention")
    said = tuple(words.retention_words(study.retention))
    return Section("retention", TITLES["retention"], said, (picture,), (table,), notes)


def _picture(figure: Figure, key: str, title: str, caption: str) -> Picture:
    svg = inline_svg(figure, prefix=f"figure-{key}", title=title, description=caption)
    return Picture(svg, title, caption, figure.get_figwidth() > _WIDE_INCHES)


def _capped(table: Table, attribute: str) -> tuple[Table, tuple[str, ...]]:
    """The table, cut where a page would become unusable, and a note that says so."""
    if len(table.rows) <= _MOST_ROWS:
        return table, ()
    note = (
        f"The table shows the first {_MOST_ROWS:,} of {len(table.rows):,} rows; npl.load(...).{attribute} in Python holds all."
    )
    return Table(table.key, table.caption, table.columns, table.rows[:_MOST_ROWS]), (note,)
