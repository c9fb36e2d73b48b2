"""Controls: neurons that a set is held against, matched to it by layer and site, and by more where asked.

A random set in a sparse model is mostly idle. Controls matched by activation size or by score are as busy as the set;
other groups' sets were found the same way for something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.interventions import Reference
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet

Match = Literal["layer", "activation", "score", "groups"]
MATCHES: tuple[str, ...] = get_args(Match)
Parts = tuple[NeuronSet, ...]
Sizes = Mapping[str, Float[Tensor, "layer neuron"]]


@dataclass(frozen=True)
class Drawing:
    """How the controls of sets are drawn.

    `match` is one of: `layer` (as many in each layer of the site), `activation` and `score` (so, and of like `sizes`
    [layer, neuron] by site), `groups` (as many out of another group's set, the set's own neurons left out).
    """

    match: str
    seed: int
    sizes: Sizes | None = None

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise SetError(f"unknown match {self.match!r}; controls are matched by {', '.join(MATCHES)}")

    def control(self, sets: Mapping[str, Parts], *, name: str, repeat: int) -> Parts:
        """The control of the named set for one repeat; sets of different names draw differently, also when equal."""
        if self.match == "groups":
            return _of_another(sets, name=name, repeat=repeat, seed=self.seed)
        drawn = []
        for part in sets[name]:
            own = name if len(sets[name]) == 1 else f"{name}/{part.site}"
            if self.sizes is None:
                drawn.append(control(part, name=own, repeat=repeat, seed=self.seed))
            else:
                drawn.append(matched(part, self.sizes[part.site], seed=seed_of(self.seed, own, repeat)))
        return tuple(drawn)

    def closeness(self, neurons: Parts, control: Parts) -> float:
        """Mean size of a control's neurons over that of the set's; 1 is a perfect match, NaN where nothing is matched."""
        if self.sizes is None or not any(map(bool, neurons)):
            return float("nan")
        means = [
            torch.cat([self.sizes[part.site][part.mask] for part in parts]).double().mean()
            for parts in (control, neurons)
        ]
        return float(means[0] / means[1])


def control(neurons: NeuronSet, *, name: str, repeat: int, seed: int) -> NeuronSet:
    """The random control of a set for one repeat; sets of different names draw differently, also when they are equal."""
    return NeuronSet.random(neurons, seed=seed_of(seed, name, repeat))


def seed_of(seed: int, name: str, repeat: int) -> int:
    """The seed of one control, from the seed of all, the set's name and the number of the repeat."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}|{repeat}".encode()).digest()[:6], "big")


def matched(like: NeuronSet, sizes: Float[Tensor, "layer neuron"], *, seed: int) -> NeuronSet:
    """As many neurons in each layer as `like` has, none of its own where a layer has enough, of about the same sizes.

    In each layer the free neurons are put in order of size. Every neuron of the set takes one that stands at most as many
    places from where it would stand itself as the set has neurons in the layer, or ten; places are shifted where two want
    the same. A set of a layer's largest neurons thus gets the largest of the rest, which are smaller.
    """
    if sizes.shape != like.mask.shape:
        raise SetError(f"sizes to match have shape {list(sizes.shape)}, the set {list(like.mask.shape)}")
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros_like(like.mask)
    for layer, count in enumerate(like.per_layer.tolist()):
        if not count:
            continue
        free = (~like.mask[layer]).nonzero().flatten()
        if len(free) < count:
            free = torch.arange(like.width)
        free = free[torch.randperm(len(free), generator=generator)]  # so that ties fall anyhow
        free = free[sizes[layer, free].argsort(stable=True)]
        place = torch.searchsorted(sizes[layer, free].contiguous(), sizes[layer][like.mask[layer]].contiguous())
        reach = max(10, count)
        place = place + torch.randint(-reach, reach + 1, (count,), generator=generator)
        steps = torch.arange(count)
        place = (place.clamp(0, len(free) - 1).sort().values - steps).cummax(dim=0).values + steps
        mask[layer, free[torch.minimum(place, len(free) - count + steps)]] = True
    return NeuronSet(like.site, like.subject, mask, {"made": "matched control", "seed": seed, "like": like.digest})


def activation_sizes(references: Mapping[str, Reference]) -> Sizes:
    """Root mean square of every neuron's activation over a reference corpus, by site; 0 where an expert took no token."""
    return {
        site: (one.mean.double().square() + one.std.double().square()).sqrt().nan_to_num(nan=0.0)
        for site, one in references.items()
    }


def score_norms(scores: Sequence[Scores]) -> Sizes:
    """Euclidean norm over groups of every neuron's score, by site. Raises SetError when a site has two scores."""
    found: dict[str, Tensor] = {}
    for one in scores:
        if one.site in found:
            raise SetError(f"two scores of site {one.site!r} to match controls by; expected one a site")
        found[one.site] = one.values.double().square().sum(dim=0).sqrt()
    return found


def _of_another(sets: Mapping[str, Parts], *, name: str, repeat: int, seed: int) -> Parts:
    """As many neurons out of another group's set, the groups taken in turn.

    The set's own are left out where enough others remain; of equal sets that share neurons it is the whole set.
    """
    pools = []
    for other in (parts for key, parts in sets.items() if key != name):
        there = {part.site: part for part in other}
        pool = [_enough(there.get(part.site), part) for part in sets[name]]
        if None not in pool:
            pools.append(pool)
    if not pools:
        raise SetError(
            f"no other group's set has the {sum(map(len, sets[name]))} neurons of {name!r}; expected sets of one size "
            "(select with a share or a number), or another match"
        )
    generator = torch.Generator().manual_seed(seed_of(seed, name, repeat))
    chosen = pools[repeat % len(pools)]
    return tuple(_some(pool, len(part), generator) for pool, part in zip(chosen, sets[name], strict=True))


def _enough(other: NeuronSet | None, own: NeuronSet) -> NeuronSet | None:
    """The other's neurons, without the own ones where enough remain; None where there are too few in any case."""
    if other is None or len(other) < len(own):
        return None
    apart = other - own
    return apart if len(apart) >= len(own) else other


def _some(neurons: NeuronSet, count: int, generator: torch.Generator) -> NeuronSet:
    """So many of a set's neurons, drawn without replacement."""
    members = neurons.mask.nonzero()
    kept = members[torch.randperm(len(members), generator=generator)[:count]]
    mask = torch.zeros_like(neurons.mask)
    mask[kept[:, 0], kept[:, 1]] = True
    return NeuronSet(neurons.site, neurons.subject, mask, {"made": "part", "of": dict(neurons.origin)})
