"""The sections of the page: one for each artefact that the study holds, or the command that makes what it lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .parts import KINDS, Part, Picture, part_of
from .saving import inline_svg
from .style import FigureError
from .tables import MOST_ROWS, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..analysis.study import Study

_WIDE_INCHES = 18.0  # wider figures are scrolled instead of shrunk


@dataclass(frozen=True)
class Drawn:
    """A figure as it stands in the page."""

    svg: str
    title: str
    caption: str
    wide: bool


@dataclass(frozen=True, eq=False)
class Section:
    """A part as it stands in the page. `command` makes what the study lacks; then there is nothing else."""

    key: str
    title: str
    part: Part = field(default_factory=Part)
    pictures: tuple[Drawn, ...] = ()
    tables: tuple[Table, ...] = ()
    command: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """The part's notes, and one for every table that was cut."""
        cut = [table for table in self.part.tables if len(table) > MOST_ROWS]
        return self.part.notes + tuple(
            f"The table shows the first {MOST_ROWS:,} of {len(table):,} rows; the study holds all." for table in cut
        )


def sections(study: Study, only: Sequence[str] = ()) -> list[Section]:
    """Every section, in order of reading: one for each artefact, or one that says what makes an expected kind.

    With `only`, those kinds alone. Raises AtlasError, with the command that makes it, when the study lacks one of them.
    """
    found: list[Section] = []
    for kind in checked(study, only):
        if not study.has(kind):
            if KINDS[kind].expected:
                found.append(Section(kind, KINDS[kind].title, command=command(kind, study)))
        else:
            found += [section(kind, label, part) for label, part in parts(study, kind)]
    return found


def checked(study: Study, only: Sequence[str]) -> Sequence[str]:
    """The kinds to draw. Raises FigureError for an unknown one, AtlasError for one that the study lacks."""
    for kind in only:
        if kind not in KINDS:
            raise FigureError(f"unknown part {kind!r} of a report; parts are {', '.join(KINDS)}")
        if not study.has(kind):
            study.get(kind)  # raises, and says which command makes it
    return [kind for kind in KINDS if not only or kind in only]


def parts(study: Study, kind: str) -> Iterator[tuple[str, Part]]:
    """(label, part) of every record of a kind; the label is empty where the name says no more than the kind."""
    if KINDS[kind].together:
        yield "", part_of(kind, study)
        return
    names = study.names(kind)
    for name in names:
        yield ("" if name == kind or len(names) == 1 else name), part_of(kind, study.get(kind, name))


def section(kind: str, label: str, part: Part) -> Section:
    """A part as a section; its key is fit for an id."""
    key, title = kind, KINDS[kind].title if kind in KINDS else kind
    if label:
        key, title = f"{kind}-{label.encode().hex()}", f"{title} ({label})"
    drawn = tuple(_drawn(picture, f"{key}-{place}") for place, picture in enumerate(part.pictures))
    tables = tuple(replace(table, key=f"{key}-{place}") for place, table in enumerate(part.tables))
    return Section(key, title, part, drawn, tables)


def figures(study: Study, only: Sequence[str] = ()) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every figure of the study, for files. Raises what `sections` raises."""
    for kind in checked(study, only):
        for label, part in parts(study, kind) if study.has(kind) else ():
            for place, picture in enumerate(part.pictures):
                name = "-".join([kind, *([label] if label else []), *([str(place + 1)] if place else [])])
                yield "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name), picture.figure


def lacking(study: Study) -> list[tuple[str, str]]:
    """(title, command) of every kind that the study lacks and a section does not name."""
    found = [
        (one.title, command(kind, study))
        for kind, one in KINDS.items()
        if not one.expected and not study.has(kind)
    ]  # fmt: skip
    return [(title, text) for title, text in found if text]


def unknown(study: Study) -> list[str]:
    """Kinds of records that no section draws."""
    return sorted({kind for kind, _ in study.keys} - set(KINDS))


def command(kind: str, study: Study) -> str:
    """What makes a kind, with this study's model and path; empty where no command does."""
    from ..analysis.study import MADE_BY

    if kind not in MADE_BY:
        return ""
    model = shlex.quote(str(study.subject.get("name") or "MODEL"))
    arguments = KINDS[kind].arguments.format(model=model, study=shlex.quote(str(study.path)))
    return f"{MADE_BY[kind]} {arguments}".strip()


def _drawn(picture: Picture, key: str) -> Drawn:
    svg = inline_svg(picture.figure, prefix=f"figure-{key}", title=picture.title, description=picture.caption)
    return Drawn(svg, picture.title, picture.caption, picture.figure.get_figwidth() > _WIDE_INCHES)


def blocks(found: Sequence[Section]) -> dict[str, list[dict[str, Any]]]:
    """What the sections say of single neurons, by "site/layer/index", for the page's data."""
    said: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        for (site, layer, index), pieces in (one.part.blocks or {}).items():
            for piece in pieces:
                said.setdefault(f"{site}/{layer}/{index}", []).append({
                    "title": piece.title, "text": piece.text, "pairs": [list(pair) for pair in piece.pairs],
                    "tokens": [[token, round(float(weight), 3)] for token, weight in piece.tokens],
                    "neurons": [[f"{s}/{layer_}/{i}", text] for s, layer_, i, text in piece.neurons],
                })  # fmt: skip
    return said
