"""What a part of the report is: words, figures, tables and notes about one artefact, and pieces for the neurons' pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from .tables import Table


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its title and a caption that says how to read it."""

    figure: Figure
    title: str
    caption: str


@dataclass(frozen=True)
class Block:
    """One piece of a neuron's page: a heading and what stands under it, as far as it is given.

    `text` is a sentence, `pairs` are (name, value) lines, `tokens` are (token, weight from -1 to 1) and shown as shaded
    chips, `neurons` are (site, layer, index, what it says), linked where that neuron has a page.
    """

    title: str
    text: str = ""
    pairs: Sequence[tuple[str, str]] = ()
    tokens: Sequence[tuple[str, float]] = ()
    neurons: Sequence[tuple[str, int, int, str]] = ()


Neuron = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """What the report says of one artefact.

    `words` stand in the summary and above the figures. `headline` is a short figure ("11 of 12") with what it counts and
    how sure that is, for the top of the page. `blocks` belong to the pages of neurons (site, layer, index), `pages` are the
    scores that give neurons a page (see neuron_parts).
    """

    words: tuple[str, ...] = ()
    headline: tuple[str, str] | None = None
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    blocks: Mapping[Neuron, Sequence[Block]] | None = None
    pages: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Kind:
    """How the report draws one kind of record.

    `home` is "module.function" in this room; the function takes one artefact of the kind and returns its Part. With
    `together` it takes the study and draws all records of the kind at once. `arguments` complete the command that makes
    the kind (`analysis.study.MADE_BY`). A study without an `expected` kind has a section that says so; the others
    are listed at the end of the page.
    """

    title: str
    home: str
    arguments: str = "{model} --data FILE.jsonl --out {study}"
    expected: bool = False
    together: bool = False


# In order of reading. A new kind of record joins with one line.
KINDS: dict[str, Kind] = {
    "set": Kind("Sets of neurons", "analysis_parts.sets", "{study} --top 1%", expected=True, together=True),
    "effects": Kind(
        "Effects of silencing", "ablation_parts.effects", "{model} --data FILE.jsonl --study {study} --controls 20",
        expected=True,
    ),
    "layer_sweep": Kind("Effects layer by layer", "effects_parts.curve", "{model} --data FILE.jsonl --study {study}"),
    "dose_response": Kind("Dose and response", "effects_parts.curve", "{model} --data FILE.jsonl --study {study}"),
    "evaluation": Kind(
        "Tasks of the evaluation harness", "effects_parts.evaluation", "{model} --tasks TASKS --off {study} --controls 5"
    ),
    "overlap": Kind("Overlap against chance", "analysis_parts.overlap", "{study}", expected=True),
    "ranks": Kind("Agreement of ranks", "similarity_parts.ranks", "{study}"),
    "tree": Kind("A tree of groups", "tree_parts.trees", "{study}", together=True),
    "mantel": Kind("Overlap and a distance known before", "tree_parts.mantel", "{study}"),
    "similarity": Kind("Similarity of parameters", "analysis_parts.similarity", "{study}", expected=True),
    "movement": Kind("What training moved", "similarity_parts.movement", "{study}"),
    "transfer": Kind("Similarity and transfer", "similarity_parts.transfer", "{study}"),
    "representations": Kind("Similarity of states", "state_parts.representations"),
    "redundancy": Kind("Redundant neurons", "state_parts.redundancy", "{study} --data FILE.jsonl"),
    "importance": Kind("Importance of layers and components", "trust_parts.importance"),
    "fidelity": Kind("Fidelity of methods", "trust_parts.fidelity"),
    "calibration": Kind("Calibration on planted neurons", "calibration_parts.calibration", "{model} --out {study}"),
    "stability": Kind("Stability of the selection", "trust_parts.stability"),
    "retention": Kind(
        "Tuning: learned and forgotten", "tuning_parts.retention",
        "{model} --data FILE.jsonl --study {study} --group GROUP --out DELTA --old FILE.jsonl", expected=True,
    ),
    "continual": Kind("A stream of tasks", "tuning_parts.continual"),
    "sweep": Kind(
        "What is tuned: share and overlap", "tuning_parts.sweep",
        "{model} --data FILE.jsonl --train GROUPS --test GROUPS --out {study}",
    ),
    "alignment": Kind("Alignment with a survey", "corpus_parts.alignment", ""),
    "difficulty": Kind("Difficulty of examples", "corpus_parts.difficulty", ""),
    "translations": Kind("Translation: learned and lost", "tuning_parts.translations", ""),
    "scores": Kind(
        "Neurons", "neuron_parts.neurons", "{model} --data FILE.jsonl --out {study}", expected=True, together=True
    ),
    "cards": Kind("Cards of neurons", "card_parts.cards", "{study} --group all"),
}  # fmt: skip


def part_of(kind: str, given: Any) -> Part:
    """The part that a kind's function makes of an artefact (or, where it draws all of them together, of a study)."""
    from importlib import import_module

    module, _, name = KINDS[kind].home.rpartition(".")
    return getattr(import_module(f".{module}", __package__), name)(given)
