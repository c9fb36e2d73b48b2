"""Alignment: the cosine of two sets of vectors that differ in number and have no order in common."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons.errors import SetError

Align = Literal["mean", "pairs", "index", "score", "match"]


def check_align(align: str) -> None:
    """Raise SetError for an alignment that there is not."""
    if align not in get_args(Align):
        raise SetError(f"unknown align {align!r}; expected {', '.join(get_args(Align))}")


def table_of(
    vectors: Float[Tensor, "neuron parameter"],
    masks: Bool[Tensor, "group neuron"],
    align: Align,
    order: Float[Tensor, "group neuron"] | None = None,
) -> Float[Tensor, "group group"]:
    """How alike every pair of sets is, NaN where one is empty. `order` ranks each group's neurons for `score`."""
    if align in ("mean", "pairs"):
        means = _means(vectors if align == "mean" else _unit(vectors), masks)
        return _products(_unit(means) if align == "mean" else means)
    table = torch.full((len(masks), len(masks)), torch.nan, device=vectors.device)
    members = [vectors[_members(masks, row, order)] for row in range(len(masks))]
    for i, mine in enumerate(members):
        for j in range(i + 1):
            table[i, j] = table[j, i] = _aligned(mine, members[j], align)
    return table


def unshared_table(
    vectors: Float[Tensor, "neuron parameter"],
    masks: Bool[Tensor, "group neuron"],
    align: Align,
    order: Float[Tensor, "group neuron"] | None = None,
) -> Float[Tensor, "group group"]:
    """As `table_of`, each set without the members of the other; NaN on the diagonal."""
    table = torch.full((len(masks), len(masks)), torch.nan, device=vectors.device)
    for i in range(len(masks)):
        others = [j for j in range(len(masks)) if j != i]
        if not others:
            continue
        mine, theirs = masks[i] & ~masks[others], masks[others] & ~masks[i]
        if align in ("mean", "pairs"):
            given = vectors if align == "mean" else _unit(vectors)
            a, b = _means(given, mine), _means(given, theirs)
            a, b = (_unit(a), _unit(b)) if align == "mean" else (a, b)
            table[i, others] = (a * b).sum(dim=1)
            continue
        for place, j in enumerate(others):
            if j < i:
                ranks = None if order is None else order[[i, j]]
                pair = torch.stack([mine[place], theirs[place]])
                a, b = (vectors[_members(pair, row, ranks)] for row in range(2))
                table[i, j] = table[j, i] = _aligned(a, b, align)
    return table


def _aligned(a: Float[Tensor, "a parameter"], b: Float[Tensor, "b parameter"], align: Align) -> Float[Tensor, ""]:
    """Cosine of two ordered sets, over as many as both have; for `match` the mean over the best assignment."""
    count = min(len(a), len(b))
    if not count:
        return a.new_tensor(torch.nan)
    if align == "match":
        from scipy.optimize import linear_sum_assignment

        cosines = (_unit(a) @ _unit(b).T).nan_to_num()
        rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
        return cosines[rows, columns].mean()
    a, b = a[:count].flatten(), b[:count].flatten()
    return (a @ b) / (a.norm() * b.norm())


def _members(masks: Bool[Tensor, "group neuron"], row: int, order: Tensor | None) -> Tensor:
    """The members of a set by index, or highest first."""
    index = masks[row].nonzero().flatten()
    return index if order is None else index[order[row, index].argsort(descending=True, stable=True)]


def _means(vectors: Tensor, masks: Bool[Tensor, "set neuron"]) -> Float[Tensor, "set parameter"]:
    """Mean vector of each set, NaN for an empty one; only the members' rows are read."""
    masks = masks.to(vectors.device)
    counts = masks.sum(dim=1)
    members = masks.nonzero()[:, 1]
    starts = counts.cumsum(dim=0) - counts
    sums = torch.nn.functional.embedding_bag(members, vectors, starts, mode="sum")
    return sums / torch.where(counts > 0, counts, torch.nan)[:, None]


def _unit(vectors: Float[Tensor, "set parameter"]) -> Float[Tensor, "set parameter"]:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _products(vectors: Float[Tensor, "set parameter"]) -> Float[Tensor, "set set"]:
    # NaN rows would spread through a product of finite rows with zeros, so they are put back afterwards
    missing = vectors.isnan().any(dim=1)
    table = vectors.nan_to_num() @ vectors.nan_to_num().T
    return table.masked_fill(missing[:, None] | missing[None], torch.nan)
