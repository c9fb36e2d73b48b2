"""Redundancy: which neurons' activations others of their layer predict, and what share of a set is redundant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.activations import reference
from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import Record, library_versions, record_type
from ..neurons.errors import SetError, SiteError
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .ablate import control
from .overlap import comparable

LEAST = 2  # tokens a predictor, below which a fit is of noise
_BLOCK = 1 << 24  # numbers of the regressions that are solved at once


@dataclass(frozen=True, eq=False)
class Redundancy:
    """How well each neuron's activation is known from others of its layer, on tokens of items that were held out.

    `correlation` [layer, neuron] is the correlation, on held-out tokens, with `partner` [layer, neuron], the neuron
    whose absolute correlation was highest on the others. `r2` [layer, neuron] is the share of the neuron's held-out variance that
    a linear prediction fitted on the others explains; below 0 it is worse than the mean. NaN for a neuron that does not
    vary. `chance` [layer] is the 97.5 % quantile over neurons of r2 when every neuron's tokens are shuffled. `shares` [set] is
    the share of a set's neurons with an r2 of `threshold` or more, and `control_shares` [set, repeat] that of random
    sets with the same counts per layer; `whole` is the share of all neurons.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    threshold: float
    correlation: Float[Tensor, "layer neuron"]
    partner: Int[Tensor, "layer neuron"]
    r2: Float[Tensor, "layer neuron"]
    chance: Float[Tensor, " layer"]
    sizes: Int[Tensor, " set"]
    shares: Float[Tensor, " set"]
    control_shares: Float[Tensor, "set repeat"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @property
    def redundant(self) -> Tensor:
        """Mask [layer, neuron] of the neurons that others predict."""
        return self.r2 >= self.threshold

    @property
    def whole(self) -> float:
        """Share of the site's neurons that others predict."""
        return float(self.redundant.float().mean())

    def to_record(self, name: str = "redundancy") -> Record:
        """The table as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {
            "site": self.site, "subject": self.subject, "groups": list(self.groups), "threshold": self.threshold,
            "origin": dict(self.origin),
        }  # fmt: skip
        return Record("redundancy", name, arrays, meta)


@record_type("redundancy")
def redundancy_from_record(record: Record) -> Redundancy:
    """The table back from an atlas."""
    return Redundancy(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def redundancy(
    subject: Subject,
    corpus: Corpus,
    sets: Mapping[str, NeuronSet] | None = None,
    *,
    site: str = "mlp",
    predictors: int = 16,
    threshold: float = 0.9,
    tokens: int = 4096,
    ridge: float = 1e-3,
    controls: int = 20,
    seed: int = 0,
    split: str | None = "auto",
    max_tokens: int = 4096,
) -> Redundancy:
    """Which of a site's neurons are redundant: GhostRNN's observation, for the neurons of an FFN.

    GhostRNN (arXiv 2411.14489) finds dimensions of a trained hidden state that are cheap functions of a few others, and
    leaves open how alike they must be. Here a neuron is predicted by ridge regression (on standardised activations,
    penalty `ridge` per token) from the `predictors` neurons of its layer that correlate with it most, all chosen and fitted on one
    half of the items and measured on the other; it is redundant when the share of variance explained there is
    `threshold` or more. Two neurons that predict each other are both redundant, though only one could go.

    `tokens` tokens of each half are read, and layers * tokens * neurons numbers kept; correlations take the square of a
    layer's neurons. Raises CorpusError with fewer than two items or than 2 tokens a predictor in a half, SiteError for
    routed experts, SetError when sets are of another site or a number is out of range.
    """
    place = subject.site(site)
    if place.taps[0].routed is not None:
        raise SiteError(
            "neurons of routed experts (site 'expert') are not active at the same tokens; give another site"
        )
    if not 1 <= predictors < place.width:
        raise SetError(f"predictors is {predictors}; expected 1 to {place.width - 1}, the other neurons of a layer")
    if not 0 < threshold <= 1:
        raise SetError(f"threshold is {threshold}; expected a share of variance above 0 and at most 1")
    chosen = dict(sets or {})
    for neurons in comparable(chosen) if chosen else []:
        neurons.check(subject)
        if neurons.site != site:
            raise SetError(f"the sets are of site {neurons.site!r}, redundancy is asked for site {site!r}")
    corpus = corpus.part(split, auto="train")
    train, test = (
        reference(subject, half, site=site, split=None, pool=tokens, seed=seed, max_tokens=max_tokens).pool
        for half in _halves(corpus, seed)
    )
    fewest = min(len(train[0]), len(test[0]))
    if fewest < LEAST * predictors:
        raise CorpusError(
            f"corpus {corpus.name!r} has {len(train[0])} and {len(test[0])} tokens in its two halves; {predictors} predictors need "
            f"{LEAST * predictors} or more in each: give more examples, or fewer predictors"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = [_layer(a, b, predictors, ridge, generator) for a, b in zip(train, test, strict=True)]
    correlation, partner, r2, chance = (torch.stack(column) for column in zip(*rows, strict=True))
    above = r2 >= threshold
    randoms = [[control(one, name=name, repeat=r, seed=seed) for r in range(controls)] for name, one in chosen.items()]
    return Redundancy(
        site, subject.fingerprint, tuple(chosen), threshold, correlation, partner, r2, chance,
        torch.tensor([len(one) for one in chosen.values()]),
        torch.stack([_share(above, one) for one in chosen.values()]) if chosen else torch.zeros(0),
        torch.tensor([[float(_share(above, one)) for one in row] for row in randoms]).reshape(len(chosen), controls),
        {
            "corpus": corpus.name, "corpus_hash": corpus.hash, "predictors": predictors, "ridge": ridge,
            "tokens": [len(train[0]), len(test[0])], "controls": controls, "seed": seed, "split": split,
            "sets": {name: one.digest for name, one in chosen.items()}, "versions": library_versions(),
        },
    )  # fmt: skip


def _halves(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """The examples of a random half of the items, and the others: tokens of one item are alike."""
    items = list(dict.fromkeys(example.item for example in corpus))
    if len(items) < 2:
        raise CorpusError(f"corpus {corpus.name!r} has one item; two or more are needed, to hold some out")
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    first = {items[place] for place in order[: len(items) // 2]}
    parts = [[e for e in corpus if (e.item in first) == inside] for inside in (True, False)]
    return Corpus(tuple(parts[0]), name=corpus.name), Corpus(tuple(parts[1]), name=corpus.name)


def _layer(
    train: Float[Tensor, "token neuron"],
    test: Float[Tensor, "other neuron"],
    predictors: int,
    ridge: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Correlation, partner and r2 of every neuron of a layer, and the quantile of r2 by chance."""
    correlation, partner, r2 = _predicted(train, test, predictors, ridge)
    shuffled = (_shuffled(part, generator) for part in (train, test))
    by_chance = _predicted(*shuffled, predictors, ridge)[2]  # pyright: ignore[reportCallIssue]
    return correlation, partner, r2, by_chance.nanquantile(0.975)


def _predicted(
    train: Float[Tensor, "token neuron"], test: Float[Tensor, "other neuron"], predictors: int, ridge: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    still = (std == 0) | (test.std(dim=0, correction=0) == 0)
    x, y = ((part - mean) / torch.where(std > 0, std, 1.0) for part in (train, test))
    gram = x.T @ x / len(x)
    near = gram.abs().fill_diagonal_(-1.0).topk(predictors, dim=1).indices  # [neuron, predictor]
    r2, width = torch.empty(len(gram)), len(gram)
    size = max(1, _BLOCK // (predictors * max(predictors, len(y))))
    penalty = ridge * torch.eye(predictors)
    for start in range(0, width, size):
        rows, chosen = slice(start, start + size), near[start : start + size]
        within = gram[chosen[:, :, None], chosen[:, None]] + penalty
        weights = torch.linalg.solve(within, gram[rows].gather(1, chosen)[..., None])[..., 0]
        guess = torch.einsum("tnp,np->tn", y[:, chosen], weights)
        spread = (y[:, rows] - y[:, rows].mean(dim=0)).square().sum(dim=0)
        r2[rows] = 1 - (y[:, rows] - guess).square().sum(dim=0) / spread
    partner = near[:, 0]
    centred = y - y.mean(dim=0)
    both = (centred * centred[:, partner]).sum(dim=0)
    correlation = both / (centred.norm(dim=0) * centred[:, partner].norm(dim=0))
    return correlation.masked_fill(still, torch.nan), partner, r2.masked_fill(still, torch.nan)


def _shuffled(part: Tensor, generator: torch.Generator) -> Tensor:
    """Every neuron's tokens in an order of its own."""
    return part.gather(0, torch.rand(part.shape, generator=generator).argsort(dim=0))


def _share(above: Tensor, neurons: NeuronSet) -> Float[Tensor, ""]:
    """Share of a set's neurons that others predict; NaN for an empty set."""
    return above[neurons.mask].float().mean()
