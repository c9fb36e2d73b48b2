"""Rank agreement: whether two groups put the same neurons first, next to two random orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.selection import contrasted
from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from ..neurons.scores import Scores
from .statistics import holm


@dataclass(frozen=True, eq=False)
class RankAgreement:
    """How alike two groups order the neurons of a site.

    `spearman` [group, group] is over all neurons, `layer_spearman` [group, group, layer] within a layer; `rbo` [group, group] is
    rank-biased overlap, which weighs the first ranks most. `spearman_p` and `rbo_p` are two-sided against random orders,
    the `_corrected` ones after Holm over the pairs, NaN on the diagonal. Chance has mean 0 and central 95 %
    -/+ `spearman_reach` for Spearman, `rbo_chance` (mean, low, high) for RBO; it is the same for every pair.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    spearman: Float[Tensor, "group group"]
    spearman_p: Float[Tensor, "group group"]
    spearman_p_corrected: Float[Tensor, "group group"]
    spearman_reach: float
    layer_spearman: Float[Tensor, "group group layer"]
    rbo: Float[Tensor, "group group"]
    rbo_p: Float[Tensor, "group group"]
    rbo_p_corrected: Float[Tensor, "group group"]
    rbo_chance: Float[Tensor, " 3"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "ranks") -> Record:
        """The agreement as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {
            "site": self.site, "subject": self.subject, "groups": list(self.groups),
            "spearman_reach": self.spearman_reach, "origin": dict(self.origin),
        }  # fmt: skip
        return Record("ranks", name, arrays, meta)


@record_type("ranks")
def ranks_from_record(record: Record) -> RankAgreement:
    """The agreement back from an atlas."""
    return RankAgreement(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def rank_agreement(
    scores: Scores,
    *,
    contrast: str | None = None,
    by: str = "values",
    top: float | int = 0.01,
    draws: int = 9999,
    seed: int = 0,
) -> RankAgreement:
    """Spearman's correlation and rank-biased overlap of every pair of groups' scores.

    What is ranked is `by` after the `contrast`, as in `select`. RBO (Webber, Moffat & Zobel 2010, eq. 32, extrapolated)
    has persistence 1 - 1/n with n the neurons that `top` stands for, so that a reader stops at rank n on average; it is read
    as deep as 99.9 % of the readers go, ties to the lower layer and index. By chance means two orders drawn at random:
    for Spearman its normal approximation, for RBO `draws` simulated pairs, the observed one counted in. Neurons of one layer
    score alike in all groups, which raises agreement over the site; `layer_spearman` is free of that.

    Raises SetError with fewer than two groups, or when `top` or the contrast is out of range.
    """
    if len(scores.groups) < 2:
        raise SetError(f"agreement needs two groups or more, the scores have {', '.join(scores.groups)} alone")
    ranked = contrasted(scores, contrast, by)
    flat, num = ranked.flatten(1), ranked[0].numel()
    reader = max(1, round(top * num)) if isinstance(top, float) and 0 < top <= 1 else int(top)
    if not 1 <= reader <= num:
        raise SetError(f"top is {top!r}; expected a share between 0 and 1, or a whole number from 1 to {num}")
    weights = rbo_weights(reader, num)
    spearman = _spearman(flat[:, None])[..., 0]
    rbo = _rbo(flat, weights)
    null = _rbo_null(weights, num, draws, np.random.default_rng(seed))
    reach = 1 / np.sqrt(max(1, num - 1))
    off = ~torch.eye(len(scores.groups), dtype=torch.bool)
    spearman_p = torch.special.erfc(spearman.abs() / reach / np.sqrt(2)).masked_fill(~off, torch.nan)
    rbo_p = _two_sided(rbo, null).masked_fill(~off, torch.nan)
    ends = np.quantile(null, [0.025, 0.975]) if draws else [np.nan] * 2
    return RankAgreement(
        scores.site, scores.subject, scores.groups, spearman, spearman_p, _corrected(spearman_p),
        float(1.959964 * reach), _spearman(ranked), rbo, rbo_p, _corrected(rbo_p),
        torch.tensor([float(null.mean()) if draws else np.nan, *ends], dtype=torch.float64),
        {
            "method": scores.method, "contrast": contrast, "by": by, "top": top, "persistence": 1 - 1 / reader,
            "depth": int((weights > 0).sum()), "draws": draws, "seed": seed,
        },
    )  # fmt: skip


def rbo_weights(reader: int, num: int) -> Float[np.ndarray, " rank"]:
    """What a neuron adds to RBO that both orders hold down to rank m (the worse of its two, entry m - 1).

    RBO_ext = (X_k / k) p^k + (1 - p)/p * sum_{d <= k} (X_d / d) p^d, X_d the number shared by the first d of both: a
    neuron with worse rank m is in X_d from d = m on. k is where p^k falls below 0.001, or the last rank; weights beyond are 0.
    """
    p = 1 - 1 / reader if reader > 1 else 0.0
    depth = min(num, int(np.ceil(np.log(1e-3) / np.log(p)))) if p > 0 else 1
    d = np.arange(1, depth + 1)
    terms = (1 - p) * p ** (d - 1.0) / d
    found = np.zeros(num)
    found[:depth] = terms[::-1].cumsum()[::-1] + p**depth / depth
    return found


def _spearman(values: Float[Tensor, "group layer neuron"]) -> Float[Tensor, "group group layer"]:
    """Pearson correlation of average ranks; NaN where all are tied."""
    from scipy.stats import rankdata

    tables = []
    for layer in values.unbind(dim=1):
        ranks = torch.from_numpy(rankdata(layer.cpu().numpy(), axis=1))
        ranks = ranks - ranks.mean(dim=1, keepdim=True)
        unit = ranks / ranks.norm(dim=1, keepdim=True)
        tables.append((unit @ unit.T).clamp(-1, 1))
    return torch.stack(tables, dim=-1)


def _rbo(flat: Float[Tensor, "group neuron"], weights: np.ndarray) -> Float[Tensor, "group group"]:
    """Every pair, over the neurons of the first group that its weights reach."""
    depth = int((weights > 0).sum())
    order = flat.cpu().sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    table = torch.from_numpy(weights)
    first = torch.arange(depth)
    return torch.stack([table[torch.maximum(ranks[:, own[:depth]], first)].sum(dim=1) for own in order])


def _rbo_null(weights: np.ndarray, num: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, " draw"]:
    """RBO of two random orders: how many of the first `depth` they share, and at which ranks."""
    depth = int((weights > 0).sum())
    shared = rng.hypergeometric(depth, num - depth, depth, size=draws)
    return np.array([
        weights[np.maximum(rng.permutation(depth)[:count], rng.permutation(depth)[:count])].sum() for count in shared
    ])  # fmt: skip


def _two_sided(values: Tensor, null: np.ndarray) -> Tensor:
    """Twice the smaller tail, at most 1, with the observed one counted in."""
    ordered = np.sort(null)
    found = values.numpy()
    above = 1 + len(null) - np.searchsorted(ordered, found - 1e-12, side="left")
    below = 1 + np.searchsorted(ordered, found + 1e-12, side="right")
    return torch.from_numpy(np.minimum(1.0, 2 * np.minimum(above, below) / (1 + len(null))))


def _corrected(p: Float[Tensor, "group group"]) -> Float[Tensor, "group group"]:
    """Holm over the pairs; each counts once, though it stands in the table twice."""
    first, second = torch.triu_indices(len(p), len(p), offset=1).unbind()
    corrected = torch.full_like(p, torch.nan)
    corrected[first, second] = corrected[second, first] = holm(p[first, second])
    return corrected
