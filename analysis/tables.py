"""Tables of groups: distances read from a file, and the correlation of two tables whose cells share their groups."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.errors import SetError

Kind = Literal["coordinates", "distance", "similarity"]
Correlation = Literal["pearson", "spearman"]
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Agreement:
    """Correlation of two tables [group, group] over their cells off the diagonal.

    `low` and `high` are a 95 % percentile bootstrap over groups (cells of one group are not independent); `p` is
    two-sided from permutations of one table's groups, and the central 95 % of these are `null_low` and `null_high`.
    """

    r: float
    low: float
    high: float
    p: float
    null_low: float
    null_high: float


def correlate(
    x: Float[Tensor, "group group"],
    y: Float[Tensor, "group group"],
    *,
    method: Correlation = "pearson",
    draws: int = 9999,
    bootstraps: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Correlation of two tables with the Mantel test (Mantel 1967; for tables that are not symmetric, QAP).

    Under the null the groups of one table might as well be named otherwise: all its rows and columns are permuted
    together, over every permutation where these are at most `draws` + 1, else over `draws` random ones with the
    observed one counted in. A bootstrap draw takes as many groups with replacement and leaves out cells of a group with
    itself; with few groups its interval is too short. All is NaN where a cell is, or where one table is constant.

    Raises SetError for fewer than three groups.
    """
    if method not in get_args(Correlation):
        raise SetError(f"unknown correlation {method!r}; expected {', '.join(get_args(Correlation))}")
    num = len(x)
    if num < 3 or x.shape != y.shape or x.shape != (num, num):
        raise SetError(
            f"a correlation of tables needs the same three groups or more in both, got {list(x.shape)} and {list(y.shape)}"
        )
    off = ~np.eye(num, dtype=bool)
    first, second = (np.where(off, t.detach().cpu().double().numpy(), 0.0) for t in (x, y))
    observed = float(_correlations(first[off][None], second[off][None], method)[0])
    if np.isnan(observed):
        return Agreement(*[float("nan")] * 6)
    rng = np.random.default_rng(seed)
    exact = factorial(num) <= draws + 1
    orders = (
        np.array(list(permutations(range(num)))) if exact else rng.permuted(np.tile(np.arange(num), (draws, 1)), axis=1)
    )
    # a permutation moves ranks along with what they rank
    a, b = (_ranked(t, off) if method == "spearman" else t for t in (first, second))
    null = _over(orders, lambda o: _correlations(a[off][None], b[o[:, :, None], o[:, None]][:, off], "pearson"))
    hits = (np.abs(null) >= abs(observed) - 1e-12).sum()
    p = hits / len(null) if exact else (1 + hits) / (1 + len(null))
    low, high = _bootstrap(first, second, method, rng.integers(num, size=(bootstraps, num)))
    ends = np.quantile(null, [0.025, 0.975])
    return Agreement(observed, low, high, float(p), float(ends[0]), float(ends[1]))


def _ranked(table: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Ranks of the cells off the diagonal."""
    from scipy.stats import rankdata

    found = np.zeros_like(table)
    found[off] = rankdata(table[off])
    return found


def _bootstrap(x: np.ndarray, y: np.ndarray, method: Correlation, drawn: np.ndarray) -> tuple[float, float]:
    """Percentiles over resampled groups; draws in which nothing varies say nothing."""
    found = []
    for row in drawn:
        pairs = row[:, None] != row[None]
        a, b = (t[row[:, None], row[None]][pairs][None] for t in (x, y))
        found.append(_correlations(a, b, method)[0] if a.size > 2 else np.nan)
    known = np.array(found)[~np.isnan(found)]
    if len(known) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _correlations(x: np.ndarray, y: np.ndarray, method: Correlation) -> np.ndarray:
    """Row by row; NaN where a row is constant."""
    if method == "spearman":
        from scipy.stats import rankdata

        x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    flat = scale <= 1e-12 * max(1.0, float(np.nanmax(scale, initial=0.0)))
    return np.where(flat, np.nan, (x * y).sum(axis=1) / np.where(flat, 1.0, scale))


def _over(orders: Int[np.ndarray, "draw group"], value: Any) -> np.ndarray:
    size = max(1, _BLOCK // orders.shape[1] ** 2)
    return np.concatenate([value(orders[start : start + size]) for start in range(0, len(orders), size)])


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

    Raises SetError in one line when the file cannot be read, when names are missing, when a cell is no number, or when
    nothing says of which kind the table is.
    """
    path = Path(path)
    if kind is not None and kind not in get_args(Kind):
        raise SetError(f"unknown kind {kind!r} of table; expected {', '.join(get_args(Kind))}")
    header, rows = _read(path)
    known = {name.casefold(): name for name in rows}
    wanted = [(names or {}).get(group, group) for group in groups]
    missing = [name for name in wanted if name.casefold() not in known]
    if missing:
        raise SetError(
            f"{path} has no row for {', '.join(missing)}; it has {', '.join(rows)} "
            "(add the rows, or say which row is meant: --name GROUP=NAME, names={group: name})"
        )
    chosen = [known[name.casefold()] for name in wanted]
    places = {name.casefold(): place for place, name in enumerate(header)}
    square = all(name.casefold() in places for name in chosen)
    if kind == "coordinates" or (kind is None and not square):
        return _coordinates(path, header, [rows[name] for name in chosen], chosen, columns, standardise)
    if not square:
        absent = [name for name in chosen if name.casefold() not in places]
        raise SetError(f"{path} has no column for {', '.join(absent)}; a table of pairs needs every name in its header")
    cells = [[rows[a][places[b.casefold()]] for b in chosen] for a in chosen]
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


def _read(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the columns behind the first, and the cells of every row as text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            table = json.loads(text)
            header = list(table)
            return header, {a: [str(table[a].get(b, "")) for b in header] for a in header}
        lines = text.splitlines()
        mark = max(",;\t", key=lambda m: lines[0].count(m)) if lines else ","
        read = [row for row in csv.reader(lines, delimiter=mark) if any(cell.strip() for cell in row)]
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise SetError(
            f"cannot read {path}: {error}; expected a CSV with a header, or JSON of {{a: {{b: number}}}}"
        ) from error
    if len(read) < 2 or len(read[0]) < 2:
        raise SetError(
            f"{path} holds no table; expected a header and one row for each group, names in the first column"
        )
    header = [cell.strip() for cell in read[0][1:]]
    for place, row in enumerate(read[1:], start=2):
        if len(row) != len(read[0]):
            raise SetError(f"{path}, row {place}: expected {len(read[0])} cells as in the header, found {len(row)}")
    return header, {row[0].strip(): [cell.strip() for cell in row[1:]] for row in read[1:]}


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
