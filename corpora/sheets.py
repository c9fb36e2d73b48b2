"""Rows of an Excel workbook's first sheet, with nothing but the standard library: benchmarks use it for word lists."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

from .examples import CorpusError
from .files import Row

_NAMESPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LARGEST = 64 * 2**20  # bytes unpacked of one part; a benchmark's table is far below


def read_sheet(path: Path, *, columns: tuple[str, ...]) -> list[tuple[str, Row]]:
    """The rows below the header of the first sheet of an .xlsx file, each with where it stands; empty cells are "".

    Rows without any text are skipped. Raises CorpusError for what is no workbook and for a column that is missing.
    """
    try:
        with ZipFile(path) as book:
            strings = [_text(item) for item in _part(book, "xl/sharedStrings.xml", f"{_NAMESPACE}si")]
            lines = [_cells(row, strings) for row in _part(book, "xl/worksheets/sheet1.xml", f"{_NAMESPACE}row")]
    except (OSError, BadZipFile, ElementTree.ParseError, KeyError, ValueError, IndexError) as error:
        raise CorpusError(f"{path}: cannot be read as an .xlsx workbook ({error})") from error
    header = {column: name.strip() for column, name in lines[0][1].items()} if lines else {}
    missing = [name for name in columns if name not in header.values()]
    if missing:
        raise CorpusError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(header.values()) or 'none'}")
    rows = [
        (f"{path}, row {number}", {name: cells.get(column, "").strip() for column, name in header.items()})
        for number, cells in lines[1:]
    ]
    return [(where, row) for where, row in rows if any(row.values())]


def _part(book: ZipFile, name: str, tag: str) -> list[ElementTree.Element]:
    if name not in book.namelist():
        return []
    if book.getinfo(name).file_size > _LARGEST:
        raise ValueError(f"{name} is larger than {_LARGEST} bytes")
    return list(ElementTree.fromstring(book.read(name)).iter(tag))


def _cells(row: ElementTree.Element, strings: list[str]) -> tuple[int, dict[str, str]]:
    """The row's number and its texts by the letters of their column."""
    cells = {}
    for cell in row.iter(f"{_NAMESPACE}c"):
        value, column = cell.find(f"{_NAMESPACE}v"), re.sub(r"\d", "", cell.get("r", ""))
        if cell.get("t") == "s" and value is not None:
            cells[column] = strings[int(value.text or 0)]
        elif cell.get("t") == "inlineStr":
            cells[column] = _text(cell)
        elif value is not None:
            cells[column] = value.text or ""
    return int(row.get("r", 0)), cells


def _text(element: ElementTree.Element) -> str:
    """The text of its runs, without the hints on pronunciation that East Asian workbooks hold."""
    spoken = {text for hint in element.iter(f"{_NAMESPACE}rPh") for text in hint.iter()}
    return "".join(text.text or "" for text in element.iter(f"{_NAMESPACE}t") if text not in spoken)
