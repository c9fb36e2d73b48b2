"""Statistics over clusters: bootstrap intervals, sign-flip and label-permutation tests, corrections for many tests.

The unit is the cluster (an item), not the row: paraphrases and translations of one fact are right or wrong together.
Functions work on many cells at once; a cell is one column of `sums`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DRAWS = 9999
_SLACK = 1e-9  # statistics this close are ties, which count as at least as extreme
_BLOCK = 1 << 22  # entries of a block of random signs or labels, to bound memory


def cluster_sums(
    values: Float[Tensor, "cell question"], cluster: Int[Tensor, " question"]
) -> tuple[Float[Tensor, "cluster cell"], Float[Tensor, " cluster"]]:
    """Sums of values and numbers of questions by cluster; clusters are renumbered in ascending order of `cluster`."""
    _, index = torch.unique(cluster, return_inverse=True)
    num = int(index.max()) + 1 if len(index) else 0
    sums = torch.zeros((num, values.shape[0]), dtype=torch.float64)
    sums.index_add_(0, index, values.double().T.contiguous())
    return sums, torch.bincount(index, minlength=num).double()


def bootstrap(
    sums: Float[Tensor, "cluster cell"],
    sizes: Float[Tensor, " cluster"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """Percentile interval of the mean per question, resampling clusters with replacement (Field & Welsh 2007).

    Every draw takes as many clusters as there are and divides the sum of their values by the number of their questions.
    NaN with fewer than two clusters. Few clusters (under about 20) make percentile intervals somewhat too short.
    """
    num = len(sizes)
    if num < 2:
        nothing = torch.full((sums.shape[1],), torch.nan, dtype=torch.float64)
        return nothing, nothing.clone()
    generator = torch.Generator().manual_seed(seed)
    means = []
    for count in _blocks(draws, num):
        drawn = torch.randint(num, (count, num), generator=generator)
        weights = torch.zeros((count, num), dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float64)
        )
        means.append((weights @ sums) / (weights @ sizes)[:, None])
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(means), ends, dim=0)
    return low, high


def sign_flip_test(sums: Float[Tensor, "cluster cell"], *, draws: int = DRAWS, seed: int = 0) -> Float[Tensor, " cell"]:
    """One-sided p-value that the sum over clusters is below 0, when each cluster's sign might as well be the other.

    Exact over all 2^K sign patterns where they are at most `draws` + 1, else from `draws` random patterns with the
    observed one counted in, (1 + hits) / (1 + draws) (Phipson & Smyth 2010). Clusters that are 0 everywhere do not
    count. NaN where a value is NaN or there is no cluster.
    """
    if not len(sums):
        return torch.full((sums.shape[1],), torch.nan, dtype=torch.float64)
    active = sums[(sums != 0).any(dim=1)].double()
    num = len(active)
    observed = active.sum(dim=0)
    limit = observed + _SLACK * active.abs().sum(dim=0)
    if 2**num <= draws + 1:
        patterns = torch.arange(2**num)[:, None] >> torch.arange(num) & 1
        hits = ((1.0 - 2.0 * patterns.double()) @ active <= limit).sum(dim=0)
        p = hits.double() / 2**num
    else:
        generator = torch.Generator().manual_seed(seed)

        def random(count: int) -> Tensor:
            return 1.0 - 2.0 * torch.randint(2, (count, num), generator=generator).double()

        p = _monte_carlo(lambda count: random(count) @ active <= limit, num, draws)
    return p.masked_fill(observed.isnan(), torch.nan)


def label_test(
    sums: Float[Tensor, "cluster cell"],
    weights: Float[Tensor, "cluster cell"],
    own: Bool[Tensor, "cluster cell"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[Tensor, " cell"]:
    """One-sided p-value that the own clusters' weighted mean is below that of the others, when labels are exchangeable.

    The statistic is sum(sums[own]) / sum(weights[own]) less the same over the others. Exact over all choices of as many
    own clusters where they are at most `draws` + 1, else from `draws` random ones with the observed one counted in.
    NaN without clusters on either side.
    """
    p = torch.full((sums.shape[1],), torch.nan, dtype=torch.float64)
    counts = own.sum(dim=0)
    for count in counts.unique().tolist():
        if 0 < count < len(own):
            cells = counts == count
            p[cells] = _label_test(sums[:, cells].double(), weights[:, cells].double(), own[:, cells], draws, seed)
    return p


def _label_test(sums: Tensor, weights: Tensor, own: Tensor, draws: int, seed: int) -> Tensor:
    """label_test for cells that all have as many own clusters."""
    num, count_own = len(own), int(own[:, 0].sum())

    def difference(mine: Tensor, weight: Tensor) -> Tensor:
        return mine / weight - (sums.sum(dim=0) - mine) / (weights.sum(dim=0) - weight)

    observed = difference((own * sums).sum(dim=0), (own * weights).sum(dim=0))
    limit = observed + _SLACK * (1 + observed.abs())

    def hit(chosen: Tensor) -> Tensor:
        labels = torch.zeros((len(chosen), num), dtype=torch.float64).scatter_(1, chosen, 1.0)
        return difference(labels @ sums, labels @ weights) <= limit

    if math.comb(num, count_own) <= draws + 1:
        p = hit(torch.tensor(list(combinations(range(num), count_own)))).double().mean(dim=0)
    else:
        generator = torch.Generator().manual_seed(seed)
        p = _monte_carlo(
            lambda count: hit(torch.rand((count, num), generator=generator).argsort(dim=1)[:, :count_own]), num, draws
        )
    return p.masked_fill(observed.isnan(), torch.nan)


def holm(p: Tensor) -> Tensor:
    """Holm's step-down adjusted p-values (Holm 1979) over all entries; NaN entries stay NaN and do not count."""
    return _corrected(p, _holm)


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Adjusted p-values for the false discovery rate (Benjamini & Hochberg 1995); NaN entries do not count."""
    from scipy.stats import false_discovery_control

    return _corrected(p, lambda values: false_discovery_control(values, method="bh"))


def standard_error(sums: Float[Tensor, "cluster cell"], sizes: Float[Tensor, " cluster"]) -> Float[Tensor, " cell"]:
    """Cluster-robust standard error of the mean per question (linearised ratio); NaN for one cluster."""
    num = len(sizes)
    if num < 2:
        return torch.full((sums.shape[1],), torch.nan, dtype=torch.float64)
    mean = sums.sum(dim=0) / sizes.sum()
    residual = sums - sizes[:, None] * mean
    return (residual.square().sum(dim=0) * num / (num - 1)).sqrt() / sizes.sum()


def _monte_carlo(hit: Callable[[int], Tensor], width: int, draws: int) -> Tensor:
    """(1 + hits) / (1 + draws), in blocks."""
    hits = sum(hit(count).sum(dim=0).double() for count in _blocks(draws, width))
    return (1 + torch.as_tensor(hits)) / (1 + draws)


def _blocks(draws: int, width: int) -> list[int]:
    size = max(1, min(draws, _BLOCK // max(1, width)))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _holm(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _corrected(p: Tensor, correct: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    flat = p.detach().double().flatten().numpy()
    known = ~np.isnan(flat)
    adjusted = flat.copy()
    if known.any():
        adjusted[known] = correct(flat[known])
    return torch.from_numpy(adjusted).view(p.shape)
