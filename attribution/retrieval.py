"""Retrieval: how well a ranking of neurons finds those whose role is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.errors import SetError
from .activity import average_precision
from .fidelity_result import ranked


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Each group's figures, between 0 and 1; NaN where a group has no true neuron.

    With K true neurons: `recall` is the share of them among the K ranked first (which is their precision too), `precision` the
    average precision, whose chance level is the share of true neurons, `auroc` the probability that a true neuron stands
    before another one, 0.5 by chance.
    """

    recall: Float[Tensor, " group"]
    precision: Float[Tensor, " group"]
    auroc: Float[Tensor, " group"]


def retrieval(scores: Float[Tensor, "group layer neuron"], truth: Bool[Tensor, "group layer neuron"]) -> Retrieval:
    """How well the highest scores of each group find its true neurons, over all layers that are given.

    Neurons of equal score enter together: recall counts the expected share of a random order among them. Raises SetError
    when the shapes differ or a score is not finite.
    """
    if scores.shape != truth.shape:
        raise SetError(f"scores are {tuple(scores.shape)}, the truth is {tuple(truth.shape)}; expected the same shape")
    if not bool(torch.isfinite(scores).all()):
        raise SetError("a score is NaN or infinite; a ranking needs finite scores")
    found = [_of_group(one.flatten().double(), true.flatten()) for one, true in zip(scores, truth, strict=True)]
    return Retrieval(*(torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True)))


def _of_group(scores: Float[Tensor, " neuron"], truth: Bool[Tensor, " neuron"]) -> tuple[float, float, float]:
    count, total = int(truth.sum()), truth.numel()
    if not 0 < count < total:
        return torch.nan, torch.nan, torch.nan
    precision = average_precision(scores[:, None, None].float(), truth.long(), 2)[1].item()
    below = ranked(scores)[truth].sum().item() - count * (count - 1) / 2
    return recall_at(scores, truth, count), precision, below / (count * (total - count))


def recall_at(scores: Float[Tensor, " neuron"], truth: Bool[Tensor, " neuron"], count: int) -> float:
    """Share of the true neurons among the `count` highest scores; of those tied at the border an expected share."""
    border = scores.topk(count).values[-1]
    surely, tied = scores > border, scores == border
    room = (count - int(surely.sum())) / int(tied.sum())
    return (int((truth & surely).sum()) + room * int((truth & tied).sum())) / int(truth.sum())


def found_among(
    scores: Float[Tensor, " neuron"], truth: Bool[Tensor, " neuron"], counts: Int[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """How many true neurons stand among the `counts` highest scores, each between 1 and their number.

    Over K, the number of true ones, it is recall at k; over k it is precision. Of neurons tied at the border an expected
    share counts.
    """
    ordered, order = scores.double().sort(descending=True)
    upto = torch.cat([torch.zeros(1, dtype=torch.float64), truth[order].double().cumsum(dim=0)])
    border = -ordered[counts - 1]
    above = torch.searchsorted(-ordered, border)
    reached = torch.searchsorted(-ordered, border, right=True)
    share = (counts - above) / (reached - above)
    return upto[above] + share * (upto[reached] - upto[above])


def chosen_share(scores: Float[Tensor, " neuron"], count: int) -> Float[Tensor, " neuron"]:
    """1 for a neuron that is among the `count` highest scores, 0 for one that is not, for those tied at the border their chance."""
    border = scores.topk(count).values[-1]
    surely, tied = scores > border, scores == border
    return surely.double() + tied.double() * (count - int(surely.sum())) / int(tied.sum())
