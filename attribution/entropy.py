"""LAPE: neurons that are active for few of the groups (Tang et al., arXiv 2402.16438), from p = P(activation > 0)."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons.errors import SetError, SiteError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.sites import Site
from ..neurons.subject import Subject
from .activity import active
from .bounds import is_number
from .methods import register_method

BAR = 0.95
ROUNDING = 1e-5


def entropy(p: Float[Tensor, "group layer neuron"]) -> Float[Tensor, "layer neuron"]:
    """-sum_k p'_k log p'_k with p' = p / sum_k p and 0 log 0 = 0 (Eq 5 and 6); 0 where every p is 0."""
    total = p.sum(dim=0)
    share = torch.where(total > 0, p / total, 0)
    return -torch.special.xlogy(share, share).sum(dim=0)


def activity_bar(p: Float[Tensor, "group layer neuron"], bar: float = BAR) -> float:
    """The `bar` quantile of all p, taken as the round(bar * count)-th smallest, as the authors' code does."""
    check_shares(bar=bar)
    flat = p.flatten()
    return float(flat.kthvalue(max(1, round(bar * len(flat)))).values)


def lape_masks(
    p: Float[Tensor, "group layer neuron"], *, top: float = 0.01, bar: float = BAR
) -> Bool[Tensor, "group layer neuron"]:
    """Which neurons belong to which groups, by the rules of the authors' code.

    1. A neuron with no group above the `bar` quantile of all p is out.
    2. Of the others, the round(top * neurons) with the lowest entropy are chosen, over all layers together.
    3. A chosen neuron belongs to every group whose p is above that same quantile.

    The union of the groups is exactly the chosen ones. Ties fall to the lower layer, then the lower index.

    Raises SetError when p is no probability of at least two groups, or when fewer neurons are left than are to be chosen.
    """
    p = _checked(p)
    check_shares(top=top, bar=bar)
    above = p > activity_bar(p, bar)
    kept = above.any(dim=0)
    wanted = max(1, round(top * kept.numel()))
    if wanted > int(kept.sum()):
        raise SetError(
            f"top is {wanted} neurons, but only {int(kept.sum())} are above the bar (quantile {bar} of all p) in any group; "
            "score more tokens, or lower top or bar"
        )
    ranked = entropy(p).masked_fill(~kept, torch.inf).flatten()
    chosen = torch.zeros_like(kept).flatten()
    chosen[ranked.sort(stable=True).indices[:wanted]] = True
    return above & chosen.reshape(kept.shape)


def lape_sets(scores: Scores, *, top: float = 0.01, bar: float = BAR, site: str | None = None) -> dict[str, NeuronSet]:
    """Each group's set, from scores of the method `active` (or `rate`), by `lape_masks`.

    `site` names the site that the sets are of where it is not the one that p was read at, such as `mlp` for p read at
    `gate`: the unit is the same, and to silence it there is what the authors do.

    Raises SetError for scores of another method.
    """
    if scores.method not in ("active", "rate"):
        raise SetError(f"LAPE needs P(activation > 0), the scores are of method {scores.method!r}; score with 'active'")
    masks = lape_masks(scores.signed, top=top, bar=bar)
    shared = {
        "made": "lape", "top": top, "bar": bar, "read_at": scores.site, "method": scores.method,
        "corpus_hash": scores.origin.get("corpus_hash"),
    }  # fmt: skip
    return {
        group: NeuronSet(site or scores.site, scores.subject, mask, {**shared, "group": group})
        for group, mask in zip(scores.groups, masks, strict=True)
    }


def activation_sign(subject: Subject, site: Site) -> Site:
    """Where the sign of a site's activation function is read: for `mlp` and `expert` the gate where there is one, else the
    site itself.

    SiLU and GELU are positive exactly where what they are given is; the FFN's intermediate unit is not, since `up` is
    multiplied in. Raises SiteError when a gate is there but cannot be found.
    """
    if site.name == "expert" and getattr(site.taps[0].module, "has_gate", False):
        return replace(site, taps=tuple(replace(tap, gate=True) for tap in site.taps))
    if site.name != "mlp":
        return site
    try:
        gate = subject.site("gate")
    except SiteError:
        gate = None
    if gate is not None and gate.width == site.width:
        return gate
    if gate is None and _follows(subject, site):
        return site
    raise SiteError(
        "cannot find where this FFN's activation function is applied: its intermediate units have not the sign of its input "
        "projection, and it has no gate of their number; name the site to read with read_at (preset), or score method "
        "'active' at a site of your choice"
    )


def _follows(subject: Subject, site: Site) -> bool:
    """Whether, on a short forward, the units of the first layer are positive where the input projection is."""
    try:
        taps = (site.taps[0], subject.site("up").taps[0])
    except SiteError:
        return False
    signs: list[Tensor] = []
    with ExitStack() as stack:
        for tap in taps:
            stack.enter_context(tap.attached(lambda x: signs.append(x.detach().reshape(-1, x.shape[-1]) > 0)))
        with subject.quiet(), torch.no_grad():
            subject.model(input_ids=torch.arange(3, device=subject.device)[None], use_cache=False)
    return len(signs) == 2 and torch.equal(signs[0], signs[1])


@register_method("rate", reads="activation", tokens="sum", over="all_tokens", place=activation_sign)
def rate(activation: Tensor) -> Tensor:
    """LAPE's p_k: the share of all of a group's tokens at which the unit's activation function is positive.

    It is `active` at the place where that sign is read (`activation_sign`), and at `expert` out of all tokens, P(routed to the
    expert and act > 0): an expert that a group hardly reaches has a low rate in it, whatever its units do for the few tokens that
    come. Cost: the forward, one comparison per activation.
    """
    return active(activation)


def lape_scores(p: Float[Tensor, "group layer neuron"], _site: Site | None = None, *, bar: float = BAR) -> Tensor:
    """log G - entropy where the group's p is above the bar, 0 elsewhere."""
    p = _checked(p)
    return (math.log(len(p)) - entropy(p)).clamp(min=0) * (p > activity_bar(p, bar))


@register_method(
    "lape", reads="activation", tokens="sum", over="all_tokens", place=activation_sign, finish=lape_scores, min_groups=2
)
def lape(activation: Tensor) -> Tensor:
    """log G - entropy of a group's share of P(act > 0), for groups above the 95 % bar; 0 for the others.

    Tang et al. (arXiv 2402.16438) Eq 4 to 6: LAPE = -sum_k p'_k log p'_k with p' = p / sum_k p, p_k = P(act > 0 | group k).
    Turned round, so that more is more specific: log G for a neuron that one group alone activates. The top
    share of it in each group is not LAPE's selection, which takes a share of all neurons for all groups together: that is
    `lape_masks`, the preset `lape`. For sites `mlp` and `expert` the sign is read at the gate where there is one
    (`activation_sign`). Cost: the forward, one comparison per activation.

    At `expert` a token that is not routed to the unit's expert counts as one that does not activate it: p_k = P(routed to the
    expert and act > 0 | group k), so that experts which a group seldom reaches are not its own.
    """
    return active(activation)


def check_shares(*, top: float = 0.01, bar: float = BAR) -> None:
    """Raise SetError for a top share or a bar that is out of range."""
    if not is_number(top) or not 0 < top < 1:
        raise SetError(f"top is {top!r}; expected a share of the neurons between 0 and 1")
    if not is_number(bar) or not 0 < bar < 1:
        raise SetError(f"bar is {bar!r}; expected a quantile between 0 and 1, such as 0.95")


def _checked(p: Tensor) -> Tensor:
    """The same, where it is probabilities; a mean of ones may be a rounding above 1."""
    if p.dim() != 3 or len(p) < 2:
        raise SetError(f"LAPE compares groups: expected p [group, layer, neuron] of two or more, got {list(p.shape)}")
    if not bool(((p >= 0) & (p <= 1 + ROUNDING)).all()):
        raise SetError("LAPE needs probabilities: expected p between 0 and 1, found a number outside or NaN")
    return p.clamp(max=1)
