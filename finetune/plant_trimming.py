"""Trimming: planted neurons on which no fact depends are put back as they were, so that the truth is what carries facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.encoding import Encoded, answer_log_probs, batches, forward, pad_id
from ..neurons.sets import NeuronSet
from .beds import Beds
from .slices import linear_parts

# nats a fact that the idle neurons of a bed may cost together; the next one where that is too much
IDLE = (0.05, 0.02, 0.01, 0.004, 0.0015)

Channels = Mapping[str, Bool[Tensor, " channel"]]


def trim(
    beds: Beds,
    sets: Mapping[str, NeuronSet],
    facts: Sequence[Encoded],
    groups: Int[Tensor, " fact"],
    *,
    sound: Callable[[], bool] = lambda: True,
) -> dict[str, NeuronSet]:
    """Put back the idle neurons of every bed; returns what is left of each.

    Training spreads over all that it is given, and some neurons end up carrying nothing: no method could find them, and
    counting them as the truth would be wrong. A bed's neurons are put back one at a time, in the order of how little that costs
    its groups' facts, as many as cost no group more than `IDLE` nats a fact together. The cost is measured with the bed's way alone
    where a group has several. No score of any method enters. Where the beds are not `sound` afterwards, less of this one is put
    back, or nothing.
    """
    left = dict(sets)
    for name, neurons in sets.items():
        places, channels = _in_order(beds, name, neurons, facts, groups)
        planted = {key: master.detach().clone() for key, master in beds.masters.items()}
        for most in IDLE:
            idle = _how_many(beds, name, facts, groups, channels, most)
            _put_back(beds, _together(channels[:idle]))
            if sound():
                kept = _alone(neurons, places[idle:])
                left[name] = replace(kept, origin=dict(neurons.origin) | {"trimmed": idle})
                break
            for key, master in beds.masters.items():
                master.data.copy_(planted[key])
    return left


def _in_order(
    beds: Beds, name: str, neurons: NeuronSet, facts: Sequence[Encoded], groups: Int[Tensor, " fact"]
) -> tuple[Int[Tensor, "neuron 2"], list[Channels]]:
    """A bed's neurons by how little it costs its groups' facts to put each back alone, the least first."""
    places = neurons.mask.nonzero()
    channels = [_channels(beds, _alone(neurons, place[None])) for place in places]
    before = _losses(beds, name, facts, groups, {})
    cost = torch.stack([(_losses(beds, name, facts, groups, one) - before).max() for one in channels])
    order = cost.argsort()
    return places[order], [channels[place] for place in order.tolist()]


def _how_many(
    beds: Beds,
    name: str,
    facts: Sequence[Encoded],
    groups: Int[Tensor, " fact"],
    channels: Sequence[Channels],
    most: float,
) -> int:
    """How many of the first ones can be put back together."""
    before = _losses(beds, name, facts, groups, {}, others=True)
    low, high = 0, len(channels) - 1  # at least one neuron stays
    while low < high:
        middle = (low + high + 1) // 2
        without = _together(channels[:middle])
        cost = (_losses(beds, name, facts, groups, without, others=True) - before).max()
        low, high = (middle, high) if float(cost) <= most else (low, middle - 1)
    return low


def _losses(
    beds: Beds,
    name: str,
    facts: Sequence[Encoded],
    groups: Int[Tensor, " fact"],
    without: Channels,
    *,
    others: bool = False,
) -> Float[Tensor, " case"]:
    """Mean negative log-likelihood of the answers of each group that a bed holds, by each of its ways with the bed in it.

    With `others` also of every other group, by all of its ways.
    """
    on, found = beds.on, []
    beds.dropped = {path: mask[None, None] for path, mask in without.items()}
    try:
        for number, group in enumerate(beds.groups):
            rows = (groups == number).nonzero().flatten().tolist()
            ways = [way for way in beds.ways[group] if name in way]
            for way in ways or [beds.of(group)] * others:
                beds.without(*(beds.own(group) - way))
                found.append(_loss(beds, [facts[row] for row in rows]))
    finally:
        beds.on, beds.dropped = on, {}
    return torch.stack(found)


def _loss(beds: Beds, facts: Sequence[Encoded]) -> Float[Tensor, ""]:
    total = torch.zeros((), dtype=torch.float64)
    with beds.planted(), torch.no_grad():
        for batch in batches(facts, max_tokens=8192, pad_id=pad_id(beds.subject)):
            total -= answer_log_probs(forward(beds.subject, batch), batch.targets).sum().double().cpu()
    return total / len(facts)


def _alone(neurons: NeuronSet, places: Int[Tensor, "neuron 2"]) -> NeuronSet:
    mask = torch.zeros_like(neurons.mask)
    mask[places[:, 0], places[:, 1]] = True
    return NeuronSet(neurons.site, neurons.subject, mask)


def _channels(beds: Beds, neurons: NeuronSet) -> Channels:
    """Which channels of every part belong to these neurons."""
    own = {part.path: part for part in linear_parts(beds.subject, neurons, what="planting")}
    found = {}
    for part in beds.parts:
        if part.path in own:
            all_of = part.rows if part.rows is not None else part.columns
            mine = own[part.path].rows if part.rows is not None else own[part.path].columns
            assert all_of is not None
            assert mine is not None
            found[part.path] = torch.isin(all_of, mine).cpu()
    return found


def _together(channels: Sequence[Channels]) -> dict[str, Bool[Tensor, " channel"]]:
    joined: dict[str, Tensor] = {}
    for one in channels:
        for path, mask in one.items():
            joined[path] = joined[path] | mask if path in joined else mask
    return joined


def _put_back(beds: Beds, channels: Channels) -> None:
    with torch.no_grad():
        for part in beds.parts:
            if part.path not in channels:
                continue
            mask = channels[part.path].to(beds.subject.device)
            if part.rows is None:
                key = f"{part.path}.columns"
                beds.masters[key][:, mask] = beds.base[key][:, mask].to(beds.masters[key])
                continue
            for key in (f"{part.path}.rows", f"{part.path}.bias"):
                if key in beds.masters:
                    beds.masters[key][mask] = beds.base[key][mask].to(beds.masters[key])
