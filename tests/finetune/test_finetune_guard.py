"""The guard: what it keeps, what it leaves free, and that a guarded slice does not move earlier answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.continual import continual
from neuropolis.finetune.continual_state import load_learned, save_learned
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.guard import free_projector, input_moments, projected
from neuropolis.finetune.guarded import GuardOptions
from neuropolis.finetune.learners import LEARNERS, Learned, Lesson, entries_now, options_of
from neuropolis.finetune.location import Location
from neuropolis.finetune.streams import tasks_of
from neuropolis.finetune.training import Recipe
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, state

WIDE = torch.float64  # rounding far below what is compared


def lesson(subject: Subject, corpus: Corpus, place: int = 0, before: Learned | None = None, **options: Any) -> Lesson:
    recipe = Recipe(lr=0.01, steps=4, batch_size=2, seed=place, weight_decay=0.1)
    where = options.pop("location", Location(top=6, layers=(1,)))
    chosen = options_of(LEARNERS["guarded"], options)
    return Lesson(subject, tasks_of(corpus), place, recipe, where, chosen, before)


def learn(one: Lesson) -> Learned:
    learned = LEARNERS["guarded"].learn(one)
    assert learned is not None
    return learned


def logits(subject: Subject, corpus: Corpus) -> torch.Tensor:
    """The logits that predict the answers of a corpus' rows, one row after another."""
    found = []
    for one in encode_corpus(subject, corpus):
        with torch.no_grad():
            found.append(subject.model(torch.tensor([one.ids[:-1]])).logits[0, one.start - 1 :])
    return torch.cat(found)


def test_projectors_by_hand() -> None:
    """Energies 9, 4 and 1 along three axes of four: 9/14 is 64 %, 13/14 is 93 %."""
    moment = torch.diag(torch.tensor([4.0, 0.0, 9.0, 1.0], dtype=WIDE))
    for share, free in {0.6: [1, 1, 0, 1], 0.9: [0, 1, 0, 1], 0.95: [0, 1, 0, 0], 1.0: [0, 1, 0, 0]}.items():
        assert torch.allclose(free_projector([moment], share), torch.diag(torch.tensor(free, dtype=WIDE)))
    soft = torch.tensor([1 / 2, 1, 1 / (1 + 9 / 4), 1 / (1 + 1 / 4)], dtype=WIDE)
    assert torch.allclose(free_projector([moment], 0.9, soft=True), torch.diag(soft))


def test_a_later_moment_has_its_share_of_what_an_earlier_one_leaves() -> None:
    """Of the second's 100 + 3 + 1 the first leaves 3 + 1, and 3 are 75 % of those."""
    first, second = (torch.diag(torch.tensor(e, dtype=WIDE)) for e in ([9.0, 0.0, 0.5], [100.0, 3.0, 1.0]))
    assert torch.allclose(free_projector([first, second], 0.7), torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=WIDE)))
    assert torch.allclose(free_projector([second], 0.7), torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=WIDE)))


def test_a_change_loses_what_kept_inputs_would_feel() -> None:
    projector = free_projector([torch.ones(2, 2, dtype=WIDE)], 1.0)
    assert torch.allclose(
        projected(torch.tensor([[3.0, 1.0]], dtype=WIDE), projector), torch.tensor([[1.0, -1.0]], dtype=WIDE)
    )
    assert projected(torch.ones(3), None).tolist() == [0, 0, 0]


def test_inputs_count_by_what_the_answer_feels_of_them(corpus: Corpus) -> None:
    subject = build("llama")
    encoded = encode_corpus(subject, corpus)
    everything = NeuronSet("mlp", subject.fingerprint, torch.ones(2, 24, dtype=torch.bool))
    found = input_moments(subject, everything, encoded)
    for layer in (0, 1):
        path, total = f"model.layers.{layer}.mlp.down_proj", torch.zeros(24, 24)
        module, seen = subject.model.get_submodule(path), []
        for one in encoded:
            handle = module.register_forward_hook(lambda _, args, output, seen=seen: seen.append((args[0][0], output)))
            logits = subject.model(torch.tensor([one.ids[:-1]])).logits[0].log_softmax(dim=-1)
            handle.remove()
            loss = -sum(logits[place - 1, one.ids[place]] for place in range(one.start, len(one.ids)))
            x, output = seen.pop()
            weights = torch.autograd.grad(loss, output)[0][0].norm(dim=-1)
            if layer == 1:
                assert weights[: one.start - 1].tolist() == [0.0] * (one.start - 1)
            total += torch.einsum("t,tn,tm->nm", weights / weights.sum(), x, x).detach()
        assert torch.allclose(found[path], total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "matrices"), [("llama", "out"), ("gpt2", "out"), ("gpt2", "all"), ("phi3", "all")])
def test_whole_energy_leaves_earlier_answers_where_they_are(corpus: Corpus, family: str, matrices: str) -> None:
    subject = build(family, WIDE)
    before = state(subject)
    few = replace(corpus, examples=tuple(one for one in corpus if one.tags["item"] == "food"))
    old = few.only("aland", split="train")
    first = learn(lesson(subject, few, share=1.0, matrices=matrices))
    with first.delta.applied(subject):
        then = logits(subject, old)
    second = learn(lesson(subject, few, 1, first, share=1.0, matrices=matrices))
    assert same_bits(state(subject), before)
    with second.delta.applied(subject):
        now, changed = logits(subject, old), state(subject)
    assert torch.allclose(now, then, atol=1e-9)
    with first.delta.applied(subject):
        unmoved = state(subject)
    moved = {name for name in changed if not torch.equal(changed[name], unmoved[name])}
    assert moved
    assert all(".1." in name for name in moved)
    neurons = second.delta.neurons
    assert neurons is not None
    outside = entries_now(subject, ~neurons)
    with second.delta.applied(subject):
        assert same_bits(entries_now(subject, ~neurons), outside)
    if matrices == "out":
        assert moved == {next(name for name in moved if "down_proj.weight" in name or "c_proj.weight" in name)}


def test_without_the_guard_the_same_steps_move_them(corpus: Corpus) -> None:
    """A share so small that one direction is kept."""
    subject = build("llama", WIDE)
    first = learn(lesson(subject, corpus, share=1e-9))
    second = learn(lesson(subject, corpus, 1, first, share=1e-9))
    old = corpus.only("aland", split="train")
    with first.delta.applied(subject):
        then = logits(subject, old)
    with second.delta.applied(subject):
        assert not torch.allclose(logits(subject, old), then, atol=1e-3)


def test_the_budget_is_that_of_whole_slices(corpus: Corpus) -> None:
    """Eight neurons of gate and up with biases and of down are 8 * (3 * 16 + 2) = 400 numbers; a column is 16."""
    subject = build("llama")
    where = Location(top=8, layers=None)
    assert learn(lesson(subject, corpus, matrices="all", location=where)).trained == 400
    assert learn(lesson(subject, corpus, matrices="out", location=where)).trained == 400


def test_moments_add_up_over_tasks_and_survive_a_file(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    first = learn(lesson(subject, corpus))
    second = learn(lesson(subject, corpus, 1, first))
    key = "stream/model.layers.1.mlp.down_proj"
    with second.delta.applied(subject):
        everything = NeuronSet("mlp", subject.fingerprint, torch.ones(2, 24, dtype=torch.bool)).layers([1])
        new = input_moments(subject, everything, encode_corpus(subject, corpus.only("borland", split="train")))
    assert torch.allclose(second.memory[key], first.memory[key] + new[key.removeprefix("stream/")])
    save_learned(first, tmp_path / "first.safetensors")
    again = learn(lesson(subject, corpus, 1, load_learned(subject, tmp_path / "first.safetensors")))
    assert same_bits(dict(again.delta.values), dict(second.delta.values))
    assert same_bits(dict(again.memory), dict(second.memory))


def test_the_reference_is_protected_from_the_first_task_on(corpus: Corpus) -> None:
    subject = build("llama", WIDE)
    one = replace(lesson(subject, corpus, share=1.0, known=8), reference=corpus.only("dor", split="train"))
    with learn(one).delta.applied(subject):
        held = logits(subject, corpus.only("dor", split="train"))
    assert torch.allclose(held, logits(subject, corpus.only("dor", split="train")), atol=1e-9)


def test_random_neurons_match_the_located_ones_by_layer(corpus: Corpus) -> None:
    subject = build("llama")
    own, drawn = (learn(lesson(subject, corpus, neurons=name)).delta.neurons for name in ("located", "random"))
    assert own is not None
    assert drawn is not None
    assert own.per_layer.tolist() == drawn.per_layer.tolist()


def test_an_interrupted_stream_goes_on_to_the_same_numbers(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")

    def run(folder: Path, stop: int | None = None) -> Any:
        asked = []

        def accuracy(_: Subject, part: Corpus) -> torch.Tensor:
            asked.append(part)
            if stop is not None and len(asked) > stop:
                raise KeyboardInterrupt
            return logits(subject, part).sum(dim=-1)[: len(part)] > 0

        return continual(
            subject, tasks_of(corpus), accuracy=accuracy, methods=("guarded",), seeds=(0,), steps=3, batch_size=2,
            location=Location(top=6, layers=(1,)), lrs={"guarded": 0.05}, state=folder,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=3 + 3 + 1)
    assert torch.equal(run(tmp_path / "stopped").matrix, run(tmp_path / "whole").matrix)


def test_options_are_checked() -> None:
    with pytest.raises(
        TuneError, match=r"share is one of the inputs' energy, expected above 0 and at most 1, got 1\.5"
    ):
        GuardOptions(share=1.5)
    with pytest.raises(TuneError, match="matrices must be one of all, out, got 'in'"):
        GuardOptions(matrices="in")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TuneError, match="known must be 0 or more, got -1"):
        GuardOptions(known=-1)
