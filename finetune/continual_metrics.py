"""Metrics of continual learning over the accuracy matrix: one formula, one function.

`a[..., j, i]` is the accuracy on task i after stage j, with tasks numbered in the order of learning. Leading
dimensions (methods, seeds) are kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import TuneError

Matrix = Float[Tensor, "*batch stage task"]


def average_accuracy(a: Matrix) -> Float[Tensor, "*batch"]:
    """CL = (1/N) sum_i a[N, i]: the mean over tasks at the end (Leng & Xiong, arXiv 2407.06488, Eq 4)."""
    return _square(a)[..., -1, :].mean(dim=-1)


def backward_transfer(a: Matrix) -> Float[Tensor, "*batch"]:
    """BWT = (1/(N-1)) sum_{i<N} (a[N, i] - a[i, i]) (Lopez-Paz & Ranzato 2017, arXiv 1706.08840, Eq 3).

    Negative where later tasks took away from what was just learned. NaN for a single task.
    """
    learned = _square(a).diagonal(dim1=-2, dim2=-1)
    return (a[..., -1, :-1] - learned[..., :-1]).mean(dim=-1)


def forward_transfer(a: Matrix, untouched: Float[Tensor, "*batch task"]) -> Float[Tensor, "*batch"]:
    """FWT = (1/(N-1)) sum_{i>1} (a[i-1, i] - b[i]) (Lopez-Paz & Ranzato 2017, Eq 4).

    b is the accuracy of the subject before the stream; the paper's is that of a random initialisation.
    """
    ahead = _square(a).diagonal(offset=1, dim1=-2, dim2=-1)
    return (ahead - untouched[..., 1:]).mean(dim=-1)


def forgetting(a: Matrix) -> Float[Tensor, "*batch"]:
    """F = (1/(N-1)) sum_{i<N} (max_{l<N} a[l, i] - a[N, i]) (Chaudhry et al. 2018, arXiv 1801.10112, Eq 3).

    The best accuracy before the last stage less that after it. NaN for a single task.
    """
    if _square(a).shape[-2] < 2:
        return torch.full(a.shape[:-2], torch.nan)
    return (a[..., :-1, :-1].amax(dim=-2) - a[..., -1, :-1]).mean(dim=-1)


def retention_ratio(a: Matrix, alone: Float[Tensor, "*batch task"]) -> Float[Tensor, "*batch"]:
    """FG = (1/(N-1)) sum_{i<N} a[N, i] / A_i (Leng & Xiong, Eq 5): higher is less forgetting.

    A_i is the accuracy after training on task i alone.
    """
    return (_square(a)[..., -1, :-1] / alone[..., :-1]).mean(dim=-1)


def t_interval(values: Float[Tensor, "*batch seed"], *, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over seeds with its t interval: mean -/+ t_{(1+level)/2, n-1} s / sqrt(n); the bounds are NaN for one seed."""
    from scipy.stats import t

    mean, count = values.mean(dim=-1), values.shape[-1]
    if count < 2:
        return mean, torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    reach = float(t.ppf((1 + level) / 2, count - 1)) * values.std(dim=-1) / count**0.5
    return mean, mean - reach, mean + reach


def _square(a: Matrix) -> Matrix:
    if a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        raise TuneError(f"expected the accuracy of N tasks after N stages, [..., stage, task], got {list(a.shape)}")
    return a
