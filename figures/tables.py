"""Tables of the report: columns of words or numbers, how they are shown, and how they travel to the page.

The first rows stand in the page as text; all of them travel as packed columns, which the page sorts, filters and shows in
pieces. Both write a number by the same form, and numbers are rounded before they travel, so that both show the same.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

MISSING = "\u2013"
MOST_ROWS = 20_000  # of one table; a browser sorts as many without a pause
FIRST_ROWS = 25  # that stand in the page as text
Form = Literal["text", "neuron", "set", ",", ".1f", ".2f", ".3f", ".4f", "+.1f", "+.3f", ".3g", "p"]
_WORDS = ("text", "neuron", "set")


@dataclass(frozen=True, eq=False)
class Column:
    """One column: words (`text`; `neuron` and `set` lead to what they name) or numbers, written by `form`.

    With `high`, every cell is a range from `values` to `high`, sorted by its lower end. A number that is not finite is a
    dash and stands last. `filtered` offers the column's words as a choice above the table.
    """

    name: str
    form: Form
    values: Any
    high: Any = None
    filtered: bool = False

    @property
    def is_number(self) -> bool:
        return self.form not in _WORDS

    def shown(self, row: int) -> str:
        """A cell as text."""
        if self.form == "neuron":
            _, layer, index = str(self.values[row]).rsplit("/", 2)
            return f"layer {layer}, neuron {index}"
        if not self.is_number:
            return str(self.values[row])
        low = written(float(self.values[row]), self.form)
        if self.high is None or low == MISSING:
            return low
        return f"{low} to {written(float(self.high[row]), self.form)}"

    def packed(self) -> dict[str, Any]:
        """The column for the page: JSON, with arrays as base64."""
        head = {"name": self.name, "form": self.form, "filtered": self.filtered}
        if not self.is_number:
            words = {word: place for place, word in enumerate(dict.fromkeys(map(str, self.values)))}
            return head | {"words": list(words), "values": packed(np.array([words[str(v)] for v in self.values]))}
        ends = [
            None if end is None else _packed(_rounded(end, self.form), self.form) for end in (self.values, self.high)
        ]
        return head | {"values": ends[0], "high": ends[1]}


@dataclass(frozen=True, eq=False)
class Table:
    """A table with its caption; the first column heads its rows."""

    key: str
    caption: str
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.columns[0].values) if self.columns else 0

    @property
    def first(self) -> list[list[str]]:
        """The first rows as text."""
        return [[column.shown(row) for column in self.columns] for row in range(min(FIRST_ROWS, len(self)))]

    def packed(self) -> dict[str, Any]:
        """The table for the page, cut where a page would become slow."""
        cut = self.cut(MOST_ROWS)
        return {"rows": len(cut), "columns": [column.packed() for column in cut.columns]}

    def cut(self, most: int) -> Table:
        """The first rows of the table, as a table."""
        if len(self) <= most:
            return self
        kept = [
            replace(column, values=column.values[:most], high=None if column.high is None else column.high[:most])
            for column in self.columns
        ]
        return replace(self, columns=tuple(kept))


def words(name: str, values: Iterable[Any], *, form: Form = "text", filtered: bool = False) -> Column:
    """A column of words."""
    return Column(name, form, [str(value) for value in values], filtered=filtered)


def numbers(name: str, values: Any, form: Form = ",", *, high: Any = None) -> Column:
    """A column of numbers, or of ranges."""
    return Column(name, form, _floats(values), None if high is None else _floats(high))


def percent(name: str, values: Any, *, high: Any = None) -> Column:
    """Shares, as per cent."""
    return numbers(name, 100 * _floats(values), ".1f", high=None if high is None else 100 * _floats(high))


def points(name: str, values: Any, *, high: Any = None) -> Column:
    """Differences of shares in percentage points, with their signs."""
    return numbers(name, 100 * _floats(values), "+.1f", high=None if high is None else 100 * _floats(high))


def p_values(name: str, values: Any) -> Column:
    """p-values; those below 0.0001 say so."""
    return numbers(name, values, "p")


def written(value: float, form: str) -> str:
    """A number by its form, with a true minus sign; a dash where it is not finite."""
    if not math.isfinite(value):
        return MISSING
    if form == "p":
        return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
    text = format(round(value), ",") if form == "," else format(value, form)
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\u2212")


def _packed(values: np.ndarray, form: str) -> dict[str, Any]:
    """Rounded numbers, in double precision where single would change the last digit that is shown."""
    digits = int(form[-2]) if form.endswith("f") else 0
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return packed(values, double=bool(largest * 10**digits >= 2**23))


def packed(values: np.ndarray, *, double: bool = False) -> dict[str, Any]:
    """An array as base64, in the smallest type that holds it."""
    values = np.asarray(values)
    kind = "f64" if double else "f32"
    if values.dtype != np.float16 and np.isfinite(values).all() and (values == np.round(values)).all():
        lowest, highest = (values.min(), values.max()) if values.size else (0, 0)
        kind = next((k for k, most in _WHOLE.items() if highest <= most), "f64") if lowest >= 0 else "f64"
        kind = "f32" if kind == "f64" and np.abs([lowest, highest]).max() < 2**24 else kind
    if values.dtype == np.float16:
        kind = "f16"
    return {"type": kind, "data": base64.b64encode(values.astype(_TYPES[kind]).tobytes()).decode("ascii")}


_WHOLE = {"u8": 2**8 - 1, "u16": 2**16 - 1, "u32": 2**32 - 1}
_TYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f16": "<f2", "f32": "<f4", "f64": "<f8"}


def _floats(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _rounded(values: Sequence[float] | np.ndarray, form: str) -> np.ndarray:
    """What is shown as the number it says; -0 is 0."""
    array = np.asarray(values, dtype=np.float64)
    if form == "p":
        return np.where(array < 1e-4, array, [float(f"{value:.4f}") for value in array]) if array.size else array
    if form == ",":
        return np.round(array)
    return np.array([float(format(value, form)) for value in array]) + 0.0
