"""Presets: whole pipelines of the literature, score and selection, each silent point of a paper an option with a default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from ..corpora.examples import Corpus
from ..neurons.errors import SetError, SiteError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from . import culnig, lape  # noqa: F401  (their presets are registered on import)
from .attribute import attribute
from .importance import summed
from .located import (
    PRESETS,
    Located,
    Passing,
    by_method,
    origin_of,
    plain,
    preset_options,
    register_preset,
    sited,
    top_pooled,
)
from .methods import TokenReduction
from .objectives import ObjectiveName
from .resume import Checkpoint
from .selection import contrasted, select

GATED = ("q", "k", "v", "attn_out", "gate", "up", "mlp_out")
PLAIN = ("q", "k", "v", "attn_out", "up", "mlp", "mlp_out")
SCOPES = ("global", "site", "layer")


def preset(name: str, subject: Subject, corpus: Corpus, **options: Any) -> Located:
    """Run a published pipeline: score the corpus and select each group's neurons, as one call.

    Presets are `tsn`, `lape`, `cape`, `culnig`, `fuxitranyu`, `random`; `preset_options(name)` gives a preset's own options
    with their defaults. All take `split`, `min_examples`, `max_tokens`, `padding_side`, `on_not_finite`, `keep_rows`,
    `recompute`, `checkpoint` and `progress`, as `attribute` does; a second pass keeps its state in a file of its own.

    Raises ValueError for a preset or an option that is not there; what scoring and selection raise besides.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; presets are {', '.join(PRESETS)}")
    known = [*preset_options(name), *Passing.__annotations__]
    for key in options:
        if key not in known:
            raise ValueError(f"{key!r} is no option of preset {name!r}; options are {', '.join(known)}")
    keeper = options.get("checkpoint")
    if keeper is None or isinstance(keeper, Checkpoint):
        return PRESETS[name](subject, corpus, **options)
    keeper = Checkpoint(Path(keeper), keep=True)
    located = PRESETS[name](subject, corpus, **{**options, "checkpoint": keeper})
    keeper.remove()
    return located


@register_preset("tsn")
def tsn(
    subject: Subject,
    corpus: Corpus,
    *,
    top: float | int = 0.10,
    site: str | Sequence[str] = "mlp",
    objective: ObjectiveName = "loss",
    tokens: TokenReduction = "sum",
    by: str = "values",
    scope: str = "global",
    contrast: str | None = None,
    **passing: Unpack[Passing],
) -> Located:
    """Task-specific neurons: the top 10 % by |gradient * activation| (Leng & Xiong, arXiv 2407.06488, Eq 3 and 9).

    What the paper leaves open: `site` (which columns of W_1 and W_2 are the neurons; several are scored in one pass),
    `tokens` (the reduction over tokens; "abs" takes absolute values before), `objective` ("loss" covers the answer's
    tokens, "loss_all" all), `by` ("values" takes absolute values before the mean over examples, "signed" none), `scope`
    ("global" over all layers and sites together, "site" in each site, "layer" in each layer), `split`. `contrast` is no part
    of it. Cost: one backward.
    """
    if scope not in SCOPES:
        raise SetError(f"unknown scope {scope!r}; scopes are {', '.join(SCOPES)}")
    sites = [site] if isinstance(site, str) else list(site)
    scores = attribute(
        subject, corpus, site=sites, objective=objective, tokens=tokens, controls=contrast == "controls", **passing
    )
    options = {
        "top": top, "site": site, "objective": objective, "tokens": tokens, "by": by, "scope": scope,
        "contrast": contrast, **passing,
    }  # fmt: skip
    if len(scores) == 1 or scope != "global":
        inner = "layer" if scope == "layer" else "global"
        sets: dict[str, NeuronSet] = {}
        for place, one in scores.items():
            chosen = select(one, top=top, by=by, scope=inner, contrast=contrast)
            sets |= {f"{group}/{place}" if len(scores) > 1 else group: found for group, found in chosen.items()}
    else:
        sets = _pooled(subject, corpus, scores, top, contrast, by)
    return Located("tsn", subject.fingerprint, by_method("taylor", scores), sets, options=plain(options))


@register_preset("random")
def random(
    subject: Subject,
    corpus: Corpus,
    *,
    top: float | int = 0.01,
    site: str = "mlp",
    scope: str = "global",
    seed: int = 0,
    **passing: Unpack[Passing],
) -> Located:
    """Sets drawn at random, as many neurons as another pipeline's: what its sets must beat. Cost: nothing."""
    scores = attribute(subject, corpus, method="random", site=site, options={"seed": seed}, **passing)
    options = {"top": top, "site": site, "scope": scope, "seed": seed, **passing}
    sets = select(scores, top=top, scope=scope)
    return Located("random", subject.fingerprint, {"random": scores}, sets, options=plain(options))


@register_preset("fuxitranyu")
def fuxitranyu(
    subject: Subject,
    corpus: Corpus,
    *,
    components: Sequence[str] | None = None,
    objective: ObjectiveName = "loss",
    tokens: TokenReduction = "sum",
    **passing: Unpack[Passing],
) -> Located:
    """Importance of every component of every layer, and no sets (FuxiTranyu, arXiv 2408.06273, Eq 1 to 3).

    Phi(component) is the sum of |gradient * activation| of its neurons. The paper counts eight components per layer and
    does not name them; here they are seven sites, q, k, v, attn_out, gate, up and mlp_out, where there is no gate mlp in its
    place. A site that is linear in one of these has its scores again, and would count twice in a layer's sum: attn those of v
    (exactly so where every head has values of its own), and where there is a gate mlp those of up. All in one pass. Cost: one
    backward.
    """
    chosen = _components(subject) if components is None else components
    sites = [chosen] if isinstance(chosen, str) else list(chosen)
    scores = attribute(subject, corpus, site=sites, objective=objective, tokens=tokens, **passing)
    options = {"components": sites, "objective": objective, "tokens": tokens, **passing}
    named = by_method("taylor", scores)
    return Located("fuxitranyu", subject.fingerprint, named, importance=summed(scores), options=plain(options))


def _components(subject: Subject) -> list[str]:
    try:
        subject.site("gate")
    except SiteError:
        return list(PLAIN)
    return list(GATED)


def _pooled(
    subject: Subject, corpus: Corpus, scores: dict[str, Scores], top: float | int, contrast: str | None, by: str
) -> dict[str, NeuronSet]:
    """The top share of several sites' neurons together."""
    ranked = {place: contrasted(one, contrast, by) for place, one in scores.items()}
    first = next(iter(scores.values()))
    total = sum(one.num_layers * one.width for one in scores.values())
    whole = isinstance(top, int) and not isinstance(top, bool)
    if not (whole and 1 <= top <= total) and not (isinstance(top, float) and 0 < top <= 1):
        raise SetError(f"top is {top!r}; expected a share between 0 and 1, or a whole number from 1 to {total}")
    count = int(top) if whole else max(1, round(top * total))
    sets: dict[str, NeuronSet] = {}
    for row, group in enumerate(first.groups):
        masks = top_pooled({place: values[row] for place, values in ranked.items()}, count)
        origin = origin_of("tsn", group, corpus, top=top, scope="global", contrast=contrast, by=by, sites=list(scores))
        sets |= sited(group, subject, masks, origin)
    return sets
