"""Chance: how many neurons two random sets share, layer by layer hypergeometric, for many pairs of sets at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int

P_FLOOR = 1e-12  # the transform leaves errors of about 1e-15, so that smaller p-values are given as this
_TAIL = 37.0  # exp(-37) is 1e-16: what lies beyond is not computed
_BLOCK = 1 << 20  # entries of one block of distributions, to bound memory


@dataclass(frozen=True, eq=False)
class Levels:
    """What two sets of such sizes share by chance, for each pair: over the site, and within each layer.

    `shared` is the expected number of shared neurons, `expected` the expected Jaccard index, `low` and `high` its 2.5 %
    and 97.5 % quantile, `p` the two-sided p-value of what was observed: twice the smaller tail, at most 1 and at least
    P_FLOOR. NaN where both sets are empty, `p` also where one is.
    """

    shared: Float[np.ndarray, " pair"]
    expected: Float[np.ndarray, " pair"]
    low: Float[np.ndarray, " pair"]
    high: Float[np.ndarray, " pair"]
    p: Float[np.ndarray, " pair"]
    layer_expected: Float[np.ndarray, "pair layer"]
    layer_low: Float[np.ndarray, "pair layer"]
    layer_high: Float[np.ndarray, "pair layer"]
    layer_p: Float[np.ndarray, "pair layer"]


def levels(
    a: Int[np.ndarray, "pair layer"],
    b: Int[np.ndarray, "pair layer"],
    shared: Int[np.ndarray, "pair layer"],
    *,
    width: int,
) -> Levels:
    """Chance levels of pairs of sets that have a[pair, layer] and b[pair, layer] of a layer's `width` neurons and share
    `shared`, when both are drawn independently within every layer.

    The number shared in a layer is hypergeometric, the total the sum of independent such numbers. Exact up to 1e-15:
    each is a sum of independent Bernoulli variables (its generating function has real roots only), so that Bernstein's
    inequality bounds the tails and exp(-variance (1 - cos t)) the characteristic function, and what both leave out is
    less than 1e-16.
    """
    parts = [_block(a[rows], b[rows], shared[rows], width) for rows in _blocks(a, b, width)]
    return Levels(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Levels)))


def _block(a: np.ndarray, b: np.ndarray, shared: np.ndarray, width: int) -> Levels:
    first, pmf = in_layers(a, b, width)
    layer = _summary(first, pmf, a, b, shared)
    low, total = in_total(first, pmf, a, b, width)
    whole = _summary(low, total, a.sum(axis=1), b.sum(axis=1), shared.sum(axis=1))
    return Levels((a * b / width).sum(axis=1), *whole, *layer)


def in_layers(
    a: Int[np.ndarray, "*any"], b: Int[np.ndarray, "*any"], width: int
) -> tuple[Int[np.ndarray, "*any"], Float[np.ndarray, "*any count"]]:
    """Distribution of how many neurons sets of a and b out of `width` share: first + k with probability pmf[..., k].

    From the mode outwards by the ratio of neighbours, which is 0 where the support ends.
    """
    half = _reach(_variance(a, b, width).max(initial=0.0))
    mode = (a + 1) * (b + 1) // (width + 2)
    free, steps = width - a - b, np.arange(half)
    wide = [part[..., None].astype(float) for part in (a, b, free, mode)]
    up, down = wide[3] + steps, wide[3] - steps
    rising = (wide[0] - up) * (wide[1] - up) / ((up + 1) * (wide[2] + up + 1))
    falling = down * (wide[2] + down) / ((wide[0] - down + 1) * (wide[1] - down + 1))
    np.cumprod(rising, axis=-1, out=rising)
    np.cumprod(falling, axis=-1, out=falling)
    pmf = np.concatenate([falling[..., ::-1], np.ones_like(wide[3]), rising], axis=-1)
    pmf /= pmf.sum(axis=-1, keepdims=True)
    return mode - half, pmf


def in_total(
    first: Int[np.ndarray, "pair layer"],
    pmf: Float[np.ndarray, "pair layer count"],
    a: Int[np.ndarray, "pair layer"],
    b: Int[np.ndarray, "pair layer"],
    width: int,
) -> tuple[Int[np.ndarray, " pair"], Float[np.ndarray, "pair count"]]:
    """Distribution of the sum over layers, as in `in_layers`: a product of transforms on a window around the mean."""
    variance = _variance(a, b, width).sum(axis=1)
    widest = variance.max(initial=0.0)
    window = 1 << (2 * _reach(widest)).bit_length()
    angle = 2 * np.pi / window
    frequencies = np.arange(window // 2 + 1)
    frequencies = frequencies[variance.min(initial=widest) * (1 - np.cos(angle * frequencies)) <= _TAIL]
    turns = angle * np.outer(np.arange(pmf.shape[-1]), frequencies)
    transform = (pmf @ np.cos(turns) - 1j * (pmf @ np.sin(turns))).prod(axis=1)
    # the transform counts modulo the window; turn it so that the mean stands in the middle
    low = np.rint((a * b / width).sum(axis=1)).astype(int) - window // 2
    shift = (first.sum(axis=1) - low) % window
    transform *= np.exp(-1j * angle * (shift[:, None] * frequencies % window))
    total = np.fft.irfft(np.pad(transform, ((0, 0), (0, window // 2 + 1 - len(frequencies)))), n=window, axis=1)
    counts = low[:, None] + np.arange(window)
    inside = (counts >= 0) & (counts <= np.minimum(a, b).sum(axis=1)[:, None])
    total = np.where(inside, total.clip(min=0), 0.0)
    return low, total / total.sum(axis=1, keepdims=True)


def _summary(
    first: np.ndarray, pmf: np.ndarray, a: np.ndarray, b: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Expected Jaccard index, its 2.5 % and 97.5 % quantile, and the p-value of `shared`."""
    counts = first[..., None] + np.arange(pmf.shape[-1])
    both = (a + b).astype(float)
    expected = (pmf * (counts / np.maximum(both[..., None] - counts, 1.0))).sum(axis=-1)
    cumulative = pmf.cumsum(axis=-1)
    last = pmf.shape[-1] - 1
    ends = [first + np.minimum((cumulative < q - 1e-12).sum(axis=-1), last) for q in (0.025, 0.975)]
    low, high = (end / np.maximum(both - end, 1.0) for end in ends)
    place = shared - first
    at = [np.take_along_axis(cumulative, np.clip(p, 0, last)[..., None], -1)[..., 0] for p in (place, place - 1)]
    below, under = (np.where(p < 0, 0.0, value) for p, value in zip((place, place - 1), at, strict=True))
    p = np.clip(2 * np.minimum(below, 1 - under), P_FLOOR, 1.0)
    nothing = both == 0
    found = [np.where(nothing, np.nan, value) for value in (expected, low, high)]
    return found[0], found[1], found[2], np.where((a == 0) | (b == 0), np.nan, p)


def _variance(a: np.ndarray, b: np.ndarray, width: int) -> np.ndarray:
    return a * b / width * (1 - a / width) * (width - b) / max(1, width - 1)


def _reach(variance: float) -> int:
    """Distance from the mean that a sum of Bernoulli variables passes with probability below 1e-16 (Bernstein)."""
    third = _TAIL / 3
    return int(np.ceil(third + np.sqrt(third**2 + 2 * _TAIL * variance))) + 2


def _blocks(a: np.ndarray, b: np.ndarray, width: int) -> Iterator[slice]:
    entries = a.shape[1] * (2 * _reach(_variance(a, b, width).max(initial=0.0)) + 1)
    size = max(1, _BLOCK // entries)
    return (slice(start, start + size) for start in range(0, max(1, len(a)), size))
