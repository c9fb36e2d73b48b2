"""Relevance: gradient times activation under the backward rules of attention-aware layer-wise relevance propagation."""

from __future__ import annotations

from functools import partial

from ..neurons.sites import Site
from .engine import Job, one_pass, run_batch
from .methods import Method, register_method, taylor
from .readings import Reading
from .relevance_rules import Attention, find_rules
from .sums import Sums


@register_method("relp", reads="job")
def relp(job: Job, site: Site, *, attention: Attention = "pattern") -> Sums:
    """Relevance of a neuron: g'(t) * w(t), with g' the gradient under rules that keep relevance instead of slopes.

    - norms: y = gain * (x - mean) / sigma with sigma a constant (RelP's LN-rule, AttnLRP Eq 18);
    - nonlinearity: act(x) = x * (act(x) / x) with the quotient a constant (identity rule, AttnLRP Eq 9);
    - gate times up: each factor gets half of the gradient (half rule, AttnLRP's uniform rule Eq 14);
    - attention: `pattern`, the attention pattern is a constant and values get all (RelP's AH-rule); or `softmax`, the softmax has
      its own gradient and each of the two products splits in halves, so values get 1/2, queries and keys 1/4 (AttnLRP 3.3).

    Linear layers have their own gradient (the epsilon rule with epsilon 0). Rotations, residual sums and soft caps are left as
    they are. Without biases and with `pattern`, the relevance of the embeddings sums to the logit that is explained.
    Achtibat et al. 2024 (arXiv 2402.05602), Jafari et al. 2025 (RelP, arXiv 2508.21258); implemented from the papers.

    Cost: one forward and one backward, with a few elementwise operations at norms and FFNs. Raises SiteError that names the
    family where a norm, an FFN or the attention is not found or not of that form.
    """
    return _relevance(job, site, attention)


@register_method("lrp", reads="job")
def lrp(job: Job, site: Site) -> Sums:
    """AttnLRP (Achtibat et al. 2024): `relp` with the attention rule `softmax`."""
    return _relevance(job, site, "softmax")


def _relevance(job: Job, site: Site, attention: Attention) -> Sums:
    rules = find_rules(job.subject, attention)
    if attention == "pattern" and site.name in ("q", "k"):
        raise ValueError(
            f"site {site.name!r} has no relevance while the attention pattern is a constant; "
            "take options={'attention': 'softmax'}"
        )
    reading = Reading(Method("relp", "gradient", taylor), site, job.tokens, job.keep_rows)
    return one_pass(job, [reading], checkpoint=job.checkpoint, run=partial(run_batch, within=rules.attached))[0]
