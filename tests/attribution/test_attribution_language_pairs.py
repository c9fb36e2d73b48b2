"""General and specific neurons on scores made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuropolis.attribution.language_pairs import pair_neurons
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet

PAIRS = ("en-es", "en-zh")


def scores(values: list[list[list[float]]], pairs: tuple[str, ...] = PAIRS) -> Scores:
    tensor = torch.tensor(values)
    return Scores("mlp", "s" * 16, pairs, tensor, tensor, tensor.square(), torch.full((len(pairs),), 2))


def members(chosen: NeuronSet) -> list[tuple[int, int]]:
    return list(chosen)


# population variances of the four neurons of layer 0: 0, 1, 4, 9
HAND = scores([[[5.0, 6.0, 1.0, 7.0], [9.0, 9.0, 9.0, 9.0]], [[5.0, 4.0, 5.0, 1.0], [9.0, 9.0, 9.0, 9.0]]])
RAW: dict[str, Any] = {"layers": [0], "aware": 1.0, "relative": False}


def test_variance_split_by_hand() -> None:
    found = pair_neurons(HAND, **RAW)
    assert found.threshold == 4.0  # sort(0, 1, 4, 9)[floor(0.5 * 4)]
    assert found.spread[0].tolist() == [0.0, 1.0, 4.0, 9.0]
    assert bool(found.spread[1].isnan().all())
    assert members(found.general) == [(0, 0), (0, 1)]
    assert {pair: members(s) for pair, s in found.specific.items()} == {"en-es": [(0, 3)], "en-zh": [(0, 2)]}
    assert members(found.of("en-es")) == [(0, 0), (0, 1), (0, 3)]
    assert found.pairs == PAIRS


def test_direction_and_quantile() -> None:
    high = pair_neurons(HAND, **RAW, general="high")
    assert members(high.general) == [(0, 2), (0, 3)]
    # equal awareness for both pairs is the highest for both
    assert {p: members(s) for p, s in high.specific.items()} == {"en-es": [(0, 0), (0, 1)], "en-zh": [(0, 0)]}
    none = pair_neurons(HAND, **RAW, quantile=0.0)
    assert not none.general
    assert sum(map(len, none.specific.values())) == 5
    most = pair_neurons(HAND, **RAW, quantile=1.0)
    assert (most.threshold, members(most.general)) == (9.0, [(0, 0), (0, 1), (0, 2)])


def test_within_gives_a_neuron_to_several_pairs() -> None:
    found = pair_neurons(HAND, **RAW, quantile=0.0, within=0.6)
    assert members(found.specific["en-zh"]) == [(0, 0), (0, 1), (0, 2)]  # 4 is at least 0.6 of 6; 1 is not of 7
    assert members(found.specific["en-es"]) == [(0, 0), (0, 1), (0, 3)]


def test_relative_variance_by_hand() -> None:
    # means of the pairs: 2 and 4; after division (2, 1, 0) and (1, 1, 1); over the neurons' means 1.5, 1, 0.5:
    # (4/3, 1, 0) and (2/3, 1, 2), variances 1/9, 0 and 1
    given = scores([[[4.0, 2.0, 0.0]], [[4.0, 4.0, 4.0]]])
    found = pair_neurons(given, aware=1.0)
    torch.testing.assert_close(found.spread[0], torch.tensor([1 / 9, 0.0, 1.0]))
    assert members(found.general) == [(0, 1)]
    assert {p: members(s) for p, s in found.specific.items()} == {"en-es": [(0, 0)], "en-zh": [(0, 2)]}


def test_aware_takes_the_highest_for_any_pair() -> None:
    given = scores([[[0.0, 1.0, 8.0, 2.0]], [[9.0, 1.0, 0.0, 2.0]]])
    found = pair_neurons(given, aware=0.5, relative=False)
    everything = found.general | found.of(*PAIRS)
    assert members(everything) == [(0, 0), (0, 2)]


def test_idle_neurons_are_no_error() -> None:
    found = pair_neurons(scores([[[0.0, 1.0]], [[0.0, 2.0]]]), aware=1.0)
    assert not bool(found.spread[0].isnan().any())


@given(st.lists(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), min_size=2, max_size=8), st.floats(0, 1))
def test_general_and_specific_part_the_candidates(rows: list[list[float]], quantile: float) -> None:
    table = torch.tensor(rows, dtype=torch.float64).T[:, None].float()
    found = pair_neurons(scores(table.tolist(), ("a-b", "b-c", "c-a")), aware=1.0, quantile=quantile)
    specific = torch.stack([s.mask for s in found.specific.values()])
    assert bool((found.general.mask ^ specific.any(dim=0)).all())
    assert len(found.general) <= quantile * len(rows)


def test_roles_leave_out_what_is_empty_and_name_what_is_missing() -> None:
    found = pair_neurons(HAND, **RAW, quantile=0.0)
    assert list(found.roles(["en-zh"])) == ["en-zh"]
    with pytest.raises(SetError, match="no language pair 'de-en' among these neurons; they have en-es, en-zh"):
        found.of("de-en")
    lone = pair_neurons(scores([[[1.0, 3.0]], [[1.0, 1.0]]]), aware=1.0, quantile=0.0, relative=False, within=1.0)
    assert list(lone.roles(["en-zh"])) == ["en-zh"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aware": 0.0}, "aware is 0.0"),
        ({"within": 1.5}, "within is 1.5"),
        ({"quantile": -0.1}, "quantile is -0.1"),
        ({"general": "middle"}, "unknown direction 'middle'"),
        ({"layers": [2]}, "layer 2 is outside 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetError, match=message):
        pair_neurons(HAND, **options)


def test_one_pair_is_refused() -> None:
    with pytest.raises(SetError, match="two language pairs or more, the scores have en-es alone"):
        pair_neurons(scores([[[1.0, 2.0]]], ("en-es",)))
