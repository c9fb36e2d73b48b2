"""Effects: the planted neurons are what their groups depend on; tests and intervals agree with values by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from neuropolis.analysis.ablate import ablate, control
from neuropolis.analysis.choices import choice_losses
from neuropolis.analysis.effects import Effects
from neuropolis.corpora.examples import Corpus, CorpusError
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Sets = dict[str, NeuronSet]


def made(
    group: list[int], item: list[int], base: list[int], ablated: list[list[int]], controls: list[list[list[int]]]
) -> Effects:
    names = "abcdefg"
    sets = tuple(names[: len(ablated)])
    groups = tuple(names[: max(group) + 1])
    as_bool = {"base": base, "ablated": ablated, "controls": controls}
    return Effects(
        "mlp", "s", "zero", "accuracy", sets, groups, torch.tensor(group), torch.tensor(item),
        **{key: torch.tensor(value).bool() for key, value in as_bool.items()},
        sizes=torch.ones(len(sets), dtype=torch.long),
    )  # fmt: skip


def test_planted_neurons_are_specific(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    steps: list[tuple[int, int]] = []
    effects = ablate(
        planted, questions, planted_sets, controls=4, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(n, 16) for n in range(1, 17)]
    assert effects.groups == ("a", "b", "c")
    assert effects.num_questions.tolist() == [16, 16, 16]  # the test split alone
    assert effects.accuracy_base.tolist() == [1, 1, 1]
    assert torch.equal(effects.effect, -torch.eye(3, dtype=torch.float64))
    # a control never holds the set's own neuron, but may hold another group's
    own_controls = effects.accuracy_controls[range(3), :, range(3)]
    assert torch.equal(own_controls, torch.ones(3, 4, dtype=torch.float64))
    torch.testing.assert_close(effects.p_vs_controls.diagonal(), torch.full((3,), 2.0**-8, dtype=torch.float64))
    assert bool((effects.p_vs_controls[~torch.eye(3, dtype=torch.bool)] == 1).all())
    assert effects.p_vs_others.tolist() == [1e-4] * 3
    rows = effects.summary()
    assert [row["set"] for row in rows] == ["a", "b", "c"]
    for row in rows:
        assert row["specific"]
        assert (row["base"], row["ablated"], row["controls"], row["others"], row["effect"]) == (1, 0, 1, 1, -1)
        assert (row["low"], row["high"]) == (-1, -1)
        assert row["p_controls"] == 3 * 2.0**-8
        assert row["smallest_detectable"] == math.ceil(math.log2(3 / 0.05)) / 16
    assert effects.origin["split"] == "test"
    assert effects.origin["corpus_hash"] == questions.only(split="test").hash


def test_random_neurons_are_not_specific(planted: Subject, questions: Corpus) -> None:
    idle = {g: NeuronSet.from_indices(planted, site="mlp", indices={1: [5], 0: [i]}) for i, g in enumerate("abc")}
    effects = ablate(planted, questions, idle, controls=3)
    assert not effects.effect.any()
    assert not any(row["specific"] for row in effects.summary())
    assert effects.p_vs_others.tolist() == [1, 1, 1]


def test_ablating_nothing_changes_nothing(make_subject: Callable[..., Subject], corpus: Corpus) -> None:
    subject = make_subject("llama")
    before = copy.deepcopy(subject.model.state_dict())
    effects = ablate(subject, corpus, {"north": NeuronSet.from_indices(subject, indices={})}, controls=2)
    assert torch.equal(effects.ablated[0], effects.base)
    assert torch.equal(effects.controls[0], effects.base.expand(2, -1))
    assert all(torch.equal(value, before[key]) for key, value in subject.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_same_seed_same_effects(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    once, again, other = (ablate(planted, questions, planted_sets, controls=6, seed=s) for s in (3, 3, 4))
    assert torch.equal(once.controls, again.controls)
    assert not torch.equal(once.controls, other.controls)


def test_controls_match_and_avoid_the_set(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject("llama")
    neurons = NeuronSet.from_indices(subject, indices={0: range(10), 2: [4]})
    drawn = [control(neurons, name="a", repeat=r, seed=0) for r in range(3)]
    assert len({d.digest for d in drawn}) == 3
    for one in drawn:
        assert torch.equal(one.per_layer, neurons.per_layer)
        assert not one & neurons


def test_splits(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    one = {"a": planted_sets["a"]}
    assert len(ablate(planted, questions, one, controls=0, split=None).base) == 60
    assert len(ablate(planted, questions, one, controls=0, split="train").base) == 12
    with pytest.raises(CorpusError, match="split='dev'"):
        ablate(planted, questions, one, split="dev")


def test_without_controls_nothing_is_claimed(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    effects = ablate(planted, questions, planted_sets, controls=0)
    assert effects.controls.shape == (3, 0, 48)
    assert bool(effects.p_vs_controls.isnan().all())
    assert not any(row["specific"] for row in effects.summary())


def test_bad_sets_are_refused(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    with pytest.raises(SetError, match="no sets"):
        ablate(planted, questions, {})
    with pytest.raises(SetError, match="belongs to subject"):
        ablate(planted, questions, {"a": replace(planted_sets["a"], subject="0" * 16)})
    with pytest.raises(SetError, match="needs a reference"):
        ablate(planted, questions, planted_sets, kind="mean")


def test_a_nan_under_ablation_is_named(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    with pytest.raises(ValueError, match="example 'a0p'"):
        ablate(planted, questions, planted_sets, kind="scale", factor=math.inf, controls=0)
    assert bool(choice_losses(planted, questions).isfinite().all())


def test_rows_of_one_item_count_once() -> None:
    # four questions lost, of two items: two clusters, so that 1/4 is the smallest p there is
    effects = made([0] * 4, [0, 0, 1, 1], [1] * 4, [[0] * 4], [[[1] * 4]])
    assert effects.p_vs_controls.item() == 1 / 4
    apart = replace(effects, item_index=torch.arange(4))
    assert apart.p_vs_controls.item() == 1 / 16


def test_groups_about_the_same_items_are_compared_item_by_item() -> None:
    # two languages, four facts in both; ablation loses three facts in one of them: one of eight sign patterns
    group, item = [0] * 4 + [1] * 4, [0, 1, 2, 3] * 2
    effects = made(group, item, [1] * 8, [[0, 0, 0, 1, 1, 1, 1, 1]], [[[1] * 8]])
    assert effects.p_vs_others.tolist() == [1 / 8]
    apart = replace(effects, item_index=torch.arange(8))  # 4 of 8 items own, all three losses among them
    assert apart.p_vs_others.tolist() == [pytest.approx(math.comb(5, 1) / math.comb(8, 4))]


def test_a_general_loss_is_not_specific() -> None:
    group = [0] * 10 + [1] * 10 + [2] * 10
    effects = made(group, list(range(30)), [1] * 30, [[0] * 30], [[[1] * 30]])
    row = effects.summary()[0]
    assert row["p_controls"] < 0.01
    assert row["p_others"] == 1
    assert not row["specific"]


def test_accuracies_and_effects_by_hand() -> None:
    effects = made([0, 0, 1, 1], [0, 1, 2, 3], [1, 1, 1, 0], [[0, 1, 1, 1]], [[[1, 1, 1, 0], [1, 0, 0, 0]]])
    assert effects.accuracy_base.tolist() == [1, 0.5]
    assert effects.accuracy_ablated.tolist() == [[0.5, 1]]
    assert effects.accuracy_controls.tolist() == [[[1, 0.5], [0.5, 0]]]
    assert effects.effect.tolist() == [[-0.5, 0.5]]
    assert effects.control_effect.tolist() == [[-0.25, -0.25]]


def test_corrections_over_own_or_all_cells() -> None:
    group = [0] * 6 + [1] * 6
    lost = [[0] * 6 + [1] * 6, [1] * 6 + [0] * 6]
    effects = made(group, list(range(12)), [1] * 12, lost, [[[1] * 12]] * 2)
    own, _ = effects.corrected()
    everywhere, _ = effects.corrected(cells="all")
    assert own.tolist() == [2 / 64] * 2
    assert everywhere.tolist() == [[4 / 64, 1], [1, 4 / 64]]
    assert effects.corrected(correction="benjamini_hochberg")[0].tolist() == [1 / 64] * 2


def test_a_set_without_a_group_of_its_name_has_no_own() -> None:
    effects = replace(made([0, 1], [0, 1], [1, 1], [[0, 1]], [[[1, 1]]]), sets=("elsewhere",))
    row = effects.summary()[0]
    assert row["group"] is None
    assert math.isnan(row["ablated"])
    assert not row["specific"]


def test_shapes_are_checked() -> None:
    with pytest.raises(SetError, match=r"ablated has shape \[1, 2\]"):
        made([0, 1, 1], [0, 1, 2], [1, 1, 1], [[0, 1]], [[[1, 1, 1]]])


def test_the_effect_size_counts_items() -> None:
    # of four items (two questions each) one loses both, one loses one, one gains, one stays: (2 - 1) / 4
    item = [0, 0, 1, 1, 2, 2, 3, 3]
    effects = made([0] * 8, item, [1] * 8, [[0, 0, 0, 1, 1, 1, 1, 1]], [[[1, 1, 1, 1, 0, 1, 1, 1]]])
    assert effects.dominance.tolist() == [[0.25]]
    assert effects.num_items.tolist() == [4]
    better = replace(effects, origin={"expect": "better"})
    assert better.dominance.tolist() == [[-0.25]]


def test_among_controls() -> None:
    effects = made([0] * 4, [0, 1, 2, 3], [1] * 4, [[0, 0, 1, 1]], [[[1] * 4, [0, 1, 0, 1], [0, 0, 0, 1]]])
    assert effects.p_among_controls.tolist() == [[3 / 4]]  # two of three controls are at least as bad
    without = replace(effects, controls=effects.controls[:, :0])
    assert bool(without.p_among_controls.isnan().all())
    assert bool(without.dominance.isnan().all())


def test_a_rising_loss_is_a_loss() -> None:
    base = torch.zeros(6)
    effects = replace(
        made([0] * 6, list(range(6)), [1] * 6, [[0] * 6], [[[1] * 6]]), base=base, ablated=base[None] + 2,
        controls=base[None, None] + 1, origin={"higher_is_better": False, "unit": "nats a token"},
    )  # fmt: skip
    assert effects.effect.tolist() == [[2]]
    assert effects.p_vs_controls.tolist() == [[1 / 64]]
    assert effects.dominance.tolist() == [[1]]
    assert (effects.scale, effects.unit) == (1, "nats a token")
    assert replace(effects, origin={"higher_is_better": True}).p_vs_controls.tolist() == [[1]]


def test_with_too_few_items_nothing_could_be_shown() -> None:
    few = made([0] * 4, [0, 1, 2, 3], [1] * 4, [[0, 0, 0, 1]], [[[1] * 4]])
    assert few.smallest_detectable.tolist() == [math.inf]  # 2 ** -4 is above 0.05
    enough = made([0] * 5, [0, 1, 2, 3, 4], [1] * 5, [[1] * 5], [[[1] * 5]])
    assert enough.smallest_detectable.tolist() == [1]
    assert enough.detectable(2).tolist() == [[math.inf]]  # 2 ** -5 is above 0.05 / 2


def test_sets_held_against_named_groups() -> None:
    effects = made([0, 1], [0, 1], [1, 1], [[0, 1], [1, 0]], [[[1, 1]]] * 2)
    assert replace(effects, sets=("x", "b/mlp")).own_group == (None, 1)
    assert replace(effects, sets=("x", "y"), owners=("b", None)).own_group == (1, None)
    with pytest.raises(SetError, match="1 owners for 2 sets"):
        replace(effects, owners=("b",))
