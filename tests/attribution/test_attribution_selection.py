"""Selection: by hand on a small tensor."""

from __future__ import annotations

import pytest
import torch
from neuropolis.attribution.selection import contrasted, exclusive, in_common, select
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet

VALUES = torch.tensor([[[9.0, 1.0, 5.0], [4.0, 4.0, 0.0]], [[8.0, 7.0, 0.0], [0.0, 1.0, 2.0]]])


@pytest.fixture
def scores() -> Scores:
    return Scores("mlp", "s", ("a", "b"), VALUES, -VALUES, VALUES**2, torch.tensor([3, 3]),
                  control_values=VALUES.flip(0), control_signed=-VALUES.flip(0))  # fmt: skip


def test_top_share_over_all_layers(scores: Scores) -> None:
    sets = select(scores, top=1 / 3)
    assert sets["a"].to_indices() == {0: [0, 2]}
    assert sets["b"].to_indices() == {0: [0, 1]}


def test_top_number_in_each_layer_with_ties_to_the_lower_index(scores: Scores) -> None:
    sets = select(scores, top=1, scope="layer")
    assert sets["a"].to_indices() == {0: [0], 1: [0]}
    assert sets["b"].to_indices() == {0: [0], 1: [2]}


def test_from_some_layers_only(scores: Scores) -> None:
    assert select(scores, top=2, layers=[1])["a"].to_indices() == {1: [0, 1]}
    assert select(scores, top=1, scope="layer", layers=[1])["b"].to_indices() == {1: [2]}
    with pytest.raises(SetError, match="layer 2 is outside 0 to 1"):
        select(scores, layers=[2])
    with pytest.raises(SetError, match=r"top is 4 neurons, layers \[1\] have 3"):
        select(scores, top=4, layers=[1])


def test_contrast_with_others(scores: Scores) -> None:
    # a - b = [1, -6, 5], [4, 3, -2]
    assert select(scores, top=2, contrast="others")["a"].to_indices() == {0: [2], 1: [0]}
    assert select(scores, top=2, contrast="others")["b"].to_indices() == {0: [1], 1: [2]}


def test_contrast_with_controls(scores: Scores) -> None:
    assert torch.equal(contrasted(scores, "controls"), VALUES - VALUES.flip(0))
    plain = Scores("mlp", "s", ("a", "b"), VALUES, VALUES, VALUES, torch.tensor([3, 3]))
    with pytest.raises(SetError, match="no controls"):
        select(plain, contrast="controls")


def test_z_divides_by_the_spread_over_groups(scores: Scores) -> None:
    values = torch.tensor([[[3.0, 1.0]], [[0.0, 1.0]], [[3.0, 1.0]]])
    three = Scores("mlp", "s", ("a", "b", "c"), values, values, values, torch.tensor([3, 3, 3]))
    # 3, 0, 3 have mean 2 and standard deviation sqrt(2); where groups agree there is no contrast
    assert contrasted(three, "z")[0, 0].tolist() == pytest.approx([1.5 / 2**0.5, 0.0])
    with pytest.raises(SetError, match="at least three groups"):
        contrasted(scores, "z")


def test_origin_tells_how_the_set_was_made(scores: Scores) -> None:
    origin = select(scores, top=0.5, contrast="others")["b"].origin
    assert {key: origin[key] for key in ("group", "top", "scope", "contrast", "by")} == {
        "group": "b", "top": 0.5, "scope": "global", "contrast": "others", "by": "values"
    }  # fmt: skip


@pytest.mark.parametrize("top", [0, 0.0, -0.1, 1.5, 7, True])
def test_top_out_of_range(scores: Scores, top: float) -> None:
    with pytest.raises(SetError, match="expected a share between 0 and 1, or a whole number from 1 to 6"):
        select(scores, top=top)


def test_all_of_them_and_one_of_them(scores: Scores) -> None:
    assert len(select(scores, top=1.0)["a"]) == 6
    assert len(select(scores, top=1)["a"]) == 1


def test_one_group_has_no_others() -> None:
    alone = Scores("mlp", "s", ("a",), VALUES[:1], VALUES[:1], VALUES[:1], torch.tensor([3]))
    with pytest.raises(SetError, match="at least two groups"):
        select(alone, contrast="others")


def _sets(**members: list[int]) -> dict[str, NeuronSet]:
    made = {}
    for group, indices in members.items():
        mask = torch.zeros(1, 6, dtype=torch.bool)
        mask[0, indices] = True
        made[group] = NeuronSet("mlp", "s", mask)
    return made


def test_exclusive_neurons_are_in_one_set_alone() -> None:
    alone = exclusive(_sets(a=[0, 1, 2], b=[2, 3], c=[3, 4]))
    assert {group: [n for _, n in s] for group, s in alone.items()} == {"a": [0, 1], "b": [], "c": [4]}
    assert [n for _, n in exclusive(_sets(a=[1]))["a"]] == [1]


def test_neurons_in_common_by_number_of_sets() -> None:
    sets = _sets(a=[0, 1, 2], b=[1, 2], c=[2, 5])
    assert [n for _, n in in_common(sets)] == [2]
    assert [n for _, n in in_common(sets, at_least=2)] == [1, 2]
    with pytest.raises(SetError, match="expected 1 to 3"):
        in_common(sets, at_least=4)
