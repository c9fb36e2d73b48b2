"""Tables of groups: the correlation of two tables whose cells share their groups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.errors import SetError

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
