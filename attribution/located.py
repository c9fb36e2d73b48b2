"""Located: what a pipeline found, and the registry of pipelines (presets of score and selection)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .encoding import PaddingSide
from .engine import NotFiniteRule, Progress
from .importance import Importance
from .resume import Checkpoint


class Passing(TypedDict, total=False):
    """What every preset hands on to `attribute`: how the pass runs and what it keeps, not what it computes."""

    split: str | None
    min_examples: int
    max_tokens: int
    padding_side: PaddingSide
    on_not_finite: NotFiniteRule
    keep_rows: bool
    recompute: bool | None
    checkpoint: Checkpoint | None
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class Located:
    """The scores and the sets of a preset.

    A set is of one site. Where a preset uses one site its sets are named after groups; where it pools several, after
    "group/site": `of(group)` gives a group's sets by site, `on(site)` a site's sets by group, as `ablate` and `overlap` take
    them. To silence a group everywhere, nest one `intervene` per site. `importance` is the table of a preset that selects
    nothing. `options` are all of the preset's options with the values used.
    """

    preset: str
    subject: str
    scores: Mapping[str, Scores]
    sets: Mapping[str, NeuronSet] = field(default_factory=dict)
    importance: Importance | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of the sets."""
        return tuple(dict.fromkeys(one.site for one in self.sets.values()))

    def of(self, group: str) -> dict[str, NeuronSet]:
        """A group's sets by site. Raises KeyError that lists the groups."""
        found = {one.site: one for name, one in self.sets.items() if self._group(name, one) == group}
        if not found:
            known = dict.fromkeys(self._group(name, one) for name, one in self.sets.items())
            raise KeyError(f"no sets of {group!r}; there are {', '.join(known) or 'none'}")
        return found

    def on(self, site: str) -> dict[str, NeuronSet]:
        """A site's sets by group. Raises KeyError that lists the sites."""
        if site not in self.sites:
            raise KeyError(f"no sets of site {site!r}; there are {', '.join(self.sites) or 'none'}")
        return {self._group(name, one): one for name, one in self.sets.items() if one.site == site}

    @property
    def summary(self) -> list[dict[str, Any]]:
        """One row per set: its name, site, number of neurons, share of the site, neurons by layer."""
        return [
            {"set": name, "site": one.site, "neurons": len(one), "share": one.share, "layers": one.per_layer.tolist()}
            for name, one in self.sets.items()
        ]

    def _group(self, name: str, one: NeuronSet) -> str:
        return name.removesuffix(f"/{one.site}") if len(self.sites) > 1 else name


PRESETS: dict[str, Callable[..., Located]] = {}


def register_preset(name: str) -> Callable[[Callable[..., Located]], Callable[..., Located]]:
    """Register a function (Subject, Corpus, *, options) -> Located as a preset. A name that is there already is replaced."""

    def register(function: Callable[..., Located]) -> Callable[..., Located]:
        PRESETS[name] = function
        return function

    return register


def preset_options(name: str) -> dict[str, Any]:
    """A preset's own options with their defaults."""
    parameters = inspect.signature(PRESETS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they can be written down."""
    return {key: value for key, value in options.items() if key not in ("progress", "checkpoint")}


def further(passing: Passing, name: str) -> Passing:
    """The same for a preset's next pass, whose state is kept in a file of its own."""
    keeper = passing.get("checkpoint")
    return passing if keeper is None else {**passing, "checkpoint": keeper.part(name)}


def top_pooled(
    ranked: Mapping[str, Float[Tensor, "layer neuron"]], count: int
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """The `count` highest of several sites' neurons together, as a mask for each site.

    Ties fall to the earlier site, then the lower layer, then the lower index.
    """
    flat = torch.cat([values.flatten() for values in ranked.values()])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:count]] = True
    parts = mask.split([values.numel() for values in ranked.values()])
    return {site: part.reshape(ranked[site].shape) for site, part in zip(ranked, parts, strict=True)}


def by_method(method: str, scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Scores by site under the names that `attribute` gives: the method's, or "method/site" where there are several sites."""
    return {f"{method}/{site}" if len(scores) > 1 else method: one for site, one in scores.items()}


def origin_of(name: str, group: str, corpus: Corpus, **options: Any) -> dict[str, Any]:
    """How a preset's set came about."""
    return {"made": name, "group": group, "corpus": corpus.name, "corpus_hash": corpus.hash, **options}


def sited(name: str, subject: Subject, masks: Mapping[str, Tensor], origin: Mapping[str, Any]) -> dict[str, NeuronSet]:
    """A group's sets from masks by site, under the names that `Located` gives them."""
    many = len(masks) > 1
    return {
        f"{name}/{site}" if many else name: NeuronSet(site, subject.fingerprint, mask, origin)
        for site, mask in masks.items()
    }
