"""Distances between groups, read from a file of the user's: coordinates, or a number for every pair."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..neurons.errors import SetError

Kind = Literal["coordinates", "distance", "similarity"]
_FORM = "expected a CSV with a header, or JSON of {a: {b: number}}"
Row = tuple[str, list[str]]


def load_distances(
    path: str | Path,
    groups: Sequence[str],
    *,
    kind: Kind | None = None,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    standardise: bool = False,
) -> Float[Tensor, "group group"]:
    """Distances between groups from a file of the user's, in the order of `groups`.

    A table with a header (comma, semicolon or tab; the first column holds names) of `coordinates`, of which distances
    are Euclidean over the numeric `columns` (all by default; with `standardise` each is divided by its standard
    deviation over these groups), or of the `distance` or `similarity` of every pair, with the same names in the header.
    JSON of the form {a: {b: number}}, such as CultureSPA's country similarity, is read as a table of pairs. `kind` may
    be left out where the file says it: a header without the names holds coordinates, and a diagonal of zeros distances.
    A similarity s becomes the largest s less s. `names` maps a group to its name in the file; capitals do not count.

    Raises SetError in one line when the file cannot be read, when names are missing or stand there twice, when a cell is no
    number, or when nothing says of which kind the table is.
    """
    path = Path(path)
    if kind is not None and kind not in get_args(Kind):
        raise SetError(f"unknown kind {kind!r} of table; expected {', '.join(get_args(Kind))}")
    header, rows = _read(path)
    titles = [name for name, _ in rows]
    wanted = [(names or {}).get(group, group) for group in groups]
    at = [_only(path, name, titles, of="row") for name in wanted]
    missing = [name for name, place in zip(wanted, at, strict=True) if place is None]
    if missing:
        raise SetError(
            f"{path} has no row for {', '.join(missing)}; it has {', '.join(titles)} "
            "(add the rows, or say which row is meant: --name GROUP=NAME, names={group: name})"
        )
    lines = [rows[place] for place in at if place is not None]
    chosen = [name for name, _ in lines]
    across = [_only(path, name, header, of="column") for name in chosen]
    places = [place for place in across if place is not None]
    square = len(places) == len(chosen)
    if kind == "coordinates" or (kind is None and not square):
        return _coordinates(path, header, [cells for _, cells in lines], chosen, columns, standardise)
    if not square:
        absent = [name for name, place in zip(chosen, across, strict=True) if place is None]
        raise SetError(f"{path} has no column for {', '.join(absent)}; a table of pairs needs every name in its header")
    cells = [[row[place] for place in places] for _, row in lines]
    table = torch.tensor([[_number(path, a, b, cell, a == b) for b, cell in zip(chosen, row, strict=True)]
                          for a, row in zip(chosen, cells, strict=True)], dtype=torch.float64)  # fmt: skip
    diagonal = table.diagonal()
    if kind is None and not bool((diagonal == 0).all()):
        raise SetError(f"{path} does not say whether it holds distances or similarities; give --kind (kind=)")
    off = ~torch.eye(len(chosen), dtype=torch.bool)
    if not torch.allclose(table[off], table.T[off]):
        raise SetError(f"{path} is not symmetric; expected one number for each pair of groups")
    if kind == "similarity":
        table = table[off].max() - table if len(chosen) > 1 else table
    return table.masked_fill(~off, 0.0)


def load_performance(path: str | Path, groups: Sequence[str]) -> Float[Tensor, "learned asked"]:
    """What was measured of every task after learning every task, from a file of the user's, in the order of `groups`.

    A table with a header (or JSON of {learned: {asked: number}}): a row for the task learned, a column for the task asked,
    such as accuracies of the model trained on the row's task. The cell of a task with itself may be left out.

    Raises SetError in one line when the file cannot be read, when names are missing or stand there twice, or when a cell is
    no number.
    """
    path = Path(path)
    header, rows = _read(path)
    lines, places = [], []
    for group in groups:
        row, column = _only(path, group, [name for name, _ in rows], of="row"), _only(path, group, header, of="column")
        if row is None or column is None:
            raise SetError(
                f"{path} has no {'row' if row is None else 'column'} for {group}; expected both for every task"
            )
        lines.append(rows[row][1])
        places.append(column)
    cells = [
        [_number(path, a, b, row[place], a == b) for b, place in zip(groups, places, strict=True)]
        for a, row in zip(groups, lines, strict=True)
    ]
    return torch.tensor(cells, dtype=torch.float64)


def _coordinates(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    columns: Sequence[str] | None,
    standardise: bool,
) -> Float[Tensor, "group group"]:
    unknown = [column for column in columns or () if column not in header]
    if unknown:
        raise SetError(f"{path} has no column {unknown[0]!r}; it has {', '.join(header)}")
    chosen = list(columns or header)
    at = [header.index(column) for column in chosen]
    values = [[_number(path, name, column, row[place], False) for column, place in zip(chosen, at, strict=True)]
              for name, row in zip(names, rows, strict=True)]  # fmt: skip
    points = torch.tensor(values, dtype=torch.float64)
    if standardise:
        points = points / points.std(dim=0).clamp(min=1e-12)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def _only(path: Path, name: str, found: Sequence[str], *, of: str) -> int | None:
    """Where a name stands, capitals aside; None where it does not. Raises SetError where it stands twice."""
    places = [place for place, other in enumerate(found) if other.casefold() == name.casefold()]
    if len(places) > 1:
        listed = ", ".join(repr(found[place]) for place in places)
        raise SetError(
            f"{path} has {len(places)} {of}s for {name} ({listed}; capitals do not count); leave one of them"
        )
    return places[0] if places else None


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Names of the columns behind the first, and every row's name and cells as text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _read_json(path, text)
        lines = text.splitlines()
        mark = max(",;\t", key=lambda m: lines[0].count(m)) if lines else ","
        read = [row for row in csv.reader(lines, delimiter=mark) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeError, json.JSONDecodeError, csv.Error) as error:
        raise SetError(f"cannot read {path}: {error}; {_FORM}") from error
    if len(read) < 2 or len(read[0]) < 2:
        raise SetError(
            f"{path} holds no table; expected a header and one row for each group, names in the first column"
        )
    header = [cell.strip() for cell in read[0][1:]]
    for place, row in enumerate(read[1:], start=2):
        if len(row) != len(read[0]):
            raise SetError(f"{path}, row {place}: expected {len(read[0])} cells as in the header, found {len(row)}")
    return header, [(row[0].strip(), [cell.strip() for cell in row[1:]]) for row in read[1:]]


def _read_json(path: Path, text: str) -> tuple[list[str], list[Row]]:
    """The same of {a: {b: number}}."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SetError(f"{path} has {twice[0]!r} twice in one object; leave one of them")
        return dict(pairs)

    table = json.loads(text, object_pairs_hook=once)
    if not isinstance(table, dict):
        raise SetError(f"{path} holds {_called(table)}; expected an object of groups, {{a: {{b: number}}}}")
    for name, row in table.items():
        if not isinstance(row, dict):
            raise SetError(f"{path} holds {_called(row)} under {name!r}; expected its pairs, {{a: {{b: number}}}}")
    return list(table), [(name, [str(row.get(other, "")) for other in table]) for name, row in table.items()]


def _called(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, list):
        return "a list"
    return f"a text, {value!r}" if isinstance(value, str) else f"the value {json.dumps(value)} alone"


def _number(path: Path, row: str, column: str, cell: str, may_lack: bool) -> float:
    if may_lack and not cell:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise SetError(f"{path}, row {row!r}, column {column!r}: expected a number, found {cell!r}")
    return value
