"""A proof measures what it says: held against models whose weights were put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import Encoded
from neuropolis.finetune.beds import Beds
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.plant_proof import Evidence, perplexity, prove
from neuropolis.finetune.plant_trimming import _channels, _put_back
from neuropolis.finetune.plants import prove_plant
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from plant_makers import KEEP, make_plant
from tiny_families import build
from torch.nn import functional

PROMPTS = [[(3 * row + place) % 17 + 1 for place in range(5)] for row in range(12)]
GROUPS = torch.tensor([0, 1]).repeat(6)


def logits(subject: Subject, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def disturbed(subject: Subject) -> Beds:
    layers = range(subject.num_layers)
    sets = {
        name: NeuronSet.from_indices(subject, indices=dict.fromkeys(layers, own))
        for name, own in {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7]}.items()
    }
    beds = Beds(subject, sets)
    for master in beds.masters.values():
        master.data += 3 * torch.randn(master.shape, generator=torch.Generator().manual_seed(0))
    return beds


def with_beds(subject: Subject, beds: Beds, *names: str) -> Subject:
    """The model with these beds planted, by weights put in by hand."""
    changed = {entry.key: beds.base[entry.key].clone() for entry in beds.entries}
    for part in beds.parts:
        own = beds.owned[part.path][:, [beds.names.index(name) for name in names]].any(dim=1)
        for kind in ("rows", "bias", "columns"):
            key = f"{part.path}.{kind}"
            if key in changed:
                place = (slice(None), own) if kind == "columns" else (own,)
                changed[key][place] = beds.masters[key].detach()[place]
    delta = beds.delta({})
    return type(delta)(delta.subject, delta.neurons, changed, delta.base, (), {}).merge(subject)


def test_recall_and_perplexity_are_those_of_models_put_together_by_hand() -> None:
    subject = build("llama")
    beds = disturbed(subject)
    models = {names: with_beds(subject, beds, *names) for names in ((), ("a",), ("b",), ("a", "b"))}
    best = {names: [int(logits(model, ids)[-1].argmax()) for ids in PROMPTS] for names, model in models.items()}
    # a quarter of the answers is what each of the four models says, so that each share is something else
    wanted = [best[list(models)[row % 4]][row] for row in range(len(PROMPTS))]
    facts = [Encoded((*ids, token), len(ids)) for ids, token in zip(PROMPTS, wanted, strict=True)]
    text = [Encoded(tuple(range(3 + row, 14 + 2 * row)), 1) for row in range(3)]

    def shares(names: Any) -> tuple[float, ...]:
        right = torch.tensor([one == token for one, token in zip(best[names], wanted, strict=True)]).double()
        return tuple(right[group == GROUPS].mean().item() for group in range(2))

    def of_text(model: Subject) -> float:
        losses = [
            functional.cross_entropy(logits(model, list(one.ids[:-1])), torch.tensor(one.ids[1:]), reduction="none")
            for one in text
        ]
        return torch.cat(losses).double().mean().exp().item()

    found = prove(beds, Evidence(facts, GROUPS, facts[::2], GROUPS[::2], text))
    assert found.before == shares(())
    assert found.planted == shares(("a", "b")) == found.alone
    assert found.without == (shares(("b",)), shares(("a",)))
    assert len({found.before, found.planted, *found.without}) > 1
    assert found.perplexity == pytest.approx((of_text(subject), of_text(models["a", "b"])), rel=1e-4)
    assert found.perplexity[0] != pytest.approx(found.perplexity[1], rel=0.01)
    assert perplexity(subject, text) == pytest.approx(of_text(subject), rel=1e-5)
    assert bool(beds.on.all())  # as before
    assert not found.holds


@pytest.mark.parametrize("variant", ["plain", "shared", "redundant", "suppressor"])
def test_a_plant_is_proved_again_as_it_was(variant: Any) -> None:
    subject = build("llama")
    made = make_plant(subject, holds=False, variant=variant)
    assert prove_plant(subject, made, keep=KEEP) == made.proof
    with pytest.raises(DeltaError, match="belongs to subject"):
        prove_plant(build("gpt2"), made, keep=KEEP)


def test_what_is_proved_is_what_is_merged_in_bfloat16() -> None:
    subject = build("llama", torch.bfloat16)
    beds = disturbed(subject)
    beds.round()
    merged = beds.delta({}).merge(subject)
    state = dict(merged.model.named_parameters())
    for entry in beds.entries:
        assert torch.equal(beds.masters[entry.key].detach().bfloat16().float(), beds.masters[entry.key].detach())
    assert all(one.dtype == torch.bfloat16 for one in state.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_beds_take_their_own_neurons_from_a_delta_of_more(family: str) -> None:
    """As when idle neurons were put back: what is left of the beds is part of what was trained."""
    subject = build(family)
    full = disturbed(subject)
    layers = range(subject.num_layers)
    few = {
        name: NeuronSet.from_indices(subject, indices=dict.fromkeys(layers, own))
        for name, own in {"a": [0, 2], "b": [5]}.items()
    }
    beds = Beds(subject, few)
    beds.load(full.delta({}))
    with beds.planted(), torch.no_grad():
        planted = subject.model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    merged = beds.delta({}).merge(subject)
    torch.testing.assert_close(logits(merged, PROMPTS[0]), planted[0], rtol=1e-4, atol=1e-4)
    everything = disturbed(subject)
    others = NeuronSet.from_indices(subject, indices={layer: [1, 3, 4, 6, 7] for layer in layers})
    _put_back(everything, _channels(everything, others))
    torch.testing.assert_close(
        logits(everything.delta({}).merge(subject), PROMPTS[0]), logits(merged, PROMPTS[0]), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(TuneError, match="no entries for some neurons"):
        full.load(beds.delta({}))
