"""Each method's formula, worked out by hand or by another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import Encoded, answer_log_probs, collate, encode_corpus, forward
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune import lora_methods
from neuropolis.finetune.continual import METHODS
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.ewc import EwcOptions, elastic, fisher_diagonal
from neuropolis.finetune.learners import LEARNERS, Learned, Lesson, options_of
from neuropolis.finetune.location import Location
from neuropolis.finetune.lora_methods import matched_rank, orthogonality
from neuropolis.finetune.replay import ReplayOptions, mixture
from neuropolis.finetune.streams import tasks_of
from neuropolis.finetune.trainable import trainable_full
from neuropolis.finetune.training import Recipe, finetune_full
from neuropolis.finetune.weighted import WeightedOptions, column_factors, task_features, task_weights
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, state

WHERE = Location(top=6, layers=(1,))


def lesson(
    subject: Subject, corpus: Corpus, method: str, place: int = 0, before: Learned | None = None, **changed: Any
) -> Lesson:
    options = options_of(LEARNERS[method], changed.pop("options", {}))
    recipe = Recipe(lr=changed.pop("lr", 0.01), steps=changed.pop("steps", 3), batch_size=2, seed=place)
    return replace(Lesson(subject, tasks_of(corpus), place, recipe, WHERE, options, before), **changed)


def learn(
    subject: Subject, corpus: Corpus, method: str, place: int = 0, before: Learned | None = None, **changed: Any
) -> Learned:
    learned = LEARNERS[method].learn(lesson(subject, corpus, method, place, before, **changed))
    assert learned is not None
    return learned


def logits(subject: Subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.model(torch.tensor([[3, 5, 8, 4]])).logits


def test_every_method_says_where_its_formula_is_from() -> None:
    assert all(len(LEARNERS[name].learn.__doc__ or "") > 80 for name in METHODS)


def test_full_is_finetune_full_again_and_again(corpus: Corpus) -> None:
    subject = build("llama")
    first = learn(subject, corpus, "full")
    expected = finetune_full(subject, corpus.only("aland"), lr=0.01, steps=3, batch_size=2, seed=0)
    assert same_bits(dict(first.delta.values), dict(expected.values))
    second = learn(subject, corpus, "full", 1, first)
    merged = expected.merge(subject)
    onward = finetune_full(merged, corpus.only("borland"), lr=0.01, steps=3, batch_size=2, seed=1)
    assert same_bits(dict(second.delta.values), dict(onward.values))
    assert same_bits(dict(second.delta.base), dict(expected.base))
    alone = learn(subject, corpus, "per-task", 1, first)
    direct = finetune_full(subject, corpus.only("borland"), lr=0.01, steps=3, batch_size=2, seed=1)
    assert same_bits(dict(alone.delta.values), dict(direct.values))


def test_joint_waits_and_then_takes_all_steps(corpus: Corpus) -> None:
    subject = build("llama")
    assert LEARNERS["joint"].learn(lesson(subject, corpus, "joint", 1)) is None
    assert len(learn(subject, corpus, "joint", 2).delta.history) == 9


def test_random_neurons_match_the_set_by_layer(corpus: Corpus) -> None:
    subject = build("llama")
    own, drawn = (learn(subject, corpus, name) for name in ("ncft", "random"))
    assert own.delta.neurons is not None
    assert drawn.delta.neurons is not None
    assert drawn.delta.neurons.per_layer.tolist() == own.delta.neurons.per_layer.tolist() == [0, 6]
    assert not bool((own.delta.neurons & drawn.delta.neurons).mask.any())


def test_random_sets_keep_apart_as_the_located_ones_do(corpus: Corpus) -> None:
    subject = build("llama")
    where = replace(WHERE, apart=True)
    first = learn(subject, corpus, "random", location=where)
    second = learn(subject, corpus, "random", 1, first, location=where)
    one, two = second.memory["drawn"]
    assert int(one.sum()) == int(two.sum()) == 6
    assert not bool((one & two).any())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_lora_is_the_product_of_its_factors(corpus: Corpus, family: str) -> None:
    """What PEFT's modules compute while they are on is what the delta computes when they are gone."""
    subject = build(family)
    before, plain = state(subject), logits(subject)
    seen: list[torch.Tensor] = []
    learned = learn(
        subject, corpus, "lora", options={"rank": 2, "alpha": 6.0}, progress=lambda *_: seen.append(logits(subject))
    )
    assert same_bits(state(subject), before)
    with learned.delta.applied(subject):
        assert torch.allclose(logits(subject), seen[-1], atol=1e-5)
        assert not torch.allclose(logits(subject), plain, atol=1e-3)
        changed = {name for name, tensor in state(subject).items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[-2] for name in changed} <= {
        "gate_proj",
        "up_proj",
        "down_proj",
        "c_fc",
        "c_proj",
        "gate_up_proj",
    }
    path = next(key.removeprefix("A/") for key in learned.memory if key.startswith("A/"))
    step = learned.memory[f"B/{path}"] @ learned.memory[f"A/{path}"] * 3.0
    key = next(key for key in learned.delta.values if key.startswith(path) and not key.endswith("bias"))
    assert torch.allclose(learned.delta.values[key] - learned.delta.base[key], step, atol=1e-5)


def test_sequential_lora_goes_on_with_one_adapter(corpus: Corpus) -> None:
    """A second task without a step leaves the adapter where it was; the rank does not grow."""
    subject = build("llama")
    first = learn(subject, corpus, "lora", options={"rank": 2})
    second = learn(subject, corpus, "lora", 1, first, options={"rank": 2}, lr=1e-12)
    for key, factor in first.memory.items():
        assert second.memory[key].shape == factor.shape
        assert torch.allclose(second.memory[key], factor, atol=1e-6)
    assert second.trained == first.trained == 2 * 2 * 3 * (16 + 24)


def test_adapters_get_the_slices_budget(corpus: Corpus) -> None:
    """Six neurons of gate, up and down with two biases are 300 numbers; one rank of both layers has 240, of one 120."""
    subject = build("llama")
    one = lesson(subject, corpus, "lora")
    both = NeuronSet("mlp", subject.fingerprint, torch.ones(2, 24, dtype=torch.bool))
    assert matched_rank(one, both) == round(300 / 240) == 1
    assert matched_rank(one, both.layers([1])) == round(300 / 120) == 2
    wider = replace(one, location=Location(top=0.5))
    assert matched_rank(wider, both) == round(24 * 50 / 240)
    by_layer = replace(one, location=Location(top=6, scope="layer"))
    assert matched_rank(by_layer, both) == round(12 * 50 / 240)


def test_orthogonality_by_hand() -> None:
    """Two earlier tasks, rank 2 and 1 channel pairs: |A_1^T A_t| = [[1, 2], [0, 2]], |A_2^T A_t| = [[2, 0], [2, 0]]."""
    earlier = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-2.0, 0.0], [2.0, 0.0]]])
    current = torch.tensor([[1.0, 0.0], [-2.0, 1.0]])
    products = [[[1.0, -2.0], [0.0, 2.0]], [[-2.0, 4.0], [2.0, -4.0]]]
    assert float(orthogonality(earlier, current)) == sum(abs(x) for p in products for row in p for x in row)
    assert float(orthogonality(earlier, current, power=2)) == sum(x * x for p in products for row in p for x in row)
    assert float(orthogonality(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[0.0, 5.0]]))) == 0


def test_o_lora_adds_adapters_and_keeps_the_earlier_ones(corpus: Corpus) -> None:
    subject = build("llama")
    first = learn(subject, corpus, "o-lora", options={"rank": 2})
    second = learn(subject, corpus, "o-lora", 1, first, options={"rank": 2})
    path = "model.layers.0.mlp.up_proj"
    assert torch.equal(second.memory[f"A/{path}"][0], first.memory[f"A/{path}"][0])
    total = sum(2.0 * second.memory[f"B/{path}"][task] @ second.memory[f"A/{path}"][task] for task in (0, 1))
    step = second.delta.values[f"{path}.rows"] - second.delta.base[f"{path}.rows"]
    assert torch.allclose(step, total, atol=1e-5)
    assert torch.equal(second.delta.base[f"{path}.rows"], subject.model.get_submodule(path).weight)


def test_o_lora_turns_away_from_earlier_directions(corpus: Corpus) -> None:
    subject = build("llama")
    first = learn(subject, corpus, "o-lora", options={"rank": 2})

    def overlap(weight: float) -> float:
        after = learn(subject, corpus, "o-lora", 1, first, options={"rank": 2, "weight": weight}, lr=0.02, steps=40)
        keys = [key for key in after.memory if key.startswith("A/")]
        return sum(float(orthogonality(after.memory[key][:1], after.memory[key][1])) for key in keys)

    assert overlap(10.0) < 0.3 * overlap(0.0)


def test_adapters_need_peft(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        TuneError, match=r"methods lora and o-lora need PEFT: pip install 'neuropolis\[lora\]', or leave them out"
    ):
        learn(build("llama"), corpus, "lora")
    with pytest.raises(TuneError, match="rank must be 1 or more, got 0"):
        lora_methods.LoraOptions(rank=0)


def test_elastic_by_hand() -> None:
    values, anchor, fisher = torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0]), torch.tensor([2.0, 4.0])
    assert float(elastic(values, anchor, fisher)) == 0.5 * (2.0 * 1.0 + 4.0 * 9.0)
    variable = values.clone().requires_grad_()
    elastic(variable, anchor, fisher).backward()
    assert variable.grad is not None
    assert variable.grad.tolist() == [2.0 * 1.0, 4.0 * 3.0]


def test_fisher_is_the_mean_of_squared_gradients(corpus: Corpus) -> None:
    subject = build("llama")
    encoded = encode_corpus(subject, corpus.only("dor", split="train"))
    with trainable_full(subject) as trainable:
        found = fisher_diagonal(subject, encoded, trainable)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = subject.model.get_parameter(name)
    squares = []
    for one in encoded:
        batch = collate([one], [0])
        subject.model.zero_grad()
        answer_log_probs(forward(subject, batch), batch.targets).sum().backward()
        assert weight.grad is not None
        squares.append(weight.grad.square().clone())
    assert len(squares) == 2
    assert torch.allclose(found[name], torch.stack(squares).mean(dim=0), rtol=1e-4, atol=1e-10)


def test_ewc_without_a_spring_is_full_tuning_and_with_a_stiff_one_stands_still(corpus: Corpus) -> None:
    subject = build("llama")
    first = learn(subject, corpus, "full")
    moved = {}
    for weight in (0.0, 1e9):
        held = learn(subject, corpus, "ewc", options={"weight": weight})
        assert same_bits(dict(held.delta.values), dict(first.delta.values))  # nothing to hold at the first task
        after = learn(subject, corpus, "ewc", 1, held, options={"weight": weight}, lr=1e-3)
        firm = {key: fisher > fisher.flatten().quantile(0.9) for key, fisher in held.memory.items()}
        moved[weight] = sum(
            float((after.delta.values[key] - held.delta.values[key])[mask].abs().sum()) for key, mask in firm.items()
        )
    plain = learn(subject, corpus, "full", 1, first, lr=1e-3)
    held = learn(subject, corpus, "ewc", options={"weight": 0.0})
    again = learn(subject, corpus, "ewc", 1, held, options={"weight": 0.0}, lr=1e-3)
    assert same_bits(dict(again.delta.values), dict(plain.delta.values))
    assert moved[1e9] < 0.7 * moved[0.0]
    with pytest.raises(TuneError, match="samples above 0"):
        EwcOptions(samples=0)


def test_ewc_sums_what_the_tasks_need(corpus: Corpus) -> None:
    """After two tasks the Fisher information is the first task's plus the second's; the known groups' comes before."""
    subject = build("llama")
    first = learn(subject, corpus, "ewc")
    second = learn(subject, corpus, "ewc", 1, first)
    assert all(bool((second.memory[key] >= first.memory[key]).all()) for key in first.memory)
    known = learn(subject, corpus, "ewc", options={"known": 1}, reference=corpus.only("dor"))
    assert not same_bits(dict(known.delta.values), dict(first.delta.values))


def test_replay_mixes_by_share() -> None:
    new, old = [Encoded((n, n), 1) for n in range(12)], [Encoded((90 + n, n), 1) for n in range(3)]
    mixed = mixture(new, old, 0.25, seed=0)
    assert mixed[:12] == new
    drawn = mixed[12:]
    assert len(drawn) == 4  # 4 of 16 rows are a quarter
    assert sorted(drawn.count(one) for one in old) == [1, 1, 2]
    assert mixture(new, [], 0.25, seed=0) == new
    with pytest.raises(TuneError, match="share must lie between 0 and 1, got 1"):
        ReplayOptions(share=1)
    with pytest.raises(TuneError, match="one above, got 0 and 0"):
        ReplayOptions(buffer=0)


def test_replay_keeps_the_steps_and_can_train_a_slice(corpus: Corpus) -> None:
    subject = build("llama")
    first = learn(subject, corpus, "replay")
    assert same_bits(dict(first.delta.values), dict(learn(subject, corpus, "full").delta.values))
    second = learn(subject, corpus, "replay", 1, first)
    assert len(second.delta.history) == 3
    assert not same_bits(dict(second.delta.values), dict(learn(subject, corpus, "full", 1, first).delta.values))
    sliced = learn(subject, corpus, "replay", options={"on": "neurons"})
    assert sliced.delta.neurons is not None
    assert len(sliced.delta.neurons) == 6


def test_task_weights_by_hand() -> None:
    """Cosines of the second task: 0.6, 1, 0. Softmax of those, then divided by the second's own, or times three."""
    features = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    shares = torch.tensor([0.6, 1.0, 0.0]).exp()
    assert torch.allclose(task_weights(features, 1, scale="none"), shares / shares.sum())
    assert torch.allclose(task_weights(features, 1, scale="count"), 3 * shares / shares.sum())
    assert torch.allclose(task_weights(features, 1), torch.tensor([-0.4, 0.0, -1.0]).exp())
    assert torch.allclose(task_weights(features, 1, temperature=0.1), torch.tensor([-4.0, 0.0, -10.0]).exp())


def test_column_factors_by_hand() -> None:
    """Neurons of one layer: of task 0, of both, of task 1, of none."""
    masks = torch.tensor([[[True, True, False, False]], [[False, True, True, False]]])
    weights = torch.tensor([0.25, 0.5])
    for shared, both in (("max", 0.5), ("mean", 0.375), ("sum", 0.75)):
        assert column_factors(masks, weights, shared=shared).tolist() == [[0.25, both, 0.5, 1.0]]


def test_features_do_not_depend_on_batch_mates(corpus: Corpus) -> None:
    subject = build("llama")
    rows = corpus.only("dor")
    each = [task_features(subject, Corpus((one,))) for one in rows]
    assert torch.allclose(task_features(subject, rows), torch.stack(each).mean(dim=0), atol=1e-6)
    ids = torch.tensor([subject.tokenizer(rows[0].prompt + rows[0].answer).input_ids[:-1]])
    with torch.no_grad():
        hidden = subject.model.model(ids).last_hidden_state[0]
    assert torch.allclose(each[0], hidden.mean(dim=0), atol=1e-6)


def weighted(subject: Subject, corpus: Corpus, **options: Any) -> tuple[Lesson, Learned]:
    first = learn(subject, corpus, "w-ncft", options=options)
    second = lesson(subject, corpus, "w-ncft", 1, first, options=options)
    learned = LEARNERS["w-ncft"].learn(second)
    assert learned is not None
    return second, learned


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weighted_columns_are_scaled_activations(corpus: Corpus, family: str) -> None:
    """Scaling a column of the output projection is scaling what its neuron writes."""
    subject = build(family)
    before = state(subject)
    now, learned = weighted(subject, corpus, temperature=0.01)
    factors = column_factors(learned.memory["masks"], task_weights(learned.memory["features"], 0, temperature=0.01))
    assert len(factors[factors < 1]) > 0
    view = LEARNERS["w-ncft"].view
    with view(now, learned, 0):
        found = logits(subject)
    with learned.delta.applied(subject):
        unscaled = logits(subject)
        other = float(factors.min())
        lower = NeuronSet("mlp", subject.fingerprint, factors < 1)
        assert len(set(factors[factors < 1].tolist())) == 1
        with intervene(subject, lower, kind="scale", factor=other):
            assert torch.allclose(logits(subject), found, atol=1e-5)
    assert not torch.allclose(found, unscaled, atol=1e-5)
    for place in (None, 2):  # of no task, and of one that was not learned yet
        with view(now, learned, place):
            assert torch.equal(logits(subject), unscaled)
    assert same_bits(state(subject), before)


def test_weighting_the_changes_takes_other_tasks_back(corpus: Corpus) -> None:
    """Where the weights of other tasks vanish, only what the asked task's neurons learned is left."""
    subject = build("llama")
    now, learned = weighted(subject, corpus, temperature=1e-6, of="changes", matrices="all")
    masks = learned.memory["masks"]
    assert bool((masks[0] & ~masks[1]).any())
    with learned.delta.applied(subject):
        full = state(subject)
    plain = state(subject)
    with LEARNERS["w-ncft"].view(now, learned, 1):
        found = state(subject)
    key = "model.layers.1.mlp.up_proj"
    own, gone = masks[1][1], (masks[0] & ~masks[1])[1]
    for name in (f"{key}.weight", f"{key}.bias"):
        assert torch.equal(found[name][own], full[name][own])
        assert torch.allclose(found[name][gone], plain[name][gone], atol=1e-7)
    assert not torch.equal(full[f"{key}.weight"][gone], plain[f"{key}.weight"][gone])


def test_weighted_options_are_checked() -> None:
    with pytest.raises(TuneError, match="scale must be one of own, count, none, got 'all'"):
        WeightedOptions(scale="all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TuneError, match="temperature and samples must be above 0"):
        WeightedOptions(temperature=0)
