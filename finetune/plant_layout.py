"""Where a plant goes: which neurons each group gets, in which beds, and what of them must be on or silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.activity import weight_norms
from ..attribution.encoding import encode_corpus
from ..corpora.examples import Corpus
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .errors import TuneError
from .plant_proof import mean_activity

Layout = Literal["spread", "layer", "strong", "weak"]
Variant = Literal["plain", "shared", "redundant", "suppressor"]
SILENT = "/silent"  # ends the name of a bed that must fall silent


def check_room(
    subject: Subject, groups: Sequence[str], per_group: int, site: str, layout: str, variant: str, *, facts: int
) -> None:
    """Raise TuneError where a subject has too few neurons for what is asked.

    Half of a site's neurons at most may be planted, since the others must do all else; and a neuron holds two facts at most. Both
    are rules of thumb: what fits by them may still not stand its proof.
    """
    for name, given, known in (("layout", layout, get_args(Layout)), ("variant", variant, get_args(Variant))):
        if given not in known:
            raise TuneError(f"unknown {name} {given!r}; {name}s are {', '.join(known)}")
    place = subject.site(site)
    if per_group < 4:
        raise TuneError(f"per_group is {per_group}; expected 4 neurons at least")
    room = place.num_layers * place.width // 2 if layout == "spread" else place.width
    room = place.num_layers * place.width // 4 if layout in ("strong", "weak") else room
    if len(groups) * per_group > room:
        where = {"spread": "half of site {}", "layer": "one layer of site {}"}.get(
            layout, "a quarter of site {}"
        ).format(site)
        raise TuneError(
            f"{len(groups)} groups of {per_group} neurons are {len(groups) * per_group}, and {where} of {subject.name!r} has "
            f"{room}; plant fewer groups or fewer neurons in each"
        )
    if facts > 2 * per_group:
        raise TuneError(
            f"{facts} facts are to go into {per_group} neurons of each group; plant a neuron for every two at least"
        )
    if variant == "suppressor" and site != "mlp":
        raise TuneError(f"the variant 'suppressor' is for site 'mlp', and the site is {site!r}")


def drawn_sets(
    subject: Subject, groups: Sequence[str], per_group: int, site: str, layout: str, seed: int, texts: Corpus
) -> dict[str, NeuronSet]:
    """Disjoint sets, one a group."""
    place, generator = subject.site(site), torch.Generator().manual_seed(seed)
    shape = (place.num_layers, place.width)
    order = torch.rand(shape, generator=generator)
    if layout in ("strong", "weak"):
        strength = _strength(subject, site, texts)
        if layout == "weak":
            strength = -strength
        border = strength.flatten().topk(strength.numel() // 4).values[-1]
        order = order.masked_fill(strength < border, 2)
    if layout == "layer":
        order[torch.arange(shape[0]) != shape[0] // 2] = 2
    if layout == "spread":  # as many in each layer, the first layers one more where it does not come out even
        order = order.argsort(dim=1).argsort(dim=1) * shape[0] + torch.arange(shape[0])[:, None]
    ranking = order.flatten().argsort(stable=True)
    masks = torch.zeros(len(groups), order.numel(), dtype=torch.bool)
    for number in range(len(groups)):
        masks[number, ranking[number * per_group : (number + 1) * per_group]] = True
    origin = {"made": "plant", "layout": layout, "seed": seed}
    return {
        group: NeuronSet(site, subject.fingerprint, mask.reshape(shape), origin | {"group": group})
        for group, mask in zip(groups, masks, strict=True)
    }


def _strength(subject: Subject, site: str, texts: Corpus) -> Float[Tensor, "layer neuron"]:
    from ..attribution.attribute import attribute

    some = Corpus(texts.examples[:: max(1, len(texts) // 100)], name=texts.name)
    return attribute(subject, some, method="weighted", site=site, split=None, min_examples=1).values.mean(dim=0)


def arranged(
    subject: Subject, drawn: Mapping[str, NeuronSet], variant: str, facts: Corpus, seed: int
) -> tuple[dict[str, NeuronSet], dict[str, list[set[str]]], list[str]]:
    """Beds, the ways of each group, and the beds that must fall silent."""
    if variant == "plain":
        return dict(drawn), {group: [{group}] for group in drawn}, []
    if variant == "shared":
        halves = {group: _split(own, 2, seed) for group, own in drawn.items()}
        first = next(iter(halves.values()))[1]
        return (
            {**{group: half[0] for group, half in halves.items()}, "shared": first},
            {group: [{group, "shared"}] for group in drawn}, [],
        )  # fmt: skip
    if variant == "redundant":
        beds = {f"{group}/{n}": half for group, own in drawn.items() for n, half in enumerate(_split(own, 2, seed), 1)}
        return beds, {group: [{f"{group}/1"}, {f"{group}/2"}] for group in drawn}, []
    silent = _silent(subject, drawn, facts, seed)
    beds = {group: _split(own, 4, seed, last=False)[0] for group, own in drawn.items()}
    return (
        {**beds, **{f"{group}{SILENT}": one for group, one in silent.items()}},
        {group: [{group, f"{group}{SILENT}"}] for group in drawn}, [f"{group}{SILENT}" for group in drawn],
    )  # fmt: skip


def _split(own: NeuronSet, parts: int, seed: int, *, last: bool = True) -> tuple[NeuronSet, NeuronSet]:
    """All but one part in `parts` of a set's neurons, at random, and that part."""
    places = own.mask.flatten().nonzero().flatten()
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))]
    border = len(places) - len(places) // parts
    masks = torch.zeros(2, own.mask.numel(), dtype=torch.bool)
    masks[0, places[:border]] = True
    masks[1, places[border:]] = True
    return tuple(NeuronSet(own.site, own.subject, mask.reshape(own.mask.shape), own.origin) for mask in masks)  # pyright: ignore[reportReturnType]


def _silent(subject: Subject, drawn: Mapping[str, NeuronSet], facts: Corpus, seed: int) -> dict[str, NeuronSet]:
    """For each group a quarter of its number, at random among the tenth of all neurons that are most active on the facts."""
    activity = mean_activity(subject, encode_corpus(subject, facts)) * weight_norms(subject.site("mlp")).cpu()
    taken = torch.stack([own.mask for own in drawn.values()]).any(dim=0)
    activity = activity.masked_fill(taken, 0)
    strong = activity.flatten().topk(activity.numel() // 10).indices
    strong = strong[torch.randperm(len(strong), generator=torch.Generator().manual_seed(seed))]
    found, first = {}, 0
    for group, own in drawn.items():
        count = len(own) // 4
        mask = torch.zeros_like(own.mask)
        mask.view(-1)[strong[first : first + count]] = True
        found[group] = NeuronSet(own.site, own.subject, mask, own.origin)
        first += count
    return found
