"""NeuronSet against Python's own sets, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.neurons.atlas import Atlas, decode, write_atlas
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet

LAYERS, WIDTH = 3, 7
EVERY = frozenset((layer, neuron) for layer in range(LAYERS) for neuron in range(WIDTH))
members = st.frozensets(st.sampled_from(sorted(EVERY)))


def made(neurons: frozenset[tuple[int, int]], **origin: Any) -> NeuronSet:
    mask = torch.zeros(LAYERS, WIDTH, dtype=torch.bool)
    for layer, neuron in neurons:
        mask[layer, neuron] = True
    return NeuronSet("mlp", "subject", mask, origin)


@given(members, members)
def test_the_algebra_is_that_of_sets(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> None:
    x, y = made(a), made(b)
    assert set(x & y) == a & b
    assert set(x | y) == a | b
    assert set(x - y) == a - b
    assert set(x ^ y) == a ^ b
    assert set(~x) == EVERY - a
    assert (x <= y) == (a <= b)
    assert (x >= y) == (a >= b)
    assert (x == y) == (a == b)
    assert len(x) == len(a)
    assert bool(x) == bool(a)
    assert list(x) == sorted(a)
    assert all(((layer, neuron) in x) == ((layer, neuron) in a) for layer in range(-1, 5) for neuron in range(-1, 9))


@given(members, members, members)
def test_laws(
    a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]], c: frozenset[tuple[int, int]]
) -> None:  # fmt: skip
    x, y, z = made(a), made(b), made(c)
    assert x & y == y & x
    assert x | y == y | x
    assert ~(x & y) == ~x | ~y
    assert ~(x | y) == ~x & ~y
    assert ~~x == x
    assert x - y == x & ~y
    assert x ^ y == (x | y) - (x & y)
    assert x & (y | z) == (x & y) | (x & z)
    assert len(x | y) == len(x) + len(y) - len(x & y)
    assert x & y <= x <= x | y


@given(members, members)
def test_equal_sets_hash_alike_and_others_do_not(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> None:
    x, y = made(a, made="one"), made(b, made="another")
    assert (hash(x) == hash(y)) == (a == b)
    assert (x.digest == y.digest) == (a == b)
    assert len({x, y}) == len({a, b})


def test_site_subject_and_shape_tell_sets_apart() -> None:
    mask = torch.eye(3, dtype=torch.bool)
    sets = [
        NeuronSet("mlp", "s", mask),
        NeuronSet("gate", "s", mask),
        NeuronSet("mlp", "t", mask),
        NeuronSet("mlp", "s", torch.eye(3, 4, dtype=torch.bool)),
        NeuronSet("mlp", "s", ~mask),
    ]
    assert len({one.digest for one in sets}) == 5
    assert len(set(sets)) == 5
    assert sets[0] != "mlp"


@given(members)
def test_counts_and_places(a: frozenset[tuple[int, int]]) -> None:
    x = made(a)
    assert x.per_layer.tolist() == [sum(layer == wanted for layer, _ in a) for wanted in range(LAYERS)]
    assert x.share == len(a) / (LAYERS * WIDTH)
    assert {(layer, neuron) for layer, neurons in x.to_indices().items() for neuron in neurons} == a
    assert all(neurons == sorted(neurons) for neurons in x.to_indices().values())
    assert [x.indices(layer).tolist() for layer in x.to_indices()] == list(x.to_indices().values())
    assert set(x.layers([0, 2])) == {(layer, neuron) for layer, neuron in a if layer != 1}
    assert (x.num_layers, x.width) == (LAYERS, WIDTH)
    assert repr(x) == f"NeuronSet({len(a)} of 21 mlp neurons in 3 layers of subject subject)"


def test_provenance_is_carried() -> None:
    x, y = made(frozenset({(0, 1)}), made="x"), made(frozenset({(0, 2)}), made="y")
    assert dict((x | y).origin) == {"made": "|", "of": [{"made": "x"}, {"made": "y"}]}
    assert dict((x - ~y).origin) == {"made": "-", "of": [{"made": "x"}, {"made": "~", "of": {"made": "y"}}]}
    assert dict(x.layers([1]).origin) == {"made": "layers", "layers": [1], "of": {"made": "x"}}
    assert [(x & y).origin["made"], (x ^ y).origin["made"]] == ["&", "^"]
    assert NeuronSet.random(x, seed=3).origin == {"made": "control", "seed": 3, "like": x.digest}


def test_a_set_does_not_follow_what_it_was_made_from() -> None:
    mask, origin = torch.zeros(2, 3, dtype=torch.bool), {"made": "here"}
    made = NeuronSet("mlp", "s", mask, origin)
    mask[0, 0], origin["made"] = True, "there"
    assert (len(made), made.origin["made"]) == (0, "here")
    with pytest.raises(TypeError):
        made.origin["made"] = "there"  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError):
        made.site = "gate"  # pyright: ignore[reportAttributeAccessIssue]


def test_sets_that_do_not_belong_together_are_refused() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    one = NeuronSet("mlp", "s", mask)
    others = {
        "a set of site 'mlp' with one of site 'gate'": NeuronSet("gate", "s", mask),
        "a set of subject s with one of subject t": NeuronSet("mlp", "t", mask),
        r"sets of shapes \[2, 3\] and \[2, 4\]": NeuronSet("mlp", "s", torch.zeros(2, 4, dtype=torch.bool)),
    }
    for message, other in others.items():
        for combine in ("__and__", "__or__", "__sub__", "__xor__", "__le__"):
            with pytest.raises(SetError, match=f"cannot combine {message}"):
                getattr(one, combine)(other)
        assert one != other
    with pytest.raises(SetError, match="expected a NeuronSet, got set"):
        one & {(0, 1)}  # pyright: ignore[reportOperatorIssue]
    for bad in (torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(SetError, match=r"mask must be bool \[layer, neuron\], got torch"):
            NeuronSet("mlp", "s", bad)


def test_a_set_by_indices(make_subject: Any) -> None:
    subject = make_subject("llama")
    one = NeuronSet.from_indices(subject, indices={2: [47, 0], 0: torch.tensor([5])})
    assert one.to_indices() == {0: [5], 2: [0, 47]}
    assert (one.site, one.subject, one.origin["made"]) == ("mlp", subject.fingerprint, "from_indices")
    assert len(NeuronSet.from_indices(subject, site="k", indices={0: [15]})) == 1
    one.check(subject)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({3: [0]}, "layer 3 is outside 0 to 2 of site 'k'"),
        ({-1: [0]}, "layer -1 is outside 0 to 2"),
        ({0: [16]}, "neuron 16 of layer 0 is outside 0 to 15 of site 'k'; was the set made for another site"),
        ({0: [-1]}, "neuron -1 of layer 0 is outside 0 to 15"),
    ],
)
def test_indices_outside_the_site_are_refused(make_subject: Any, indices: Any, message: str) -> None:
    with pytest.raises(SetError, match=message):
        NeuronSet.from_indices(make_subject("llama"), site="k", indices=indices)


@pytest.mark.parametrize("indices", [{0: [1.7]}, {0.5: [1]}, {0: ["1"]}])
def test_indices_that_are_no_whole_numbers_are_refused(make_subject: Any, indices: Any) -> None:
    with pytest.raises(TypeError):
        NeuronSet.from_indices(make_subject("llama"), indices=indices)


def test_layers_outside_are_refused() -> None:
    with pytest.raises(SetError, match="layer 3 is outside 0 to 2"):
        made(frozenset()).layers([0, 3])


def test_a_set_knows_its_subject(make_subject: Any) -> None:
    subject, other = make_subject("llama"), make_subject("llama", seed=1)
    with pytest.raises(
        SetError, match=f"belongs to subject {subject.fingerprint}, but .* is {other.fingerprint}; locate"
    ):
        NeuronSet.from_indices(subject, indices={0: [1]}).check(other)
    with pytest.raises(SetError, match=r"the set has shape \[3, 40\], site 'mlp' of .* has \[3, 48\]"):
        NeuronSet("mlp", subject.fingerprint, torch.zeros(3, 40, dtype=torch.bool)).check(subject)


@given(members, members, st.integers(0, 2**32))
def test_a_control_matches_layer_by_layer(
    a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]], seed: int
) -> None:
    like, avoid = made(a), made(b)
    control = NeuronSet.random(like, seed=seed, avoid=avoid)
    assert control.per_layer.tolist() == like.per_layer.tolist()
    assert control == NeuronSet.random(like, seed=seed, avoid=avoid)
    for layer in range(LAYERS):
        taken = (like | avoid).layers([layer])
        if WIDTH - len(taken) >= len(like.layers([layer])):
            assert not control & taken


def test_controls_are_drawn_evenly() -> None:
    like = made(frozenset({(0, 0), (0, 1), (2, 6)}))
    counts = torch.stack([NeuronSet.random(like, seed=seed).mask for seed in range(600)]).sum(dim=0)
    assert counts[0, :2].tolist() == [0, 0]
    assert counts[1].tolist() == [0] * WIDTH
    assert int(counts[2, 6]) == 0
    # 2 of 5 in layer 0, 1 of 6 in layer 2: six standard deviations either side
    assert counts[0, 2:].min() > 600 * 2 / 5 - 6 * (600 * 0.24) ** 0.5
    assert counts[0, 2:].max() < 600 * 2 / 5 + 6 * (600 * 0.24) ** 0.5
    assert counts[2, :6].min() > 600 / 6 - 6 * (600 * 5 / 36) ** 0.5


def test_a_set_comes_back_from_an_atlas(tmp_path: Any) -> None:
    one = made(frozenset({(0, 0), (1, 3), (2, 6)}), made="here", parts=[1, 2])
    with Atlas(write_atlas(tmp_path / "a.h5", [one.to_record("north")])) as atlas:
        found = atlas.get("set", "north")
    assert found == one
    assert found.origin == one.origin
    assert decode(one.to_record("x")).digest == one.digest


def test_sets_scores_and_deltas_go_to_other_processes() -> None:
    import copy
    import pickle

    from neuropolis.finetune.delta import Delta
    from neuropolis.neurons.scores import Scores

    one = made(frozenset({(0, 1), (2, 6)}), made="by hand", of={"seed": 3})
    values = torch.arange(42.0).reshape(2, LAYERS, WIDTH)
    scores = Scores("mlp", "subject", ("a", "b"), values, -values, values**2, torch.tensor([4, 5]), origin={"k": [1]})
    delta = Delta("subject", one, {"w": torch.ones(2)}, {"w": torch.zeros(2)}, (0.5,), {"made": "finetune"})
    for again in (lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy):
        assert again(one) == one
        assert dict(again(one).origin) == dict(one.origin)
        with pytest.raises(TypeError):
            again(one).origin["more"] = 1
        assert torch.equal(again(scores).signed, -values)
        assert (again(scores).groups, dict(again(scores).origin)) == (("a", "b"), {"k": [1]})
        assert again(scores).rows is None
        assert again(delta).neurons == one
        assert torch.equal(again(delta).values["w"], torch.ones(2))
