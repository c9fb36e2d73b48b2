"""Selection by permutation: the neurons on which a group depends more than relabelled examples ever do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet

Correction = Literal["family", "discoveries", "none"]
CORRECTIONS = ("family", "discoveries", "none")


@dataclass(frozen=True, eq=False)
class Significance:
    """How surprising each neuron is for each group under relabelled examples.

    `statistic` is Welch's t of the group's units against all others; `p` the one-sided p-value of each neuron alone; `p_family`
    that of the largest statistic among all neurons (Westfall & Young 1993: an alpha bounds the chance of any false neuron in a
    group's set); `q` the estimated share of false ones among the neurons at least as extreme (Tusher et al. 2001).
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    statistic: Float[Tensor, "group layer neuron"]
    p: Float[Tensor, "group layer neuron"]
    p_family: Float[Tensor, "group layer neuron"]
    q: Float[Tensor, "group layer neuron"]
    draws: int
    num_units: int

    def sets(self, alpha: float = 0.05, *, correction: Correction = "family") -> dict[str, NeuronSet]:
        """Each group's neurons at a level: `family` by `p_family`, `discoveries` by `q`, `none` by `p`.

        Raises SetError when alpha is not between 0 and 1 or the draws are too few for it.
        """
        if correction not in CORRECTIONS:
            raise SetError(f"unknown correction {correction!r}; corrections are {', '.join(CORRECTIONS)}")
        if not 0 < alpha < 1:
            raise SetError(f"alpha is {alpha}; expected a level between 0 and 1")
        if correction != "discoveries" and (self.draws + 1) * alpha < 1:
            raise SetError(
                f"{self.draws} draws cannot give a p-value below {1 / (self.draws + 1):.3g}; draw more for {alpha}"
            )
        level = {"family": self.p_family, "discoveries": self.q, "none": self.p}[correction] <= alpha
        origin = {"made": "permutation", "alpha": alpha, "correction": correction, "draws": self.draws}
        return {
            group: NeuronSet(self.site, self.subject, mask, origin | {"group": group})
            for group, mask in zip(self.groups, level, strict=True)
        }


def permutation(
    scores: Scores, *, draws: int = 200, seed: int = 0, by: str = "values", chunk: int = 65536
) -> Significance:
    """Compare every group's examples with all others', against the same under group labels drawn at random.

    The units are items (all rows of one item in one group, meaned), since paraphrases are not independent. Items that stand
    in several groups have their labels shuffled among their own cells, the others among each other. `by` compares absolute
    (`values`) or signed scores. Cost: `draws` products [group, unit] x [unit, neuron]; memory: that of the kept rows.

    Raises SetError when the scores have no rows (`attribute(..., keep_rows=True)`), one group, or a group of under three units.
    """
    if draws < 1:
        raise SetError(f"draws is {draws}; expected 1 or more relabellings")
    units, labels, strata = _units(scores, by)
    number, shape = len(scores.groups), scores.values.shape
    flat = units.reshape(len(units), -1)
    observed = torch.empty(number, flat.shape[1])
    above = torch.zeros(number, flat.shape[1])
    peaks = torch.full((draws, number), -torch.inf)
    null = torch.zeros(number, len(_EDGES) + 1)
    for first in range(0, flat.shape[1], chunk):
        columns = slice(first, first + chunk)
        part = flat[:, columns].contiguous()
        squares = part.square()
        observed[:, columns] = _welch(part, squares, labels, number)
        for draw, relabelled in enumerate(_relabelled(labels, strata, draws, seed)):
            t = _welch(part, squares, relabelled, number)
            above[:, columns] += t >= observed[:, columns]
            peaks[draw] = torch.maximum(peaks[draw], t.amax(dim=1))
            null += _counted(t)
    family = torch.stack([_share_above(peaks[:, g], observed[g]) for g in range(number)])
    q = torch.stack([_false_share(null[g] / draws, observed[g]) for g in range(number)])
    return Significance(
        scores.site, scores.subject, scores.groups, observed.reshape(shape), ((above + 1) / (draws + 1)).reshape(shape),
        family.reshape(shape), q.reshape(shape), draws, len(units),
    )  # fmt: skip


_EDGES = torch.linspace(-10, 40, 5001)


def _units(scores: Scores, by: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean rows of every (item, group) [unit, layer, neuron], the units' groups, and who is shuffled with whom."""
    if scores.rows is None or scores.row_groups is None or scores.row_items is None:
        raise SetError(
            "permutation needs every example's score; score with attribute(..., keep_rows=True) (locate --rows)"
        )
    if by not in ("values", "signed"):
        raise SetError(f"cannot compare by {by!r}; compare by 'values' or 'signed'")
    number = len(scores.groups)
    if number < 2:
        raise SetError(f"permutation needs two groups at least, the scores have {scores.groups[0]!r} alone")
    cells, unit = (scores.row_items * number + scores.row_groups).unique(return_inverse=True)
    rows = scores.rows.abs() if by == "values" else scores.rows
    sums = torch.zeros((len(cells), *rows.shape[1:])).index_add_(0, unit, rows)
    units = sums / torch.bincount(unit)[:, None, None]
    labels, items = cells % number, cells // number
    for group, count in zip(scores.groups, torch.bincount(labels, minlength=number).tolist(), strict=True):
        if count < 3:
            raise SetError(
                f"group {group!r} has {count} items, permutation needs 3 at least; add items or leave it out"
            )
    alone = torch.bincount(items)[items] == 1
    return units, labels, torch.where(alone, -1, items)


def _relabelled(labels: Tensor, strata: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """Labels shuffled within each stratum."""
    generator = torch.Generator().manual_seed(seed)
    order = strata.argsort(stable=True)
    for _ in range(draws):
        mixed = torch.randperm(len(labels), generator=generator)
        mixed = mixed[strata[mixed].argsort(stable=True)]  # a random order of each stratum's own units
        shuffled = torch.empty_like(labels)
        shuffled[order] = labels[mixed]
        yield shuffled


def _welch(
    units: Float[Tensor, "unit neuron"],
    squares: Float[Tensor, "unit neuron"],
    labels: Int[Tensor, " unit"],
    number: int,
) -> Float[Tensor, "group neuron"]:
    """Welch's t of each group's units against all others'; 0 where neither varies nor differs."""
    own = torch.nn.functional.one_hot(labels, number).T.float()
    sizes = own.sum(dim=1, keepdim=True)
    sums, square_sums = own @ units, own @ squares
    rest, rest_sizes = units.sum(dim=0) - sums, len(units) - sizes
    rest_squares = squares.sum(dim=0) - square_sums

    def variance(total: Tensor, square: Tensor, size: Tensor) -> Tensor:
        return (square - total.square() / size).clamp(min=0) / (size - 1) / size

    difference = sums / sizes - rest / rest_sizes
    error = (variance(sums, square_sums, sizes) + variance(rest, rest_squares, rest_sizes)).sqrt()
    # below what float32 leaves of a difference of squares there is no variance to speak of
    floor = 1e-4 * (squares.sum(dim=0) / len(units)).sqrt()
    return torch.where(difference == 0, torch.zeros_like(difference), difference / error.maximum(floor))


def _counted(t: Float[Tensor, "group neuron"]) -> Float[Tensor, "group bin"]:
    bins = torch.bucketize(t, _EDGES)
    return torch.stack([torch.bincount(row, minlength=len(_EDGES) + 1).float() for row in bins])


def _share_above(peaks: Float[Tensor, " draw"], observed: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    """(1 + draws whose largest statistic reaches a neuron's) / (1 + draws)."""
    below = torch.searchsorted(peaks.sort().values, observed)
    return (len(peaks) - below + 1) / (len(peaks) + 1)


def _false_share(null: Float[Tensor, " bin"], observed: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    """Expected false ones over found ones at each neuron's statistic, made monotone; bins make it conservative."""
    bins = torch.bucketize(observed, _EDGES)
    found = torch.bincount(bins, minlength=len(null)).float()
    reaching = [one.flip(0).cumsum(0).flip(0) for one in (null, found)]
    share = (reaching[0] / reaching[1].clamp(min=1)).clamp(max=1)
    return share.cummin(dim=0).values[bins]
