"""Chance: the distribution of how many neurons two random sets share, layer by layer hypergeometric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

P_FLOOR = 1e-12  # the transform leaves errors of about 1e-15, so that smaller p-values are given as this


@dataclass(frozen=True, eq=False)
class Chance:
    """The number of neurons that two random sets of `size_a` and `size_b` share: `low_count + k` with probability
    `pmf[k]`.

    `layer_expected` [layer] is the expected Jaccard within each layer, NaN where both sets are empty there.
    """

    size_a: int
    size_b: int
    low_count: int
    pmf: Float[np.ndarray, " count"]
    layer_expected: Float[np.ndarray, " layer"]

    @property
    def counts(self) -> np.ndarray:
        return self.low_count + np.arange(len(self.pmf))

    @property
    def expected(self) -> float:
        """Expected Jaccard: the mean of x / (a + b - x) over the distribution of x; NaN when both sets are empty."""
        if self.size_a + self.size_b == 0:
            return float("nan")
        return float(self.pmf @ self._jaccard(self.counts))

    @property
    def low(self) -> float:
        """The Jaccard at the 2.5 % quantile."""
        return self._quantile(0.025)

    @property
    def high(self) -> float:
        """The Jaccard at the 97.5 % quantile."""
        return self._quantile(0.975)

    def p(self, count: int) -> float:
        """Two-sided p-value of sharing `count` neurons: twice the smaller tail, at most 1, at least P_FLOOR."""
        if self.size_a == 0 or self.size_b == 0:
            return float("nan")
        below = float(self.pmf[self.counts <= count].sum())
        above = float(self.pmf[self.counts >= count].sum())
        return min(1.0, max(P_FLOOR, 2 * min(below, above)))

    def _quantile(self, q: float) -> float:
        if self.size_a + self.size_b == 0:
            return float("nan")
        place = int(np.searchsorted(self.pmf.cumsum(), q - 1e-12))
        return float(self._jaccard(self.counts[min(place, len(self.pmf) - 1)]))

    def _jaccard(self, shared: np.ndarray) -> np.ndarray:
        return shared / np.maximum(self.size_a + self.size_b - shared, 1)


def by_layer(a: Sequence[int], b: Sequence[int], width: int) -> Chance:
    """Sets with `a[layer]` and `b[layer]` neurons drawn independently in every layer of `width` neurons.

    The total is the sum of independent hypergeometric counts; their distributions are convolved by Fourier transform on
    a window of 12 standard deviations and more around the mean, outside of which less than 1e-16 lies.
    """
    size_a, size_b = np.asarray(a), np.asarray(b)
    mean = size_a * size_b / width
    variance = mean * (1 - size_a / width) * (width - size_b) / max(1, width - 1)
    half = 32 + int(np.ceil(12 * np.sqrt(variance.sum())))
    window = 1 << (2 * half).bit_length()
    base = np.maximum(0, np.floor(mean).astype(int) - half)
    counts = base[:, None] + np.arange(window)  # [layer, count]
    pmf = _hypergeometric(counts, size_a[:, None], size_b[:, None], width)
    union = size_a[:, None] + size_b[:, None] - counts
    jaccard = (pmf * counts / np.maximum(union, 1)).sum(axis=1)
    layer_expected = np.where(size_a + size_b > 0, jaccard, np.nan)
    total = np.fft.irfft(np.fft.rfft(pmf, axis=1).prod(axis=0), n=window).clip(min=0)
    # the transform counts modulo the window; turn it so that the mean stands in the middle
    low = max(0, round(float(mean.sum())) - window // 2)
    total = np.roll(total, int(base.sum()) - low)
    inside = low + np.arange(window) <= np.minimum(size_a, size_b).sum()
    total = np.where(inside, total, 0.0)
    return Chance(int(size_a.sum()), int(size_b.sum()), low, total / total.sum(), layer_expected)


def over_site(a: int, b: int, num_layers: int, width: int) -> Chance:
    """Sets of `a` and `b` neurons drawn independently over all layers.

    Within a layer that has members the Jaccard then has the same expectation as over the site: each of the site's union
    is shared with the same probability wherever it stands.
    """
    whole = by_layer([a], [b], num_layers * width)
    return Chance(a, b, whole.low_count, whole.pmf, np.repeat(whole.layer_expected, num_layers))


def _hypergeometric(shared: np.ndarray, a: np.ndarray, b: np.ndarray, width: int) -> np.ndarray:
    """Probability that a set of `a` and a set of `b` out of `width` share this many."""
    table = _log_factorials(width)
    possible = (shared <= np.minimum(a, b)) & (shared >= a + b - width)
    x = np.where(possible, shared, np.maximum(0, a + b - width))
    choose_x = table[b] - table[x] - table[b - x]
    choose_rest = table[width - b] - table[a - x] - table[width - b - a + x]
    choose_all = table[width] - table[a] - table[width - a]
    return np.where(possible, np.exp(choose_x + choose_rest - choose_all), 0.0)


@lru_cache(maxsize=8)
def _log_factorials(largest: int) -> np.ndarray:
    from scipy.special import gammaln

    return gammaln(np.arange(largest + 1) + 1.0)
