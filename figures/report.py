"""The report: one self-contained page about a study, from its atlas alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .parts import KINDS
from .saving import FORMATS, save_figure, write_whole
from .sections import Section, blocks, figures, lacking, sections, unknown
from .style import FigureError, letters_left_to_the_reader

if TYPE_CHECKING:
    from ..analysis.study import Study

_SAID = ("site", "method", "objective", "kind", "metric")
Facts = tuple[tuple[str, str], ...]


def report(study: Study | str | Path, out: str | Path = "report.html", *, only: Sequence[str] = ()) -> Path:
    """Write the report of a study (or of the atlas at a path) and return where it is.

    Everything comes from the atlas: no model is loaded, and the page loads nothing. Scores are read a group at a time. Parts
    that the atlas does not hold are named together with the command that makes them; with `only`, the page has those kinds
    alone. An existing page is replaced whole.

    Raises AtlasError when the atlas cannot be read or lacks a kind of `only`, FigureError when the page cannot be written.
    """
    return write_whole(out, page(_opened(study), only=only).encode("utf-8"))


def save_figures(
    study: Study | str | Path,
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    formats: Sequence[str] = (".svg", ".png"),
) -> list[Path]:
    """Write every figure of a study (or those of the kinds `only`) into a folder, and return the files.

    Raises AtlasError, with the command that makes it, when the study lacks a kind of `only`; FigureError for an unknown kind
    or format, when there is nothing to draw, when the folder is a file, or when writing fails.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FigureError(f"{folder} is a file; expected the name of a folder for the figures, there or new")
    for suffix in formats:
        if suffix not in FORMATS:
            raise FigureError(f"unknown format {suffix!r}; formats are {', '.join(FORMATS)}")
    written = []
    for name, figure in figures(_opened(study), only):
        folder.mkdir(parents=True, exist_ok=True)
        written += [save_figure(figure, folder / f"{name}{suffix}") for suffix in formats]
    if not written:
        if only:
            raise FigureError(
                f"{', '.join(only)} of this study have no figure; the report page has what they say in words"
            )
        raise FigureError("the study holds nothing that has a figure; find neurons first: neuropolis locate, select")
    return written


def page(study: Study, *, only: Sequence[str] = ()) -> str:
    """The page as HTML text."""
    with letters_left_to_the_reader():
        found = sections(study, only)
    name = str(study.subject.get("name") or "an unnamed subject")
    return rendered(
        found, title=f"Neurons of {name}", about=[("subject", name), ("fingerprint", _fingerprint(study)),
        ("study", Path(study.path).name)], provenance=provenance(study),
        absent=[] if only else lacking(study), undrawn=[] if only else unknown(study),
    )  # fmt: skip


def rendered(
    found: Sequence[Section],
    *,
    title: str,
    about: Sequence[tuple[str, str]],
    provenance: Sequence[tuple[str, Facts]] = (),
    absent: Sequence[tuple[str, str]] = (),
    undrawn: Sequence[str] = (),
) -> str:
    """The page of these sections. The script may run because the page names its hash; no other can."""
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0]), autoescape=True, undefined=StrictUndefined
    )
    tables = {f"table-{table.key}": table.packed() for one in found for table in one.tables}
    neurons = {"scores": [one for part in found for one in part.part.pages], "blocks": blocks(found)}
    script = _source(environment, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # the scores' section stands last, but what was scored is said first
    order = sorted(found, key=lambda one: not one.key.startswith("scores"))
    return environment.get_template("report.html").render(
        title=title, about=about, sections=found, script=script, script_hash=digest,
        style=_source(environment, "report.css"), provenance=provenance, absent=absent, undrawn=undrawn,
        summary=[one for one in order if one.part.words], headlines=[one for one in order if one.part.headline],
        data=_json({"tables": tables, "neurons": neurons}),
    )  # fmt: skip


def provenance(study: Study) -> list[tuple[str, Facts]]:
    """What made each artefact: a title and (name, value) pairs."""
    found: list[tuple[str, Facts]] = [
        ("Subject", _facts(study.subject)),
        ("Versions that wrote the study", _facts(study.versions)),
    ]
    for kind in (kind for kind in KINDS if kind != "set"):
        for name in study.names(kind):
            with study.lazily(kind, name) as record:
                said = {key: record.meta[key] for key in _SAID if key in record.meta}
                title = KINDS[kind].title if name == kind else f"{KINDS[kind].title} ({name})"
                found.append((title, _facts(said | dict(record.meta.get("origin") or {}))))
    for origin, names in _by_origin(study).items():
        found.append((f"Sets: {', '.join(names)}", _facts(json.loads(origin))))
    return found


def _opened(study: Study | str | Path) -> Study:
    if isinstance(study, str | Path):
        from ..analysis.study import load

        return load(study)
    return study


def _fingerprint(study: Study) -> str:
    return str(study.subject.get("fingerprint") or "unknown")


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _json(value: Any) -> str:
    """JSON that is safe inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
        items = list(value.items())
        shown = ", ".join(f"{key} {_shown(inner)}" for key, inner in items[:24]) or "none"
        return shown if len(items) <= 24 else f"{len(items):,}: {shown}, ..."
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(_shown(inner) for inner in value[:4])
        return shown if len(value) <= 4 else f"{len(value):,}: {shown}, ..."
    return f"{value:g}" if isinstance(value, float) else str(value)
