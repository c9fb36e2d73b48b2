"""The run: every method on a tiny subject, what it leaves, and how it goes on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.continual import METHODS, continual
from neuropolis.finetune.continual_state import load_learned, save_learned
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.learners import LEARNERS, Learned, Lesson, options_of
from neuropolis.finetune.location import Location, locate
from neuropolis.finetune.streams import tasks_of
from neuropolis.finetune.training import Recipe
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, state
from torch import Tensor

WHERE = Location(top=6, layers=(1,))


def next_word(subject: Subject, corpus: Corpus) -> Tensor:
    """Whether the first word of the right answer is the model's likeliest."""
    found = []
    for example in corpus:
        ids = torch.tensor([subject.tokenizer(example.prompt).input_ids])
        with torch.no_grad():
            guess = int(subject.model(ids).logits[0, -1].argmax())
        found.append(guess == subject.tokenizer(example.answer).input_ids[0])
    return torch.tensor(found)


def run(subject: Subject, corpus: Corpus, **changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "accuracy": next_word, "methods": ("ncft",), "seeds": (0, 1), "location": WHERE, "steps": 2, "batch_size": 2,
    }  # fmt: skip
    return continual(subject, tasks_of(corpus), **(arguments | changed))


def lesson(
    subject: Subject, corpus: Corpus, method: str, place: int = 0, before: Learned | None = None, **changed: Any
) -> Lesson:
    options = options_of(LEARNERS[method], changed.pop("options", {}))
    recipe = Recipe(lr=changed.pop("lr", 0.01), steps=changed.pop("steps", 3), batch_size=2)
    return Lesson(subject, tasks_of(corpus), place, recipe, WHERE, options, before, **changed)


def test_every_method_runs_and_leaves_the_subject_as_it_was(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    told: list[str] = []
    ticks: list[tuple[int, int]] = []
    found = run(
        subject, corpus, methods=METHODS, order="seeded", seeds=(3,), known=corpus.only("aland"), reference=corpus.only("borland"),
        tell=told.append, progress=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert same_bits(state(subject), before)
    assert not any(parameter.requires_grad is False for parameter in subject.model.parameters())
    assert found.methods == METHODS
    assert set(METHODS) == set(LEARNERS)
    assert found.orders.sort(dim=1).values.tolist() == [[0, 1, 2]]
    joint = METHODS.index("joint")
    assert found.matrix[joint, :, :2].isnan().all()
    measured = torch.cat([found.matrix[:joint].flatten(), found.matrix[joint, :, -1].flatten()])
    assert not measured.isnan().any()
    slice_size = 6 * (17 + 17 + 16)  # rows of gate and up with their biases, a column of down
    whole = subject.num_parameters
    assert dict(zip(METHODS, found.trainable.tolist(), strict=True)) | {"lora": 0, "o-lora": 0} == {
        "ncft": slice_size, "w-ncft": slice_size, "random": slice_size, "lora": 0, "o-lora": 0, "full": whole,
        "guarded": round(slice_size / 16) * 16,  # columns alone
        "ewc": whole, "replay": whole, "per-task": whole, "joint": whole,
    }  # fmt: skip
    assert len(told) == len(METHODS)
    total = len(METHODS) * 3 * 2
    assert ticks[-1] == (total, total)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)


def test_a_stream_is_learned(corpus: Corpus) -> None:
    """With all neurons and enough steps, the last task is known at the end, and the untouched subject knew it not."""
    subject = build("llama")
    found = run(
        subject, corpus, methods=("ncft", "full"), seeds=(0,), location=Location(top=47, contrast=None), steps=60,
        lrs={"ncft": 0.03, "full": 0.01},
    )  # fmt: skip
    assert found.untouched[2] < 1
    assert found.matrix[:, 0, 2, 2].tolist() == [1.0, 1.0]


def test_a_second_run_is_the_first_one_again(corpus: Corpus) -> None:
    subject = build("llama")
    one, two = (run(subject, corpus, methods=METHODS[:6], seeds=(1,)) for _ in range(2))
    assert torch.equal(one.matrix, two.matrix)


def test_ncft_changes_its_tasks_neurons_and_nothing_else(corpus: Corpus) -> None:
    subject = build("llama")
    method = LEARNERS["ncft"]
    first = method.learn(lesson(subject, corpus, "ncft"))
    assert first is not None
    second = method.learn(lesson(subject, corpus, "ncft", 1, first))
    assert second is not None
    assert second.delta.neurons is not None
    sets = second.memory["masks"]
    assert torch.equal(second.delta.neurons.mask, sets.any(dim=0))
    assert sets.sum(dim=(1, 2)).tolist() == [6, 6]
    before = state(subject)
    with second.delta.applied(subject):
        now = state(subject)
    for name in ("gate_proj", "up_proj"):
        key = f"model.layers.1.mlp.{name}.weight"
        assert torch.equal((now[key] != before[key]).any(dim=1), sets.any(dim=0)[1])
    key = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal((now[key] != before[key]).any(dim=0), sets.any(dim=0)[1])
    assert all(torch.equal(now[key], before[key]) for key in now if "layers.1.mlp" not in key)
    columns = second.delta.base["model.layers.1.mlp.down_proj.columns"]
    assert torch.equal(columns, before[key][:, sets.any(dim=0)[1]])


def test_later_tasks_go_on_from_earlier_ones(corpus: Corpus) -> None:
    """Neurons of the first set alone keep what the first task wrote into them."""
    subject = build("llama")
    where = replace(WHERE, apart=True)
    first = LEARNERS["ncft"].learn(replace(lesson(subject, corpus, "ncft"), location=where))
    assert first is not None
    second = LEARNERS["ncft"].learn(replace(lesson(subject, corpus, "ncft", 1, first), location=where))
    assert second is not None
    one, two = second.memory["masks"]
    assert not bool((one & two).any())
    key = "model.layers.1.mlp.down_proj.weight"
    with first.delta.applied(subject):
        after_first = state(subject)[key]
    with second.delta.applied(subject):
        after_second = state(subject)[key]
    assert torch.equal(after_second[:, one[1]], after_first[:, one[1]])
    assert not torch.equal(after_second[:, two[1]], after_first[:, two[1]])


def test_sets_that_must_be_apart_run_out(corpus: Corpus) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match="task 'borland': the earlier tasks' sets leave 4 of the 20 neurons"):
        run(subject, corpus, location=Location(top=20, layers=(1,), apart=True))


def test_contrast_is_with_the_reference_and_with_earlier_tasks(corpus: Corpus) -> None:
    """What is ranked for the second task: its scores less the mean of the first task's and the reference's."""
    subject = build("llama")
    reference = WHERE.score(subject, corpus.only("dor"))
    ask = {"reference_scores": lambda: reference}
    first = LEARNERS["ncft"].learn(lesson(subject, corpus, "ncft", **ask))
    assert first is not None
    second = lesson(subject, corpus, "ncft", 1, first, **ask)
    chosen, memory = locate(second)
    with first.delta.applied(subject):
        own = WHERE.score(subject, second.task.train).values[0]
    expected = own - (memory["scores"][0] + reference.values[0]) / 2
    assert torch.allclose(memory["scores"][1], own)
    assert set(chosen.indices(1).tolist()) == set(expected[1].topk(6).indices.tolist())


def test_an_interrupted_run_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    """Killed in the fourth measurement of each method's first sequence; the second run learns only what is missing."""
    subject = build("llama")
    methods = ("ncft", "lora", "o-lora", "full", "ewc", "w-ncft")
    whole = run(subject, corpus, methods=methods, order="seeded")
    for method in methods:
        asked: list[int] = []

        def breaks(subject: Subject, corpus: Corpus, asked: list[int] = asked) -> Tensor:
            asked.append(1)
            if len(asked) == 3 + 3 * 2 + 1:  # before the stream, after two stages, and then no more
                raise KeyboardInterrupt
            return next_word(subject, corpus)

        folder = tmp_path / method
        with pytest.raises(KeyboardInterrupt):
            run(subject, corpus, methods=(method,), order="seeded", accuracy=breaks, state=folder)
        assert [file.name for file in sorted((folder / method / "seed-0").iterdir())] == [
            "learned-2.safetensors", "stage-1.json", "stage-2.json",
        ]  # fmt: skip
        asked[:] = [1] * 100
        found = run(subject, corpus, methods=(method,), order="seeded", accuracy=breaks, state=folder)
        assert len(asked) == 100 + 3 + 3 * 1 + 3 * 3  # before the stream, one stage of seed 0, three of seed 1
        row = methods.index(method)
        assert torch.equal(found.matrix[0], whole.matrix[row]), method
        assert not list(folder.rglob("*.safetensors"))


def test_methods_and_seeds_can_be_added_to_a_run(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    first = run(subject, corpus, seeds=(0,), state=tmp_path / "s")
    more = run(subject, corpus, methods=("random", "ncft"), seeds=(5, 0), state=tmp_path / "s")
    assert torch.equal(more.matrix[1, 1], first.matrix[0, 0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 3}, "holds a run with another steps: 2, now 3; repeat the run"),
        ({"location": Location(top=5, layers=(1,))}, "another location"),
        (
            {"lrs": {"ncft": 0.5}},
            "s/ncft holds a run with another lr: 0.0003, now 0.5; choose another folder, or remove this one",
        ),
    ],
)
def test_other_arguments_are_refused(corpus: Corpus, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    subject = build("llama")
    run(subject, corpus, seeds=(0,), state=tmp_path / "s")
    with pytest.raises(TuneError, match=message):
        run(subject, corpus, seeds=(0,), state=tmp_path / "s", **changed)


def test_a_folder_of_something_else_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(TuneError, match="holds no run of this kind"):
        run(build("llama"), corpus, state=tmp_path)


def test_what_is_learned_is_read_back(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    for method in ("ncft", "full"):
        learned = LEARNERS[method].learn(lesson(subject, corpus, method))
        assert learned is not None
        save_learned(learned, tmp_path / method)
        back = load_learned(subject, tmp_path / method)
        assert (back.trained, back.delta.neurons) == (learned.trained, learned.delta.neurons)
        assert same_bits(dict(back.delta.values), dict(learned.delta.values))
        assert same_bits(dict(back.delta.base), dict(learned.delta.base))
        assert same_bits(dict(back.memory), dict(learned.memory))
    (tmp_path / "full").write_bytes(b"nothing of the kind")
    with pytest.raises(TuneError, match="cannot be read"):
        load_learned(subject, tmp_path / "full")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": ("sgd",)}, "unknown method 'sgd'; methods are"),
        ({"methods": ()}, "at least one method"),
        ({"methods": ("ncft", "ncft")}, "at least one method, and each once"),
        ({"seeds": ()}, "at least one seed"),
        ({"lrs": {"ncft": -1.0}}, "lr must be above 0, got -1.0"),
        ({"lrs": {"full": 1.0}}, "lrs names 'full', which is none of the methods ncft"),
        ({"options": {"ncft": {"rank": 3}}}, "method 'ncft' has no option 'rank'; it has none"),
        ({"accuracy": lambda *_: torch.ones(1)}, r"accuracy must give bool \[2\]"),
        ({"location": None, "order": "order-2"}, "the order needs task 'dbpedia'"),
    ],
)
def test_what_cannot_be_run_is_refused(corpus: Corpus, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TuneError, match=message):
        run(build("llama"), corpus, **changed)


def test_a_stream_of_some_tasks(corpus: Corpus) -> None:
    found = run(build("llama"), corpus, order=("dor", "aland"))
    assert found.tasks == ("aland", "dor")
    assert found.orders.tolist() == [[1, 0], [1, 0]]
