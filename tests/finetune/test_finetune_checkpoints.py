"""Runs that stop and go on: by an exception, a kill, a full disk, a divergence; and checkpoints of other runs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.jsonl import write_jsonl
from neuropolis.finetune import checkpoints, loop
from neuropolis.finetune.checkpoints import Checkpointing, read_header
from neuropolis.finetune.delta import Delta
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.loop import fit
from neuropolis.finetune.recipe import Recipe
from neuropolis.finetune.trainable import trainable_slice
from neuropolis.finetune.training import finetune, finetune_full
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import build, same_bits, some, state

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {"lr": 0.02, "steps": 9, "batch_size": 4, "weight_decay": 0.1, "clip": 0.5}


class Stopped(Exception):
    pass


def stop_after(step: int) -> Any:
    def progress(done: int, _: int) -> None:
        if done == step:
            raise Stopped

    return progress


def equal(one: Delta, other: Delta) -> bool:
    return same_bits(dict(one.values), dict(other.values)) and one.history == other.history


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    full: bool, dtype: torch.dtype, corpus: Corpus, tmp_path: Path
) -> None:
    subject = build("llama", dtype)
    before = state(subject)

    def tune(**training: Any) -> Delta:
        if full:
            return finetune_full(subject, corpus, **SETTINGS, eval_split="test", eval_every=2, **training)
        return finetune(subject, corpus, some(subject), **SETTINGS, eval_split="test", eval_every=2, **training)

    whole = tune()
    for stops in ([1], [5], [2, 3, 8], [9]):
        file = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(Stopped):
                tune(checkpoint=file, checkpoint_every=2, progress=stop_after(stop))
            assert same_bits(state(subject), before)
        seen: list[int] = []
        delta = tune(checkpoint=file, checkpoint_every=2, progress=lambda done, _, seen=seen: seen.append(done))
        assert equal(delta, whole)
        assert delta.origin == whole.origin
        assert seen[0] == max(0, stops[-1] - 1) // 2 * 2 + 1  # the checkpoint of a step is written in the next one
        assert read_header(file)["step"] == 9
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert equal(tune(checkpoint=file, checkpoint_every=2, progress=stop_after(1)), whole)  # nothing left to do


def test_resumed_early_stopping_keeps_the_same_best(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    settings: dict[str, Any] = {"lr": 0.5, "steps": 30, "eval_split": "test", "eval_every": 1, "patience": 6}
    rows = corpus.only(split="test")
    wrong = [type(e)(e.id, e.group, e.prompt, " tea", tags=e.tags) for e in rows]
    corpus = corpus.only(split="train") + Corpus(tuple(wrong), "wrong")
    whole = finetune(subject, corpus, some(subject), **settings)
    assert len(whole.history) < 30
    for stop in (1, len(whole.history) - 1):
        file = tmp_path / str(stop)
        with pytest.raises(Stopped):
            finetune(
                subject,
                corpus,
                some(subject),
                **settings,
                checkpoint=file,
                checkpoint_every=1,
                progress=stop_after(stop),
            )
        delta = finetune(subject, corpus, some(subject), **settings, checkpoint=file)
        assert equal(delta, whole)
        assert delta.origin["held_out"] == whole.origin["held_out"]


def test_random_numbers_go_on_where_they_were(corpus: Corpus, tmp_path: Path) -> None:
    """A penalty that draws from the global generator, as a stochastic hook would; the program's own state comes back."""
    subject = build("llama")
    encoded = encode_corpus(subject, corpus)

    def tune(file: Path | None, progress: Any = None) -> dict[str, torch.Tensor]:
        with trainable_slice(subject, some(subject)) as trainable:
            kept = None if file is None else Checkpointing(file, every=2)
            draw = lambda: (trainable.masters[0] * torch.randn_like(trainable.masters[0])).sum()  # noqa: E731
            fit(subject, encoded, trainable, Recipe(**SETTINGS), penalty=draw, progress=progress, checkpoint=kept)
            return trainable.values()

    torch.manual_seed(5)
    whole = tune(None)
    torch.manual_seed(5)
    with pytest.raises(Stopped):
        tune(tmp_path / "run", stop_after(5))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same_bits(tune(tmp_path / "run"), whole)
    assert torch.equal(torch.get_rng_state(), before)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_families import build, some
from neuropolis.corpora.loading import load_corpus
from neuropolis.finetune.training import finetune

def progress(done, of):
    print(done, flush=True)
    time.sleep(0.1)

subject = build("llama")
finetune(subject, load_corpus(sys.argv[2]), some(subject), lr=0.02, steps=40, batch_size=4,
         checkpoint=sys.argv[3], checkpoint_every=3, progress=progress)
"""


def test_killed_process_is_taken_up_again(corpus: Corpus, tmp_path: Path) -> None:
    write_jsonl(corpus, tmp_path / "rows.jsonl")
    arguments = [sys.executable, "-c", KILLED, str(HERE), str(tmp_path / "rows.jsonl"), str(tmp_path / "run")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 8:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    step = read_header(tmp_path / "run")["step"]
    assert 6 <= step < 40
    subject = build("llama")
    settings: dict[str, Any] = {"lr": 0.02, "steps": 40, "batch_size": 4}
    seen: list[int] = []
    delta = finetune(
        subject,
        corpus,
        some(subject),
        **settings,
        checkpoint=tmp_path / "run",
        progress=lambda done, _: seen.append(done),
    )
    assert seen == list(range(step + 1, 41))
    assert equal(delta, finetune(subject, corpus, some(subject), **settings))


def kept(subject: Subject, corpus: Corpus, file: Path, **settings: Any) -> None:
    """A checkpoint of step 4 of a run that was stopped."""
    with pytest.raises(Stopped):
        finetune(
            subject, corpus, some(subject), **{**SETTINGS, **settings}, checkpoint=file, checkpoint_every=2,
            progress=stop_after(5),
        )  # fmt: skip


def test_checkpoint_says_what_it_is_of(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    kept(subject, corpus, tmp_path / "run")
    said = read_header(tmp_path / "run")
    assert (said["step"], said["num_steps"], len(said["history"])) == (4, 9, 4)
    assert said["about"]["subject"] == subject.fingerprint
    assert said["about"]["neurons"] == some(subject).digest
    assert said["about"]["corpus"] == corpus.only(split="train").hash
    assert said["recipe"]["lr"] == 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"had lr 0\.02 \(now 0\.5\); .*resume='changed'"),
        (
            {"seed": 3, "clip": None},
            r"had clip 0\.5 \(now None\), seed 0 \(now 3\); give the same again, name another file$",
        ),
        ({"split": None}, r"had corpus \w{12} \(now \w{12}\), examples "),
        ({"eval_split": "test"}, r"had held_out \w{12} \(now \w{12}\); give the same again, name another file$"),
        ({"neurons": "others"}, r"had neurons \w{12} \(now \w{12}\), entries "),
        ({"subject": "qwen2"}, r"had neurons \w{12} \(now \w{12}\), subject \w{12} \(now \w{12}\), "),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    change: dict[str, Any], message: str, corpus: Corpus, tmp_path: Path
) -> None:
    subject = build("llama")
    file = tmp_path / "run"
    kept(subject, corpus, file)
    before = file.read_bytes()
    subject = build(change["subject"]) if "subject" in change else subject
    neurons = NeuronSet.from_indices(subject, indices={1: [4]}) if "neurons" in change else some(subject)
    arguments = {key: value for key, value in change.items() if key not in ("subject", "neurons")}
    with pytest.raises(TuneError, match=message):
        finetune(subject, corpus, neurons, **{**SETTINGS, **arguments}, checkpoint=file)
    assert file.read_bytes() == before


def test_going_on_with_other_arguments_and_starting_over(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    file = tmp_path / "run"
    kept(subject, corpus, file)
    seen: list[tuple[int, int]] = []
    more = {**SETTINGS, "lr": 0.001, "steps": 12}
    delta = finetune(
        subject, corpus, some(subject), **more, checkpoint=file, resume="changed",
        progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert seen[0] == (5, 12)
    (change,) = delta.origin["resumed"]
    assert (change["step"], change["recipe"]["lr"]) == (4, 0.02)
    kept(subject, corpus, tmp_path / "other")
    fewer = {**SETTINGS, "steps": 3}
    with pytest.raises(TuneError, match=r"holds step 4, the run is to have 3; ask for more steps"):
        finetune(subject, corpus, some(subject), **fewer, checkpoint=tmp_path / "other", resume="changed")
    anew = finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=file, resume="never")
    assert equal(anew, finetune(subject, corpus, some(subject), **SETTINGS))
    assert "resumed" not in anew.origin


def test_divergence_names_the_last_good_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    """The weights of step 1 give no finite loss, so none of their checkpoints is kept; those before do."""
    subject = build("llama")
    before = state(subject)
    file = tmp_path / "run"
    kept(subject, corpus, file)
    good = {**SETTINGS, "schedule": "constant"}
    wild = {**good, "lr": 1e30, "warmup": 0.0}
    message = (
        r"diverged: the loss is (nan|inf) at step 6 of 9 \(lr 1e\+30\); the subject is untouched; .*run holds step 4"
    )
    with pytest.raises(TuneError, match=message):
        finetune(subject, corpus, some(subject), **wild, checkpoint=file, checkpoint_every=1, resume="changed")
    assert read_header(file)["step"] == 4
    assert same_bits(state(subject), before)
    delta = finetune(subject, corpus, some(subject), **good, checkpoint=file, resume="changed")
    assert len(delta.history) == 9
    with pytest.raises(TuneError, match=r"at step 2 of 9 \(lr 1e\+30\); the subject is untouched; try a smaller lr$"):
        finetune(subject, corpus, some(subject), **wild, checkpoint=tmp_path / "new", checkpoint_every=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["_save", "fsync", "replace"])
def test_full_disk_leaves_the_earlier_checkpoint(
    place: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = build("llama")
    file = tmp_path / "run"
    kept(subject, corpus, file)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints if place == "_save" else os, place, full)
    message = r"could not write the checkpoint .*run after step 6 of 9: .*No space left.* still holds step 4, whole; make room"
    with pytest.raises(TuneError, match=message):
        finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=file, checkpoint_every=2)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(TuneError, match=r"after step 2 of 9: .*there is no earlier one"):
        finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=tmp_path / "new", checkpoint_every=2)
    monkeypatch.undo()
    delta = finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=file)
    assert equal(delta, finetune(subject, corpus, some(subject), **SETTINGS))


def test_damaged_and_foreign_files_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    file = tmp_path / "run"
    kept(subject, corpus, file)
    whole = file.read_bytes()
    for place in (3, 40, 300, len(whole) // 2, len(whole) - 2):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TuneError, match=r"is damaged|is no checkpoint"):
            finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=file)
    file.write_bytes(whole[:-5])
    with pytest.raises(TuneError, match=r"is damaged or no checkpoint .*; delete it to start over"):
        finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=file)
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    with pytest.raises(TuneError, match="no checkpoint"):
        finetune(subject, corpus, some(subject), **SETTINGS, checkpoint=thesis, resume="never")
    assert thesis.read_text() == "years of work"


def test_places_that_cannot_hold_a_checkpoint_are_refused_before_training(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match="is a folder; a checkpoint is one file"):
        finetune(subject, corpus, some(subject), checkpoint=tmp_path)
    with pytest.raises(TuneError, match="there is no folder"):
        finetune(subject, corpus, some(subject), checkpoint=tmp_path / "nowhere" / "run")
    with pytest.raises(TuneError, match="checkpoint_every is a number of steps"):
        finetune(subject, corpus, some(subject), checkpoint=tmp_path / "run", checkpoint_every=0)
    with pytest.raises(TuneError, match="unknown resume 'maybe'"):
        finetune(subject, corpus, some(subject), checkpoint=tmp_path / "run", resume="maybe")  # pyright: ignore[reportArgumentType]


def test_a_resumed_run_lets_go_of_the_file(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read lies in the file, whose room on the disk is not free for as long as a tensor of it is held."""
    subject, file = build("llama"), tmp_path / "run"
    kept(subject, corpus, file)
    read, alive = loop.read_checkpoint, []

    def watched(*arguments: Any) -> Any:
        run, tensors = read(*arguments)  # pyright: ignore[reportGeneralTypeIssues]
        alive.extend(weakref.ref(tensor) for tensor in tensors.values())
        return run, tensors

    monkeypatch.setattr(loop, "read_checkpoint", watched)
    held: list[int] = []
    finetune(
        subject, corpus, some(subject), **SETTINGS, checkpoint=file,
        progress=lambda *_: held.append(sum(ref() is not None for ref in alive)),
    )  # fmt: skip
    assert alive
    assert set(held) == {0}
