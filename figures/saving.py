"""Figures to files and into pages: atomically, and with ids that do not clash."""

from __future__ import annotations

import io
import os
import re
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from matplotlib.figure import Figure

from .style import GRID, INK, PAPER, FigureError, themed

FORMATS = (".svg", ".png", ".pdf")
_PAGE_COLOURS = {INK: "var(--ink)", GRID: "var(--grid)", PAPER: "var(--paper)"}


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as SVG, PNG (200 dots per inch) or PDF, as the suffix says; an existing file is replaced whole.

    Raises FigureError for another suffix, for a folder that is not there, and when writing fails.
    """
    path = check_figure_path(path)
    suffix = path.suffix.lower()
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}[suffix]
    buffer = io.BytesIO()
    with themed():
        figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=metadata)
    return write_whole(path, buffer.getvalue())


def check_figure_path(path: str | Path) -> Path:
    """The path, once it is known that a figure can go there. Raises FigureError for another suffix or a missing folder."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise FigureError(f"cannot write {path}: unknown suffix {path.suffix!r}; known are {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FigureError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    return path


def inline_svg(figure: Figure, *, prefix: str, title: str, description: str) -> str:
    """A figure as an `<svg>` element for a page: text stays text, ids begin with `prefix`, colours follow the page."""
    import matplotlib

    buffer = io.StringIO()
    with themed(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) == "metadata":
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): _own(value, name, prefix) for name, value in element.attrib.items()}
        if element.tag == "style":
            element.text = f"#{prefix} {(element.text or '').strip()}"
    width = f"{float(root.attrib['width'].removesuffix('pt')) * 96 / 72:.0f}px"
    root.attrib = {
        "id": prefix, "viewBox": root.attrib["viewBox"], "role": "img",
        "style": f"width: {width}; min-width: min({width}, 36rem)",
        "aria-labelledby": f"{prefix}-title {prefix}-desc",
    }  # fmt: skip
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, {"id": f"{prefix}-{tag}"})
        element.text = text
        root.insert(place, element)
    return ET.tostring(root, encoding="unicode")


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file so that at any moment either the old one or the whole new one stands.

    Raises FigureError when the folder is missing or writing fails; what stood there is then untouched.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FigureError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise FigureError(f"cannot write {path}: it is a folder; give the name of a file in it")
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise FigureError(
            f"could not write {path}: {error}; what stood there before is untouched. Is the disk full or read-only?"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def _local(name: str) -> str:
    """A name without its namespace: inside HTML an svg element needs none, and `href` has replaced `xlink:href`."""
    return name.rpartition("}")[2]


def _own(value: str, name: str, prefix: str) -> str:
    name = _local(name)
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return re.sub(r"^#", f"#{prefix}-", value)
    value = value.replace("url(#", f"url(#{prefix}-")
    if name in ("style", "fill", "stroke"):
        for colour, variable in _PAGE_COLOURS.items():
            value = value.replace(colour, variable)
    return value
