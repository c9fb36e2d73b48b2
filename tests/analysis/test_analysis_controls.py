"""Controls: as many in each layer, none of the set's own, of like size; other groups' sets in turn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuropolis.analysis.ablate import ablate, joined
from neuropolis.analysis.controls import Drawing, activation_sizes, matched, score_norms, seed_of
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.interventions import Reference
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Sets = dict[str, NeuronSet]


def of(*rows: list[int], width: int = 200, site: str = "mlp") -> NeuronSet:
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for layer, members in enumerate(rows):
        mask[layer, members] = True
    return NeuronSet(site, "s", mask)


def scores(site: str, values: torch.Tensor) -> Scores:
    counts = torch.ones(len(values), dtype=torch.long)
    return Scores(site, "s", tuple("abcdefg"[: len(values)]), values, values, values.square(), counts)


@given(st.lists(st.integers(0, 59), min_size=0, max_size=40, unique=True), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_matched_control_has_as_many_others(members: list[int], seed: int) -> None:
    neurons, sizes = of(members, [3], width=60), torch.arange(120.0).reshape(2, 60)
    drawn = matched(neurons, sizes, seed=seed)
    assert torch.equal(drawn.per_layer, neurons.per_layer)
    assert drawn == matched(neurons, sizes, seed=seed)
    if len(members) <= 30:  # else a layer has not enough others
        assert not drawn & neurons


def test_matched_controls_are_near_in_size() -> None:
    # sizes rise along the layer, from another order of indices: neighbours in size are no neighbours in index
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    sizes = torch.empty(1, 200).index_put_((torch.zeros(200, dtype=torch.long), order), torch.arange(200.0))
    neurons = of(order[[50, 120, 121]].tolist())
    for seed in range(20):
        found = matched(neurons, sizes, seed=seed)
        near = sizes[0, found.indices(0)].sort().values
        assert abs(float(near[0]) - 50) <= 12
        assert bool(((near[1:] - 120.5).abs() <= 14).all())
    assert len({matched(neurons, sizes, seed=seed).digest for seed in range(20)}) > 10


def test_the_largest_get_the_next_largest_and_say_so() -> None:
    sizes = torch.cat([torch.ones(180), torch.full((15,), 5.0), torch.full((5,), 10.0)])[None]
    neurons = of(list(range(195, 200)))
    drawing = Drawing("score", 0, {"mlp": sizes})
    drawn = drawing.control({"a": (neurons,)}, name="a", repeat=0)
    assert bool((sizes[0, drawn[0].indices(0)] == 5).all())
    assert drawing.closeness((neurons,), drawn) == 0.5
    assert math.isnan(Drawing("layer", 0).closeness((neurons,), drawn))


def test_sizes_that_controls_are_matched_by() -> None:
    shape = (1, 2)
    reference = Reference("mlp", "s", "r", torch.full(shape, 3.0), torch.full(shape, 4.0), torch.zeros(1, 1, 2))
    assert activation_sizes({"mlp": reference})["mlp"].tolist() == [[5, 5]]
    one = scores("mlp", torch.tensor([[[3.0, 0.0]], [[-4.0, 2.0]]]))
    assert score_norms([one])["mlp"].tolist() == [[5, 2]]
    with pytest.raises(SetError, match="two scores of site 'mlp'"):
        score_norms([one, one])


def test_other_groups_sets_in_turn() -> None:
    sets = {"a": (of([1, 2]),), "b": (of([2, 3]),), "c": (of([4, 5, 6, 1]),), "d": (of([9]),)}
    drawing = Drawing("groups", 0)
    first, second, third = (drawing.control(sets, name="a", repeat=r)[0] for r in range(3))
    assert first == sets["b"][0]  # as large as the set: whole, with what they share
    assert second <= sets["c"][0]
    assert not second & sets["a"][0]
    assert len(second) == 2
    assert third == first  # d is too small
    with pytest.raises(SetError, match="no other group's set has the 4 neurons of 'c'"):
        drawing.control(sets, name="c", repeat=0)


def test_an_unknown_match_lists_the_known() -> None:
    with pytest.raises(
        SetError, match="unknown match 'size'; controls are matched by layer, activation, score, groups"
    ):
        Drawing("size", 0)
    assert seed_of(0, "a", 0) != seed_of(0, "a", 1)


def test_sets_of_several_sites_are_joined() -> None:
    sets = {"a/mlp": of([1]), "a/attn": of([2], site="attn"), "b": of([3])}
    found = joined(sets)
    assert list(found) == ["a", "b"]
    assert [one.site for one in found["a"]] == ["mlp", "attn"]
    with pytest.raises(SetError, match="'a' is a set by itself, beside a/attn"):
        joined({"a": of([1]), "a/attn": of([2], site="attn")})


def test_ablating_with_matched_controls(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    by_activation = ablate(planted, questions, planted_sets, controls=3, match="activation")
    assert set(by_activation.origin["closeness"]) == {"a", "b", "c"}
    # the three planted neurons are the only ones that are ever active, so that the others' are the nearest in size
    assert torch.equal(by_activation.effect, -torch.eye(3, dtype=torch.float64))
    values = torch.zeros(3, 2, 8)
    values[range(3), 1, range(3)] = 1
    known = scores("mlp", values)
    by_score = ablate(planted, questions, planted_sets, controls=2, match="score", scores=known)
    assert by_score.origin["match"] == "score"
    by_group = ablate(planted, questions, planted_sets, controls=9, match="groups")
    assert by_group.controls.shape[1] == 2
    # the control of a is the set of b, then that of c
    assert torch.equal(by_group.controls[0], by_group.ablated[1:])
    with pytest.raises(SetError, match="needs scores of site 'mlp'"):
        ablate(planted, questions, planted_sets, match="score")
    with pytest.raises(SetError, match="one set alone"):
        ablate(planted, questions, {"a": planted_sets["a"]}, match="groups")


def test_sets_of_several_sites_are_ablated_together(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    mlp, heads = (NeuronSet.from_indices(subject, site=site, indices={1: range(9)}) for site in ("mlp", "attn"))
    both = ablate(subject, corpus, {"north": [mlp, heads]}, controls=1, metric="loss")
    apart = ablate(subject, corpus, {"north/mlp": mlp, "north/attn": heads}, controls=1, metric="loss")
    assert both.site == "mlp+attn"
    assert both.sizes.tolist() == [18]
    assert both.own_group == (0,)
    assert apart.own_group == (0, 0)
    assert not torch.equal(both.ablated[0], apart.ablated[0])
