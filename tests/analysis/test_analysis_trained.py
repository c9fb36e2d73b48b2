"""Similarity in each trained model: row by row that model's own, and held against what was measured of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from neuropolis.analysis.similarity import similarity
from neuropolis.analysis.trained import similarity_in_each
from neuropolis.analysis.transfer import transfer
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject, load_model

Make = Callable[..., Subject]
GROUPS = ("a", "b", "c")


@pytest.fixture
def base(make_subject: Make) -> Subject:
    return make_subject("llama")


@pytest.fixture
def sets(base: Subject) -> dict[str, NeuronSet]:
    return {
        group: NeuronSet.from_indices(
            base, site="mlp", indices={0: range(4 * place, 4 * place + 6), 1: range(place, place + 3)}
        )
        for place, group in enumerate(GROUPS)
    }


@pytest.fixture
def trained(base: Subject) -> dict[str, Subject]:
    """Three copies, each moved at random by itself."""
    found = {}
    for seed, group in enumerate(GROUPS):
        model = copy.deepcopy(base.model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
        found[group] = load_model((model, base.tokenizer))
    return found


def test_every_row_is_of_its_own_model(base: Subject, sets: dict[str, NeuronSet], trained: dict[str, Subject]) -> None:
    loaded: list[str] = []

    def loader(group: str) -> Callable[[], Subject]:
        return lambda: (loaded.append(group), trained[group])[1]

    found = similarity_in_each({g: loader(g) for g in reversed(GROUPS)}, sets, base=base, align="pairs", controls=2)
    assert loaded == list(GROUPS)
    for place, group in enumerate(GROUPS):
        alone = similarity(trained[group], sets, base=base, align="pairs", controls=2)
        for name in ("values", "values_unshared", "chance", "chance_low", "chance_high"):
            torch.testing.assert_close(getattr(found, name)[place], getattr(alone, name)[place], equal_nan=True)
    assert not torch.allclose(found.values[0, 1, :2], found.values[1, 0, :2])  # one in M_a, the other in M_b
    assert found.origin["each"] == {group: trained[group].fingerprint for group in GROUPS}
    changed = similarity_in_each({g: loader(g) for g in GROUPS}, sets, base=base, of="deltas", controls=0)
    assert changed.origin["of"] == "deltas"


def test_table_4_is_the_correlation_over_models(
    base: Subject, sets: dict[str, NeuronSet], trained: dict[str, Subject]
) -> None:
    found = similarity_in_each({g: lambda g=g: trained[g] for g in GROUPS}, sets, base=base, controls=0)
    alike = found.values_unshared.double().nanmean(dim=2)
    performance = 3 * alike + torch.tensor([0.1, 0.7, 0.4])  # of each asked task another level
    by_target = transfer(found, performance.nan_to_num()).by_target
    torch.testing.assert_close(by_target, torch.ones(2, 3, dtype=torch.float64))
    turned = replace(found, values_unshared=found.values_unshared.transpose(0, 1))  # similarity of the wrong models
    assert not torch.allclose(
        transfer(turned, performance.nan_to_num()).by_target[0], torch.ones(3, dtype=torch.float64)
    )


def test_every_group_needs_a_model(base: Subject, sets: dict[str, NeuronSet]) -> None:
    with pytest.raises(SetError, match="no model for b, c; expected one for each of a, b, c"):
        similarity_in_each({"a": lambda: base}, sets, base=base)
    with pytest.raises(SetError, match="models for d, which have no set"):
        similarity_in_each({group: lambda: base for group in "abcd"}, sets, base=base)
