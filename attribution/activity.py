"""Methods that read activations: one forward, no backward, whatever the number of groups, sites and methods.

Tokens are what the model reads: every token of an example but the last, special tokens included. `random` reads nothing and is
there to compare with.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.errors import SiteError
from ..neurons.offload import kept_elsewhere
from ..neurons.sites import Site, is_transposed, projection_widths
from .engine import Job
from .methods import register_method
from .readings import CHUNK
from .sums import Sums


def as_they_are(means: Tensor, _site: Site) -> Tensor:
    """The groups' means themselves, so that `values` are absolute means and not means of absolute values."""
    return means


@register_method("mean", reads="activation", tokens="sum", over="tokens", finish=as_they_are)
def mean(activation: Tensor) -> Tensor:
    """(1 / number of tokens) * sum_x sum_t a(x, t): the mean activation over a group's tokens, signed. Cost: the forward."""
    return activation


@register_method("active", reads="activation", tokens="sum", over="tokens")
def active(activation: Tensor) -> Tensor:
    """P(a > 0): the share of a group's tokens at which the neuron's value at this site is positive; at `expert`, of those
    that are routed to its expert.

    LAPE's p (Tang et al., arXiv 2402.16438, Eq 4) where the site is the activation function's output or, the same, its
    input: `gate` on gated FFNs, `mlp` on others. At site `expert` a token that is not routed to the unit's expert is one at
    which it is not positive. Cost: the forward, one comparison per activation.
    """
    return torch.gt(activation, 0, out=torch.empty_like(activation))


@register_method("max", reads="activation", tokens="max")
def maximum(activation: Tensor) -> Tensor:
    """(1/n) sum_x max_t a(x, t) over real tokens: `signed`; `values` is the mean of the maximum's absolute value.

    The response of Suau et al. (arXiv 2110.02802) to a sentence. Cost: the forward.
    """
    return activation


def weight_norms(site: Site) -> Float[Tensor, "layer neuron"]:
    """Euclidean norm of the weights that go with each neuron.

    For sites on the input side of a projection (`mlp`, `attn`) its outgoing weights: the column of that projection that
    reads it. For sites on an output side the row that computes it. Raises SiteError where the weights are kept nowhere.
    """
    norms = []
    for tap in site.taps:
        projection_widths(tap.module, tap.path)
        weight = tap.module.weight
        assert isinstance(weight, Tensor)
        if weight.is_meta:
            weight = kept_elsewhere(tap.module, "weight")
        if weight is None:
            raise SiteError(
                f"{tap.path}: its weights are kept nowhere, their norms cannot be taken; load them in memory"
            )
        outputs = 1 if is_transposed(tap.module) else 0
        reduced = outputs if tap.side == "in" else 1 - outputs
        norm = torch.linalg.vector_norm(
            weight.detach(), dim=reduced, dtype=torch.promote_types(weight.dtype, torch.float32)
        )
        norms.append(norm.cpu() if tap.channels is None else norm.cpu()[tap.channels])
    return torch.stack(norms)


def times_norms(means: Tensor, site: Site) -> Tensor:
    """Each neuron's mean times the norm of its weights."""
    return means * weight_norms(site).to(means.dtype)


@register_method("weighted", reads="activation", tokens="sum", over="tokens", finish=times_norms)
def weighted(activation: Tensor) -> Tensor:
    """mean_t |a(t)| * |w|: how much the neuron writes on average, w the weights of `weight_norms`.

    For `mlp` |a| * |column of the output projection| is the norm of what the unit adds to the FFN's output (the value's
    contribution in Geva et al., arXiv 2203.14680, section 4, there as |m_i| * |v_i|). Cost: the forward.
    """
    return activation.abs()


def average_precision(
    rows: Float[Tensor, "example layer neuron"], groups: Int[Tensor, " example"], num_groups: int
) -> Float[Tensor, "group layer neuron"]:
    """sum_k (R_k - R_{k-1}) P_k over thresholds k in falling order, examples of equal score entering together.

    The definition of scikit-learn's `average_precision_score`, with a group's examples as the positives and all others as
    the negatives. A neuron that says nothing of a group has its share of the examples, in expectation.
    """
    count, layers, width = rows.shape
    flat, out = rows.reshape(count, -1), torch.empty((num_groups, layers * width))
    positions = torch.arange(count)[:, None]
    size = max(1, CHUNK // max(1, count))
    for first in range(0, flat.shape[1], size):
        score, order = flat[:, first : first + size].sort(dim=0, descending=True)
        last = torch.ones_like(score, dtype=torch.bool)
        last[:-1] = score[:-1] != score[1:]
        # where the examples that share a score end: the next position that is the last of its score
        end = torch.where(last, positions, count).flip(0).cummin(dim=0).values.flip(0)
        owner = groups[order]
        for group in range(num_groups):
            hit = (owner == group).float()
            precision = hit.cumsum(dim=0).gather(0, end) / (end + 1)
            out[group, first : first + size] = (hit * precision).sum(dim=0) / hit.sum(dim=0)
    return out.reshape(num_groups, layers, width)


@register_method("precision", reads="activation", tokens="max", rows=average_precision, min_groups=2)
def precision(activation: Tensor) -> Tensor:
    """Average precision of max_t a(x, t) as a detector of the group among all examples, between 0 and 1.

    "Expertise" of Suau et al. (arXiv 2110.02802, section 3; "expert units" are those with the highest). Cost: the forward, a
    sort of the examples per neuron, and 4 bytes of memory per example and neuron.
    """
    return activation


@register_method("random", reads="job")
def random(job: Job, site: Site, *, seed: int = 0) -> Sums:
    """Uniform on [0, 1), drawn for each site, group and neuron from `seed`: what any method must beat. Cost: nothing."""
    digest = hashlib.sha256(f"{seed}|{site.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    counts = torch.bincount(job.groups, minlength=job.num_groups)
    drawn = torch.rand((job.num_groups, site.num_layers, site.width), generator=generator)
    lengths = torch.tensor([len(one.ids) - 1 for one in job.encoded])
    tokens = torch.zeros_like(counts).index_add_(0, job.groups, lengths)
    total = drawn * counts[:, None, None]
    return Sums(
        total, total, drawn * total, counts, tokens, torch.ones(len(job.encoded), dtype=torch.bool)
    )  # fmt: skip
