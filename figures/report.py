"""The report: one self-contained page about a study, from its atlas alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .saving import write_whole
from .sections import TITLES, labelled, sections
from .style import letters_left_to_the_reader

if TYPE_CHECKING:
    from ..analysis.study import Study

_SAID = ("site", "method", "objective", "kind", "metric")
Facts = tuple[tuple[str, str], ...]


def report(study: Study | str | Path, out: str | Path = "report.html") -> Path:
    """Write the report of a study (or of the atlas at a path) and return where it is.

    Everything comes from the atlas: no model is loaded, and the page loads nothing. Parts that the atlas does not
    hold are named together with the command that makes them. An existing page is replaced whole.

    Raises AtlasError when the atlas cannot be read, FigureError when the page cannot be written.
    """
    if isinstance(study, str | Path):
        from ..analysis.study import load

        study = load(study)
    return write_whole(out, page(study).encode("utf-8"))


def page(study: Study) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0]), autoescape=True, undefined=StrictUndefined
    )
    with letters_left_to_the_reader():
        parts = sections(study)
    return environment.get_template("report.html").render(
        subject_name=study.subject.get("name") or "an unnamed subject",
        fingerprint=study.subject.get("fingerprint") or "unknown",
        study_name=Path(study.path).name,
        sections=parts,
        # the scores' table stands last, but what was scored is said first
        summary=[
            said for part in sorted(parts, key=lambda part: not part.key.startswith("scores")) for said in part.words
        ],
        lacking=[part.title for part in parts if part.command],
        provenance=provenance(study),
    )


def provenance(study: Study) -> list[tuple[str, Facts]]:
    """What made each artefact: a title and (name, value) pairs."""
    found: list[tuple[str, Facts]] = [
        ("Subject", _facts(study.subject)),
        ("Versions that wrote the study", _facts(study.versions)),
    ]
    for kind in TITLES:
        for label, artefact in labelled(study, kind) if kind != "set" and study.has(kind) else ():
            said = {key: getattr(artefact, key) for key in _SAID if hasattr(artefact, key)}
            title = f"{TITLES[kind]} ({label})" if label else TITLES[kind]
            found.append((title, _facts(said | dict(artefact.origin))))
    for origin, names in _by_origin(study).items():
        found.append((f"Sets: {', '.join(names)}", _facts(json.loads(origin))))
    return found


def _by_origin(study: Study) -> dict[str, list[str]]:
    """Names of the sets that were made in one way, apart from their group."""
    grouped: dict[str, list[str]] = {}
    for name, chosen in (study.sets if study.has("set") else {}).items():
        origin = {"site": chosen.site, **{key: value for key, value in chosen.origin.items() if key != "group"}}
        grouped.setdefault(json.dumps(origin, sort_keys=True, default=str, ensure_ascii=False), []).append(name)
    return grouped


def _facts(values: Mapping[str, Any]) -> Facts:
    return tuple((str(name).replace("_", " "), _shown(value)) for name, value in values.items())


def _shown(value: Any) -> str:
    """A value as short text; long lists are counted."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(_shown(inner) for inner in value[:4])
        return shown if len(value) <= 4 else f"{len(value):,}: {shown}, ..."
    return f"{value:g}" if isinstance(value, float) else str(value)
