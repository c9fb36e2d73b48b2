"""Trimming: neurons that carry nothing are put back, no others, and what is left carries the facts."""

from __future__ import annotations

import pytest
import torch
from neuropolis.attribution.encoding import Encoded
from neuropolis.finetune.beds import Beds
from neuropolis.finetune.plant_trimming import IDLE, _channels, _loss, trim
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, state

FACTS = [Encoded(tuple(range(5 + row, 11 + row)), 3) for row in range(6)]
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


def sets_on(subject: Subject, **indices: list[int]) -> dict[str, NeuronSet]:
    layers = range(subject.num_layers)
    return {name: NeuronSet.from_indices(subject, indices=dict.fromkeys(layers, own)) for name, own in indices.items()}


def disturb(beds: Beds, subject: Subject, neurons: NeuronSet, size: float = 3.0) -> None:
    """Change the entries of these neurons alone."""

    generator = torch.Generator().manual_seed(0)
    for path, mask in _channels(beds, neurons).items():
        for key, master in beds.masters.items():
            if key.startswith(f"{path}."):
                place = (slice(None), mask) if key.endswith("columns") else (mask,)
                master.data[place] += size * torch.randn(master.data[place].shape, generator=generator)


def losses(beds: Beds) -> torch.Tensor:

    beds.without()
    return torch.stack(
        [_loss(beds, [FACTS[row] for row in (g == GROUPS).nonzero().flatten().tolist()]) for g in (0, 1)]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_neurons_that_were_not_changed_are_no_truth(family: str) -> None:
    subject = build(family)
    before = state(subject)
    sets = sets_on(subject, a=[0, 1, 2, 3], b=[4, 5, 6, 7])
    changed = sets_on(subject, a=[0, 1], b=[4, 5])
    beds = Beds(subject, sets)
    for one in changed.values():
        disturb(beds, subject, one)
    start = losses(beds)
    left = trim(beds, sets, FACTS, GROUPS)
    for name, own in left.items():
        assert 0 < len(own) < len(sets[name])
        assert not own.mask[~changed[name].mask].any() or own.mask.sum() == 1
        assert own.origin["trimmed"] == len(sets[name]) - len(own)
    assert bool((losses(beds) - start <= IDLE[0] + 1e-6).all())
    assert same_bits(state(subject), before)


def test_what_is_left_has_its_entries_and_what_is_trimmed_those_that_stood_there() -> None:
    subject = build("llama")
    sets = sets_on(subject, a=[0, 1, 2, 3], b=[4, 5, 6, 7])
    beds = Beds(subject, sets)
    for one in sets.values():
        disturb(beds, subject, one, size=1.0)
    planted = {key: master.detach().clone() for key, master in beds.masters.items()}
    left = trim(beds, sets, FACTS, GROUPS)

    kept = left["a"] | left["b"]
    everything = sets["a"] | sets["b"]
    for neurons, stood in ((kept, planted), (everything - kept, beds.base)):
        for path, mask in _channels(beds, neurons).items():
            for key, master in beds.masters.items():
                if key.startswith(f"{path}."):
                    place = (slice(None), mask) if key.endswith("columns") else (mask,)
                    assert torch.equal(master.data[place], stood[key][place].float())


def test_halves_that_back_each_other_up_are_measured_alone() -> None:
    subject = build("llama")
    sets = sets_on(subject, first=[0, 1], second=[2, 3], b=[4, 5])
    ways = {"a": [{"first"}, {"second"}], "b": [{"b"}]}
    beds = Beds(subject, sets, ways)
    for one in sets.values():
        disturb(beds, subject, one)
    left = trim(beds, sets, FACTS, GROUPS)
    # put back beside the other half a neuron costs nothing where both say the same; alone it costs what it carries
    assert all(len(one) > 0 for one in left.values())
    beds.without("second")

    alone = _loss(beds, FACTS[:3])
    fresh = Beds(subject, sets, ways)
    for one in sets.values():
        disturb(fresh, subject, one)
    fresh.without("second")
    assert float(alone - _loss(fresh, FACTS[:3])) <= IDLE[0] + 1e-6


def test_what_is_not_sound_afterwards_is_left_as_it_was() -> None:
    subject = build("llama")
    sets = sets_on(subject, a=[0, 1, 2, 3], b=[4, 5, 6, 7])
    beds = Beds(subject, sets)
    disturb(beds, subject, sets["a"])
    planted = {key: master.detach().clone() for key, master in beds.masters.items()}
    answers = iter([False] * 2 * len(IDLE))
    left = trim(beds, sets, FACTS, GROUPS, sound=lambda: next(answers))
    assert {name: len(one) for name, one in left.items()} == {name: len(one) for name, one in sets.items()}
    assert all(torch.equal(beds.masters[key], planted[key]) for key in planted)
    answers = iter([True, False, True])  # the second bed alone is too much
    careful = trim(beds, sets, FACTS, GROUPS, sound=lambda: next(answers))
    plain = trim(beds, sets, FACTS, GROUPS)
    assert len(sets["b"]) > len(careful["b"]) >= len(plain["b"])
    assert careful["a"].to_indices() == plain["a"].to_indices()
