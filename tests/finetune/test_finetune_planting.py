"""Planting: groups that are off are as they were, an example trains its own group's neurons alone, the module is untouched."""

from __future__ import annotations

import pytest
import torch
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.finetune.beds import Beds
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.plant_silence import loudness
from neuropolis.finetune.planting import PlantRecipe, material, plant_facts
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import FAMILIES, build, same_bits, state

IDS = torch.arange(6)[None] + 5


def make_beds(subject: Subject) -> Beds:
    layers = range(subject.num_layers)
    first = NeuronSet.from_indices(subject, indices={layer: [0, 3] for layer in layers})
    second = NeuronSet.from_indices(subject, indices={layer: [1, 4] for layer in layers})
    return Beds(subject, {"a": first, "b": second})


def logits(subject: Subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.model(input_ids=IDS, use_cache=False).logits


def disturb(beds: Beds) -> None:
    for master in beds.masters.values():
        master.data += torch.randn(master.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_that_are_off_are_as_they_were(family: str) -> None:
    subject = build(family)
    before, plain = state(subject), logits(subject)
    beds = make_beds(subject)
    disturb(beds)
    seen = {}
    for off in ((), ("a",), ("b",), ("a", "b")):
        beds.without(*off)
        with beds.planted():
            seen[off] = logits(subject)
    torch.testing.assert_close(seen["a", "b"], plain)
    assert not torch.allclose(seen[()], plain)
    assert not torch.allclose(seen["a",], seen["b",])
    assert torch.equal(logits(subject), plain)
    assert same_bits(state(subject), before)


def test_what_is_planted_is_what_the_delta_merges() -> None:
    subject = build("llama")
    beds = make_beds(subject)
    disturb(beds)
    with beds.planted():
        planted = logits(subject)
    merged = beds.delta({"made": "test"}).merge(subject)
    torch.testing.assert_close(logits(merged), planted, rtol=1e-4, atol=1e-4)


def corpus_of(groups: str) -> Corpus:
    return Corpus(
        tuple(Example(id=f"{g}{i}", group=g, prompt=f"{g} {i} is", answer=f" {g}") for g in groups for i in range(4))
    )


def test_an_example_trains_its_own_group_alone() -> None:
    subject = build("llama")
    beds = make_beds(subject)
    recipe = PlantRecipe(steps=1, lr=1e-2, batch_size=4, keep_size=2, keep=0.0)
    plant_facts(beds, material(beds, corpus_of("a"), corpus_of("b")), recipe)
    for part in beds.parts:
        owned = beds.owned[part.path]
        name = f"{part.path}.{'rows' if part.rows is not None else 'columns'}"
        moved = (beds.masters[name] - beds.base[name]).abs().detach()
        moved = moved.sum(dim=1 if part.rows is not None else 0)
        assert bool((moved[owned[:, 0]] > 0).all()), name
        assert bool((moved[owned[:, 1]] == 0).all()), name


def test_the_loss_falls() -> None:
    subject = build("llama")
    recipe = PlantRecipe(steps=40, lr=1e-2, batch_size=8, keep_size=4, keep=0.1)
    beds = make_beds(subject)
    history = plant_facts(beds, material(beds, corpus_of("ab"), corpus_of("cd")), recipe)
    assert sum(history[-10:]) < 0.8 * sum(history[:10])


def test_each_example_of_a_batch_may_have_beds_of_its_own() -> None:
    subject = build("llama")
    beds = make_beds(subject)
    disturb(beds)
    alone = []
    for on in ([True, True], [False, True], [True, False], [False, False]):
        beds.on = torch.tensor(on)
        with beds.planted():
            alone.append(logits(subject))
    beds.on = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    with torch.no_grad(), beds.planted():
        together = subject.model(input_ids=IDS.expand(4, -1), use_cache=False).logits
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_group_is_known_where_one_of_its_ways_is_on() -> None:
    subject = build("llama")
    sets = {
        name: NeuronSet.from_indices(subject, indices={0: [i]}) for i, name in enumerate(["a/1", "a/2", "b", "shared"])
    }
    beds = Beds(subject, sets, {"a": [{"a/1"}, {"a/2"}], "b": [{"b", "shared"}]})
    on = torch.tensor([[True, False, True, False], [False, True, True, True], [False, False, False, True]])
    assert beds.known(torch.zeros(3, dtype=torch.long), on).tolist() == [True, True, False]
    assert beds.known(torch.ones(3, dtype=torch.long), on).tolist() == [False, True, False]
    assert beds.own("a") == {"a/1", "a/2"}
    assert beds.membership().tolist() == [[True, True, False, False], [False, False, True, True]]


def test_half_of_the_examples_of_a_group_with_several_ways_see_one_alone() -> None:
    subject = build("llama")
    sets = {name: NeuronSet.from_indices(subject, indices={0: [i]}) for i, name in enumerate(["a/1", "a/2", "b"])}
    beds = Beds(subject, sets, {"a": [{"a/1"}, {"a/2"}], "b": [{"b"}]})
    groups = torch.tensor([0, 1]).repeat(400)
    generator = torch.Generator().manual_seed(0)
    on = beds.one_way(groups, torch.ones(800, 3, dtype=torch.bool), generator)
    assert bool(on[groups == 1].all())
    assert bool(on[:, 2].all())
    ways = on[groups == 0][:, :2]
    assert not bool((~ways).all(dim=1).any())
    for alone in ([True, False], [False, True]):
        assert 0.18 < float((ways == torch.tensor(alone)).all(dim=1).double().mean()) < 0.32
    plain = Beds(subject, {"b": sets["b"]})
    state = generator.get_state()
    assert bool(plain.one_way(torch.zeros(3, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool), generator).all())
    assert torch.equal(generator.get_state(), state)  # nothing is drawn where there is nothing to draw


def test_a_groups_own_silent_units_are_what_is_to_be_silent() -> None:
    """Their mean square where the answer is predicted, by hand; other groups' silent units do not count."""
    subject = build("llama")
    sets = {
        name: NeuronSet.from_indices(subject, indices={1: [i, i + 4]})
        for i, name in enumerate(["a", "a/silent", "b", "b/silent"])
    }
    beds = Beds(subject, sets, {"a": [{"a", "a/silent"}], "b": [{"b", "b/silent"}]})
    given = material(beds, corpus_of("ab"), corpus_of("cd"), silent=["a/silent", "b/silent"])
    squares: list[float] = []
    for one, group in zip(given.facts, given.groups.tolist(), strict=True):
        seen: list[torch.Tensor] = []
        with subject.site("mlp").taps[1].attached(seen.append), torch.no_grad():
            subject.model(input_ids=torch.tensor([one.ids]))
        own = [1, 5] if group == 0 else [3, 7]
        squares += seen[0].reshape(-1, seen[0].shape[-1])[one.start - 1 : -1][:, own].square().flatten().tolist()
    assert loudness(beds, given.facts, given.groups, given.silent) == pytest.approx(
        sum(squares) / len(squares), rel=1e-4
    )
    assert beds.watched is False
    assert bool(beds.on.all())


def test_beds_that_share_a_neuron_are_refused() -> None:
    subject = build("llama")
    sets = {name: NeuronSet.from_indices(subject, indices={0: [3]}) for name in "ab"}
    with pytest.raises(TuneError, match="bed 'b' shares 1 neurons"):
        Beds(subject, sets)
