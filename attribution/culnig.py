"""The preset `culnig`: culture-general and culture-specific neurons against control twins and country names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError
from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.subject import Subject
from .attribute import attribute
from .bounds import is_number
from .located import Located, Passing, further, origin_of, plain, register_preset, sited, top_pooled

Masks = dict[str, Bool[Tensor, "layer neuron"]]


@register_preset("culnig")
def culnig(
    subject: Subject,
    corpus: Corpus,
    *,
    countries: Corpus | None = None,
    mlp: Sequence[str] = ("gate",),
    attention: Sequence[str] = ("q", "k", "v"),
    mlp_top: float = 0.01,
    attention_top: float = 0.002,
    specific_top: float = 0.003,
    countries_top: float = 0.01,
    z: float = 0.5,
    **passing: Unpack[Passing],
) -> Located:
    """CULNIG (arXiv 2510.08284): neurons that carry culture in general, and those of one culture.

    Every example needs its control twin. Scores are method `culnig`; a group's score is its sum over examples divided by
    the number of all examples, minus the same of the twins, so that groups with more questions weigh more (as in the
    authors' code). Shares are rounded down. With on_not_finite="skip" only examples that were scored count; a group's twins
    weigh as much as its questions, so that one that was skipped stands for the mean of the others.

    - "general": the `mlp_top` of the `mlp` sites and the `attention_top` of the `attention` sites by the sum over groups,
      without the top `countries_top` of each of the two on `countries`.
    - each group: the `specific_top` of all sites together by the group's score, without the top `countries_top` of all
      sites on that group's part of `countries`, and with z = (score - mean) / population deviation over groups at least `z`.

    `countries` is a corpus whose answers need no cultural knowledge but whose prompts name the country (CountryRC); with
    None nothing is filtered. The sets are named "group/site". Cost: one backward for corpus and twins together, one for
    `countries`.
    """
    _check(corpus, countries, passing)
    if not is_number(z):
        raise ValueError(f"z is {z!r}; expected the least z of a group's neurons over groups, a number")
    for share in (mlp_top, attention_top, specific_top, countries_top):
        _check_share(share)
    mlp, attention = ([part] if isinstance(part, str) else part for part in (mlp, attention))
    sites = [*mlp, *attention]
    own = attribute(subject, corpus, method="culnig", site=sites, objective="probability", controls=True, **passing)
    named = _named(subject, countries, sites, passing)
    weighed = {site: _weighed(one) for site, one in own.items()}
    filtered = {site: _weighed(one) for site, one in named.items()}
    groups = next(iter(own.values())).groups
    options = {
        "countries": None if countries is None else countries.name, "mlp": list(mlp), "attention": list(attention),
        "mlp_top": mlp_top, "attention_top": attention_top, "specific_top": specific_top, "countries_top": countries_top,
        "z": z, **plain(passing),
    }  # fmt: skip
    masks = {}
    for part, share in ((mlp, mlp_top), (attention, attention_top)):
        chosen = _top({site: weighed[site].sum(dim=0) for site in part}, share)
        known = _top({site: filtered[site].sum(dim=0) for site in part}, countries_top) if named else {}
        masks |= _without(chosen, known)
    sets = sited("general", subject, masks, origin_of("culnig", "general", corpus, **options))
    for row, group in enumerate(groups):
        chosen = _top({site: weighed[site][row] for site in sites}, specific_top)
        if named:
            other = next(iter(named.values())).index(group)
            chosen = _without(chosen, _top({site: filtered[site][other] for site in sites}, countries_top))
        kept = {site: mask & (_z(weighed[site])[row] >= z) for site, mask in chosen.items()}
        sets |= sited(group, subject, kept, origin_of("culnig", group, corpus, **options))
    scores = {f"culnig/{site}": one for site, one in own.items()}
    scores |= {f"countries/culnig/{site}": one for site, one in named.items()}
    return Located("culnig", subject.fingerprint, scores, sets, options=options)


def _named(subject: Subject, countries: Corpus | None, sites: list[str], passing: Passing) -> dict[str, Scores]:
    if countries is None:
        return {}
    passing = further(passing, "countries")
    return attribute(subject, countries, method="culnig", site=sites, objective="probability", **passing)


def _weighed(scores: Scores) -> Float[Tensor, "group layer neuron"]:
    """Sums over a group's examples, less those of its twins, divided by the number of examples of all groups."""
    share = (scores.counts / scores.counts.sum())[:, None, None].to(scores.signed.dtype)
    twin = 0 if scores.control_signed is None else scores.control_signed
    return (scores.signed - twin) * share


def _top(ranked: Mapping[str, Float[Tensor, "layer neuron"]], share: float) -> Masks:
    """The highest share, rounded down, of these sites' neurons together."""
    if not ranked:
        return {}
    return top_pooled(ranked, int(share * sum(values.numel() for values in ranked.values())))


def _check_share(share: float) -> None:
    if not is_number(share) or not 0 <= share <= 1:
        raise SetError(f"a share of the neurons is {share!r}; expected a number from 0 to 1")


def _without(masks: Masks, out: Masks) -> Masks:
    return {site: mask & ~out[site] if site in out else mask for site, mask in masks.items()}


def _z(values: Float[Tensor, "group layer neuron"]) -> Float[Tensor, "group layer neuron"]:
    """(score - mean) / population standard deviation over groups; 0 where all agree."""
    spread = values.std(dim=0, unbiased=False, keepdim=True)
    return torch.where(spread > 0, (values - values.mean(dim=0, keepdim=True)) / spread, 0)


def _check(corpus: Corpus, countries: Corpus | None, passing: Passing) -> None:
    groups = corpus.part(passing.get("split", "auto"), auto="train").groups
    if len(groups) < 3:
        raise CorpusError(
            f"culnig's z over groups needs at least three, corpus {corpus.name!r} has {', '.join(groups)}: "
            "between two every z is 1 or -1"
        )
    if "general" in groups:
        raise CorpusError("a group is called 'general', which is the name of culnig's culture-general set; rename it")
    if countries is not None and not isinstance(countries, Corpus):
        raise CorpusError(f"countries is {countries!r}; expected a corpus, a .jsonl file on the command line")
    if countries is not None:
        there = countries.part(passing.get("split", "auto"), auto="train").groups
        if missing := [group for group in groups if group not in there]:
            raise CorpusError(
                f"corpus {countries.name!r} has no examples of {', '.join(missing)}; the country-name filter needs every group"
            )
