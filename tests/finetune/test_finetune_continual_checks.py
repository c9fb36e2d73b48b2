"""What a stream refuses before it trains, how it names what goes wrong, and damaged state folders."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune import lora_methods
from neuropolis.finetune.continual import continual
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.learners import LEARNERS, Lesson, options_of
from neuropolis.finetune.location import Location
from neuropolis.finetune.lora_methods import matched_rank
from neuropolis.finetune.options import made_options
from neuropolis.finetune.streams import sampled, tasks_of
from neuropolis.finetune.training import Recipe
from neuropolis.finetune.weighted import task_features
from neuropolis.neurons.subject import Subject
from tiny_families import build
from torch import Tensor

WHERE = Location(top=6, layers=(1,))


def all_right(_: Subject, corpus: Corpus) -> Tensor:
    return torch.ones(len(corpus), dtype=torch.bool)


def run(subject: Subject, corpus: Corpus, **changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "accuracy": all_right, "methods": ("ncft",), "seeds": (0,), "location": WHERE, "steps": 1, "batch_size": 2,
    }  # fmt: skip
    return continual(subject, tasks_of(corpus), **(arguments | changed))


def refused(corpus: Corpus, message: str, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """The error comes, and before anything is asked or learned."""

    def never(*_: Any) -> Any:
        raise AssertionError("something was asked or learned first")

    for name, one in list(LEARNERS.items()):
        monkeypatch.setitem(LEARNERS, name, replace(one, learn=never))
    with pytest.raises(TuneError, match=message):
        run(build("llama"), corpus, **{"accuracy": never, **changed})


def test_what_diverges_in_a_stream_is_named(corpus: Corpus) -> None:
    """The first task's ruined weights are found when it is learned, not when the second begins."""
    message = r"^method full, seed 3, task 'aland' \(number 1\): training diverged: the loss is .* after step 1 of 1"
    with pytest.raises(TuneError, match=message):
        run(build("llama"), corpus, methods=("ncft", "full"), seeds=(3,), lrs={"full": 1e30})
    message = r"^method full, seed 3, task 'borland' \(number 2\): .* before anything was trained here.* this run began"
    with pytest.raises(TuneError, match=message):
        run(build("llama"), corpus, methods=("full",), seeds=(3,), lrs={"full": 1e30}, stop_diverged=False)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ewc", {"weight": "abc"}, "option ewc.weight must be a number, got 'abc'"),
        ("ewc", {"weight": float("nan")}, "option ewc.weight must be a number, got nan"),
        ("ewc", {"samples": True}, "option ewc.samples must be a whole number, got True"),
        ("lora", {"rank": 1.5}, "option lora.rank must be a whole number or null, got 1.5"),
        ("lora", {"alpha": 0.0}, "alpha must be above 0"),
        ("lora", {"layers": (0, 7)}, r"option lora.layers has layer 7; the subject has layers 0 to 1"),
        ("o-lora", {"power": "x"}, "option o-lora.power must be a whole number, got 'x'"),
        ("o-lora", {"power": 3}, "power 1 or 2, got 0.5 and 3"),
        ("o-lora", {"weight": -1.0}, "weight must be 0 or more"),
        (
            "w-ncft",
            {"layers": 9},
            r"option w-ncft.layers must be a list, such as \[2, 3\], each a whole number or null",
        ),
        ("w-ncft", {"layers": (9,)}, "option w-ncft.layers has layer 9"),
        ("w-ncft", {"layers": ()}, "option w-ncft.layers is empty"),
        ("w-ncft", {"of": "columns"}, "option w-ncft.of must be one of weights, changes, got 'columns'"),
        ("replay", {"known": 4}, "option replay.known takes rows of the reference; give a reference"),
        ("ewc", {"known": 4}, "option ewc.known takes rows of the reference"),
    ],
)
def test_a_bad_option_is_refused_at_once(
    method: str, options: dict[str, Any], message: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(corpus, message, monkeypatch, methods=("ncft", method), options={method: options})


def test_good_options_pass() -> None:
    @dataclass(frozen=True)
    class Options:
        number: float = 1.0
        kind: Literal["a", "b"] = "a"
        some: tuple[int, ...] | None = None

    assert made_options(Options, {"number": 3, "kind": "b", "some": [1, 2]}, method="m") == Options(3, "b", [1, 2])  # pyright: ignore[reportArgumentType]
    assert made_options(Options, {"some": None}, method="m") == Options()


def test_contrasts_are_checked_before_training(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TuneError, match="unknown contrast 'foo' of a location; expected None, others, ratio, z"):
        Location(contrast="foo")
    with pytest.raises(TuneError, match="unknown scope 'model' of a location; expected global, layer"):
        Location(scope="model")
    for top in (0, 1.5, True, "5%"):
        with pytest.raises(TuneError, match="top must be a share above 0"):
            Location(top=top)  # pyright: ignore[reportArgumentType]
    z = replace(WHERE, contrast="z")
    assert run(build("llama"), corpus.only(["aland", "borland"]), location=z, reference=corpus).methods == ("ncft",)
    for reference in (None, corpus.only("dor")):
        refused(corpus, "contrast 'z' needs three groups at every task", monkeypatch, location=z, reference=reference)
    with pytest.raises(TuneError, match="layers has layer 5; the subject has"):
        run(build("llama"), corpus, location=Location(layers=(5,)))


def test_lora_without_peft_is_refused_before_training(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *arguments: Any, **further: Any) -> Any:
        if name.split(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return there(name, *arguments, **further)

    monkeypatch.setattr(builtins, "__import__", without)
    message = r"lora and o-lora need PEFT: pip install 'neuropolis\[lora\]', or leave them out"
    refused(corpus, message, monkeypatch, methods=("ncft", "lora"))


def lesson(subject: Subject, corpus: Corpus, method: str, where: Location = WHERE) -> Lesson:
    options = options_of(LEARNERS[method], {})
    return Lesson(subject, tasks_of(corpus), 0, Recipe(lr=0.01, steps=2, batch_size=2), where, options)


def test_a_share_of_all_is_not_one_neuron(corpus: Corpus) -> None:
    """Of all neurons the budget is the layers' whole projections; 1 is one neuron."""
    subject = build("llama")
    everything = lora_methods._everything(lesson(subject, corpus, "lora"))
    numbers = 2 * (2 * 24 * 17 + 16 * 24)
    one = 2 * (2 * (16 + 24) + 24 + 16)
    for scope in ("global", "layer"):
        whole = lesson(subject, corpus, "lora", Location(top=1.0, scope=scope))
        assert matched_rank(whole, everything) == round(numbers / one)
        assert matched_rank(replace(whole, location=Location(top=1, scope=scope)), everything) == 1


@pytest.mark.parametrize("method", ["lora", "o-lora"])
def test_adapters_of_a_narrow_model_have_wide_masters(method: str, corpus: Corpus) -> None:
    subject = build("llama", torch.bfloat16)
    learned = LEARNERS[method].learn(lesson(subject, corpus, method))
    assert learned is not None
    assert {tensor.dtype for tensor in learned.memory.values()} == {torch.float32}
    a = learned.memory["A/model.layers.0.mlp.up_proj"]
    assert not torch.equal(a, a.bfloat16().float())
    assert {tensor.dtype for tensor in learned.delta.values.values()} == {torch.bfloat16}


def test_samples_of_a_task_of_several_groups_are_of_the_task(corpus: Corpus) -> None:
    (task,) = tasks_of(corpus, each="corpus", questions=2)
    assert len(task.test) == 2
    assert len(sampled(corpus, 5, by_group=False)) == 5
    assert [row.id for row in task.test] == [row.id for row in task.test if row.tags["split"] == "test"]
    with pytest.raises(TuneError, match="expected 1 or more, got 0"):
        tasks_of(corpus, questions=0)
    subject = build("llama")
    stream = tasks_of(corpus, each="corpus")
    options = options_of(LEARNERS["w-ncft"], {"samples": 2})
    learned = LEARNERS["w-ncft"].learn(replace(lesson(subject, corpus, "w-ncft"), stream=stream, options=options))
    assert learned is not None
    expected = task_features(subject, sampled(stream[0].train, 2, by_group=False))
    assert torch.equal(learned.memory["features"][0], expected)


def interrupted(corpus: Corpus, folder: Path) -> None:
    """A state folder with one finished stage."""
    asked: list[int] = []

    def breaks(subject: Subject, corpus: Corpus) -> Tensor:
        asked.append(1)
        if len(asked) == 3 + 3 + 1:
            raise KeyboardInterrupt
        return all_right(subject, corpus)

    with pytest.raises(KeyboardInterrupt):
        run(build("llama"), corpus, accuracy=breaks, state=folder)


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("ncft/seed-0/stage-1.json", lambda b: b[:20], "stage-1.json is damaged .*remove .*seed-0 to learn this"),
        (
            "ncft/seed-0/stage-1.json",
            lambda b: b.replace(b'"trained"', b'"trained_"'),
            "stage-1.json is damaged: its ch",
        ),
        (
            "ncft/seed-0/stage-1.json",
            lambda b: b.replace(b"1.0", b"0.0", 1),
            "its checksum or its entries do not match",
        ),
        ("ncft/seed-0/stage-1.json", lambda _: b"[]", r"expected a JSON object, found \[\]"),
        (
            "ncft/seed-0/learned-1.safetensors",
            lambda b: b[:50],
            "learned-1.safetensors cannot be read.*remove .*seed-0",
        ),
        ("ncft/seed-0/learned-1.safetensors", flipped, "learned-1.safetensors is damaged: its checksum does not match"),
        ("run.json", lambda _: b"", "run.json is damaged .*remove .* to start over"),
        ("ncft/method.json", lambda b: b[:9], "method.json is damaged .*remove .*ncft to start over"),
    ],
)
def test_a_damaged_state_is_named(name: str, damage: Any, message: str, corpus: Corpus, tmp_path: Path) -> None:
    interrupted(corpus, tmp_path)
    file = tmp_path / name
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    with pytest.raises(TuneError, match=message):
        run(build("llama"), corpus, state=tmp_path)
    file.write_bytes(before)
    assert run(build("llama"), corpus, state=tmp_path).methods == ("ncft",)


def test_a_state_without_checksums_is_still_read(corpus: Corpus, tmp_path: Path) -> None:
    interrupted(corpus, tmp_path)
    file = tmp_path / "ncft/seed-0/stage-1.json"
    said = json.loads(file.read_text())
    del said["checksum"]
    file.write_text(json.dumps(said))
    assert run(build("llama"), corpus, state=tmp_path).methods == ("ncft",)


def test_a_state_that_is_a_file_is_refused(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("mine")
    refused(corpus, "state is a file; the state is a folder", monkeypatch, state=tmp_path / "state")
