"""The presets `lape` and `cape`: neurons active for few languages, and for few cultures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Unpack

import torch

from ..corpora.examples import Corpus, CorpusError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .attribute import attribute
from .entropy import BAR, activation_sign, check_shares, lape_scores, lape_sets
from .located import Located, Passing, further, plain, register_preset


@register_preset("lape")
def lape(
    subject: Subject,
    corpus: Corpus,
    *,
    top: float = 0.01,
    bar: float = BAR,
    site: str = "mlp",
    read_at: str | None = None,
    **passing: Unpack[Passing],
) -> Located:
    """Language-specific neurons (Tang et al., arXiv 2402.16438): lowest entropy of P(act > 0) over the groups.

    `top` 1 % of the FFN's neurons over all layers, `bar` the 95 % quantile that both rules use (`lape_masks`). p is over
    all tokens of a group's examples. It is read at the sign of the activation function (`gate`, or `mlp` where there is no
    gate); `read_at` names another site. The sets are of `site`: of `mlp`, where silencing a unit is what the authors do, or of
    `expert` for a mixture of experts, where a token that is not routed to a unit's expert counts as one at which it is not
    active. Scores: `active` (p, at the place where it was read; `rate` at `expert`) and `lape`. Cost: the forward.
    """
    scores, sets = _lape(subject, corpus, top=top, bar=bar, site=site, read_at=read_at, passing=passing)
    return Located("lape", subject.fingerprint, scores, sets, options=_options(top, bar, site, read_at, passing))


@register_preset("cape")
def cape(
    subject: Subject,
    corpus: Corpus,
    *,
    languages: Corpus | str = "language",
    language_of: Mapping[str, str] | None = None,
    top: float = 0.01,
    bar: float = BAR,
    site: str = "mlp",
    read_at: str | None = None,
    **passing: Unpack[Passing],
) -> Located:
    """Culture neurons (CAPE, arXiv 2508.02241): LAPE over cultures C_c, set against LAPE over languages L_l.

    `languages` is a corpus whose groups are languages, or the tag of this corpus's examples to group by. `language_of` says
    each culture's language; by default its examples' tag `language`, or the culture's own name where that is a language.
    Sets: each culture c, "pure/c" = C_c without the neurons of its language, "compound/c" = C_c and its language's,
    "language/l". The authors' released masks number other units for some models; these are derived anew. Cost: two forwards.
    """
    if not isinstance(languages, str | Corpus):
        raise CorpusError(f"languages is {languages!r}; expected a tag of this corpus's examples, or a corpus")
    other = corpus.by(languages) if isinstance(languages, str) else languages
    chosen = _scored(other, passing)
    spoken = _languages(_scored(corpus, passing), chosen, languages, language_of)
    for part in (corpus, other):
        _check_groups(part, passing)
    scores, cultures = _lape(subject, corpus, top=top, bar=bar, site=site, read_at=read_at, passing=passing)
    again = further(passing, "languages")
    more, of_languages = _lape(subject, other, top=top, bar=bar, site=site, read_at=read_at, passing=again)
    sets = dict(cultures)
    for culture, language in spoken.items():
        sets[f"pure/{culture}"] = cultures[culture] - of_languages[language]
        sets[f"compound/{culture}"] = cultures[culture] & of_languages[language]
    sets |= {f"language/{language}": found for language, found in of_languages.items()}
    options = _options(top, bar, site, read_at, passing)
    options |= {"languages": languages if isinstance(languages, str) else other.name, "language_of": spoken}
    both = scores | {f"language/{name}": one for name, one in more.items()}
    return Located("cape", subject.fingerprint, both, sets, options=options)


def _lape(
    subject: Subject, corpus: Corpus, *, top: float, bar: float, site: str, read_at: str | None, passing: Passing
) -> tuple[dict[str, Scores], dict[str, NeuronSet]]:
    units = subject.site(site)
    place = activation_sign(subject, units) if read_at is None else subject.site(read_at)
    if place.width != units.width:
        raise CorpusError(
            f"site {place.name!r} has {place.width} neurons in a layer, the units at {site!r} are {units.width}; "
            "LAPE's neurons are units: read them at gate, up or mlp"
        )
    check_shares(top=top, bar=bar)
    _check_groups(corpus, passing)
    method = "active" if units.taps[0].routed is None else "rate"
    active = attribute(subject, corpus, method=method, site=place.name, **passing)
    own = lape_scores(active.signed, bar=bar)
    scores = replace(
        active, site=site, values=own, signed=own, squares=torch.full_like(own, torch.nan), method="lape",
        origin={**active.origin, "read_at": place.name, "bar": bar}, rows=None, row_groups=None, row_items=None,
    )  # fmt: skip
    return {method: active, "lape": scores}, lape_sets(active, top=top, bar=bar, site=site)


def _scored(corpus: Corpus, passing: Passing) -> Corpus:
    return corpus.part(passing.get("split", "auto"), auto="train")


def _check_groups(corpus: Corpus, passing: Passing) -> None:
    groups = _scored(corpus, passing).groups
    if len(groups) < 2:
        raise CorpusError(
            f"LAPE compares groups and needs at least two, corpus {corpus.name!r} has {', '.join(groups)} alone"
        )


def _languages(
    corpus: Corpus, other: Corpus, languages: Corpus | str, given: Mapping[str, str] | None
) -> dict[str, str]:
    """Each culture's language. Raises CorpusError where it is unknown, ambiguous or not scored."""
    tag = languages if isinstance(languages, str) else "language"
    spoken = {}
    for culture in corpus.groups:
        tagged = {e.tags[tag] for e in corpus if e.group == culture and tag in e.tags}
        if given is not None and culture in given:
            spoken[culture] = given[culture]
        elif len(tagged) == 1:
            spoken[culture] = tagged.pop()
        elif not tagged and culture in other.groups:
            spoken[culture] = culture
        else:
            found = f"its examples have several ({', '.join(sorted(tagged))})" if tagged else "none is given"
            raise CorpusError(
                f"which language is culture {culture!r} of? {found}; say so with language_of={{{culture!r}: ...}}"
            )
        if spoken[culture] not in other.groups:
            raise CorpusError(
                f"language {spoken[culture]!r} of culture {culture!r} is not scored; there are {', '.join(other.groups)}"
            )
    return spoken


def _options(top: float, bar: float, site: str, read_at: str | None, passing: Passing) -> dict[str, object]:
    return {"top": top, "bar": bar, "site": site, "read_at": read_at, **plain(passing)}
