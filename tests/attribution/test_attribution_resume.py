"""Resume: a pass that was interrupted anywhere ends as one that was not, and no other run's state is taken for its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import neuropolis
import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.methods import METHODS, register_method
from neuropolis.attribution.presets import preset
from neuropolis.attribution.resume import Checkpoint, CheckpointError
from neuropolis.corpora.examples import Corpus, CorpusError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.subject import Subject

ROOT = Path(neuropolis.__file__).parent
WORK: dict[str, Any] = {"controls": True, "keep_rows": True, "tokens": "abs", "max_tokens": 100, "checkpoint_every": 0}


class Interrupted(Exception):
    pass


def stop_after(batches: int) -> Any:
    left = [batches]

    def progress(_done: int, _total: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted

    return progress


def interrupted(subject: Subject, corpus: Corpus, path: Path, *, after: int = 2, **other: Any) -> None:
    with pytest.raises(Interrupted):
        attribute(subject, corpus, checkpoint=path, progress=stop_after(after), **{**WORK, **other})


def assert_same(found: Scores, expected: Scores) -> None:
    for name in ("values", "signed", "squares", "counts", "control_values", "control_signed", "rows", "row_groups"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("after", [1, 2, 5, 8])
def test_a_resumed_pass_gives_the_same_tensors(make_subject: Any, corpus: Corpus, tmp_path: Path, after: int) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    expected = attribute(subject, corpus, **WORK)
    interrupted(subject, corpus, path, after=after)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    done: list[int] = []
    found = attribute(subject, corpus, checkpoint=path, progress=lambda number, _total: done.append(number), **WORK)
    assert_same(found, expected)
    assert done == sorted(done)
    assert len(done) == 9 - after
    assert list(tmp_path.iterdir()) == []


def test_it_goes_on_and_does_not_start_over(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject = make_subject("llama")
    batches: list[int] = []
    attribute(subject, corpus, progress=lambda number, _total: batches.append(number), **WORK)
    interrupted(subject, corpus, tmp_path / "run", after=3)
    rest: list[int] = []
    attribute(subject, corpus, checkpoint=tmp_path / "run", progress=lambda number, _total: rest.append(number), **WORK)
    # the third batch was under way in the eyes of the caller, but its state had been written
    assert rest == batches[3:]


def test_interrupted_twice(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject = make_subject("llama")
    for _ in range(2):
        interrupted(subject, corpus, tmp_path / "run", after=2)
    assert_same(attribute(subject, corpus, checkpoint=tmp_path / "run", **WORK), attribute(subject, corpus, **WORK))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"max_tokens": 200}, "max_tokens is 100 there and 200 here"),
        ({"objective": "probability"}, "objective is 'loss' there and 'probability' here"),
        ({"tokens": "max"}, r"readings is \['taylor mlp abs rows'\] there and \['taylor mlp max rows'\] here"),
        ({"site": "q"}, "taylor q abs rows"),
        ({"methods": ("taylor", "gradient")}, "gradient mlp abs rows"),
        ({"keep_rows": False}, r"\['taylor mlp abs'\] here"),
        ({"controls": False}, "examples is .*; groups is "),
        ({"padding_side": "left"}, "padding_side is 'right' there and 'left' here"),
    ],
)
def test_another_runs_checkpoint_is_refused(
    make_subject: Any, corpus: Corpus, tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    interrupted(subject, corpus, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"the checkpoint of another run: .*{said}"):
        attribute(subject, corpus, checkpoint=path, **{**WORK, **other})
    assert path.read_bytes() == before


def test_another_subject_dtype_or_corpus_is_refused(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "run"
    interrupted(make_subject("llama"), corpus, path)
    with pytest.raises(CheckpointError, match="another run: subject is "):
        attribute(make_subject("llama", seed=1), corpus, checkpoint=path, **WORK)
    with pytest.raises(CheckpointError, match=r"dtype is 'torch.float32' there and 'torch.float64' here"):
        attribute(make_subject("llama", torch.float64), corpus, checkpoint=path, **WORK)
    with pytest.raises(CheckpointError, match="examples is "):
        attribute(make_subject("llama"), Corpus(corpus.examples[::-1]), checkpoint=path, **WORK)


def test_damage_is_refused_wherever_it_is(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    interrupted(subject, corpus, path)
    whole = path.read_bytes()
    places = torch.randint(len(whole), (12,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in [0, 8, 40, len(whole) - 1, *places]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"is damaged.*remove it to start over"):
            attribute(subject, corpus, checkpoint=path, **WORK)
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"is damaged.*remove it to start over"):
            attribute(subject, corpus, checkpoint=path, **WORK)


def test_a_place_that_cannot_be_written_is_refused_early(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject = make_subject("llama")
    with pytest.raises(CheckpointError, match="is a folder; a checkpoint is a file"):
        attribute(subject, corpus, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        attribute(subject, corpus, checkpoint=tmp_path / "not" / "there")
    for seconds in (-1, float("nan")):
        with pytest.raises(CheckpointError, match="expected seconds, 0 or more"):
            attribute(subject, corpus, checkpoint=tmp_path / "run", checkpoint_every=seconds)


def test_a_caller_may_keep_it_until_the_result_is_written(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject = make_subject("llama")
    keeper = Checkpoint(tmp_path / "run", keep=True)
    expected = attribute(subject, corpus, checkpoint=keeper)
    again: list[int] = []
    found = attribute(subject, corpus, checkpoint=keeper, progress=lambda number, _total: again.append(number))
    assert torch.equal(found.signed, expected.signed)
    assert again == []
    keeper.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_shared_pass_is_kept_while_another_method_runs(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    site = subject.site("mlp")
    fails = [True]

    @register_method("mine")
    def mine(_subject: Subject, corpus: Corpus) -> torch.Tensor:
        if fails[0]:
            raise Interrupted
        return torch.ones(len(corpus.groups), site.num_layers, site.width)

    try:
        with pytest.raises(Interrupted):
            attribute(subject, corpus, methods=("taylor", "mine"), checkpoint=path)
        fails[0] = False
        again: list[int] = []
        found = attribute(
            subject, corpus, methods=("taylor", "mine"), checkpoint=path, progress=lambda done, _total: again.append(done)
        )  # fmt: skip
        assert again == []
        assert torch.equal(found["taylor"].signed, attribute(subject, corpus).signed)
        assert not path.exists()
        with pytest.raises(ValueError, match="nothing that a checkpoint could keep"):
            attribute(subject, corpus, method="mine", checkpoint=path)
    finally:
        del METHODS["mine"]


def test_a_run_that_stops_does_not_go_on_from_one_that_skipped(
    make_subject: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution import engine

    subject, path, plain = make_subject("llama"), tmp_path / "run", engine.forward
    longest = max(range(len(corpus)), key=lambda row: len(corpus[row].prompt))

    def poisoned(subject: Any, batch: Any) -> torch.Tensor:
        return plain(subject, batch).masked_fill((batch.rows == longest)[:, None, None], torch.nan)

    monkeypatch.setattr(engine, "forward", poisoned)
    interrupted(subject, corpus, path, on_not_finite="skip", controls=False)
    with pytest.raises(CorpusError, match=f"not finite.*{corpus[longest].id}"):
        attribute(subject, corpus, checkpoint=path, **{**WORK, "controls": False})


def test_writing_waits_for_its_time(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        attribute(make_subject("llama"), corpus, checkpoint=tmp_path / "run", max_tokens=50, progress=stop_after(5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("methods", ["taylor,gradient", "ig,conductance,smoothgrad", "relp,exact"])
def test_kill_at_any_moment(methods: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_and_resume.py"), "--kills", "2", "--examples", "3"]
    command += ["--methods", methods]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert "each bit for bit as the uninterrupted one" in done.stdout


OWN: dict[str, dict[str, Any]] = {
    "ig": {"steps": 2}, "conductance": {"steps": 1}, "smoothgrad": {"samples": 2}, "relp": {}, "exact": {"sample": 5}
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(OWN))
def test_a_method_with_passes_of_its_own_resumes(
    make_subject: Any, corpus: Corpus, tmp_path: Path, method: str
) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    work: dict[str, Any] = {**WORK, "method": method, "options": OWN[method]}
    expected = attribute(subject, corpus, **work)
    interrupted(subject, corpus, path, after=3, method=method, options=OWN[method])
    rest: list[int] = []
    found = attribute(subject, corpus, checkpoint=path, progress=lambda number, _total: rest.append(number), **work)
    assert_same(found, expected)
    assert found.origin == expected.origin  # the completeness gap is of all examples
    assert len(rest) == 9 - 3
    assert list(tmp_path.iterdir()) == []


def test_other_options_are_another_run(make_subject: Any, corpus: Corpus, tmp_path: Path) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    interrupted(subject, corpus, path, method="ig", options={"steps": 2})
    with pytest.raises(CheckpointError, match=r"options is .*'steps': 2.* there and .*'steps': 16.* here"):
        attribute(subject, corpus, checkpoint=path, **{**WORK, "method": "ig"})


@pytest.mark.parametrize("after", [4, 12, 22])
def test_several_passes_keep_a_file_each(make_subject: Any, corpus: Corpus, tmp_path: Path, after: int) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    work: dict[str, Any] = {
        **WORK,
        "methods": ("taylor", "smoothgrad", "exact"),
        "options": {"samples": 1, "sample": 3},
    }
    expected = attribute(subject, corpus, **work)
    with pytest.raises(Interrupted):
        attribute(subject, corpus, checkpoint=path, progress=stop_after(after), **work)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.2", "run.3"][: 1 + after // 9]
    rest: list[int] = []
    found = attribute(subject, corpus, checkpoint=path, progress=lambda number, _total: rest.append(number), **work)
    for name, scores in expected.items():
        assert_same(found[name], scores)
    assert len(rest) == 27 - after
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tsn", "cape", "culnig", "fuxitranyu"])
@pytest.mark.parametrize("from_end", [True, False])
def test_presets_resume(make_subject: Any, corpus: Corpus, tmp_path: Path, name: str, from_end: bool) -> None:
    subject, path = make_subject("llama"), tmp_path / "run"
    spoken = Corpus(tuple(replace(e, tags={"language": f"of {e.group}", "split": "train"}) for e in corpus))
    options: dict[str, Any] = {"max_tokens": 200, "keep_rows": True}
    options |= {"culnig": {"countries": spoken}, "cape": {"top": 0.05}}.get(name, {})
    batches: list[int] = []
    expected = preset(name, subject, spoken, **options, progress=lambda done, _total: batches.append(done))
    after = len(batches) - 1 if from_end else 2  # in the last pass, or in the first
    keeper = Checkpoint(path, every=0, keep=True)
    with pytest.raises(Interrupted):
        preset(name, subject, spoken, **options, checkpoint=keeper, progress=stop_after(after))
    assert keeper.written
    assert len(list(tmp_path.iterdir())) == 1 + (from_end and name in ("cape", "culnig"))
    again: list[int] = []
    found = preset(name, subject, spoken, **options, checkpoint=path, progress=lambda done, _total: again.append(done))
    assert found.sets == expected.sets
    assert "checkpoint" not in found.options
    assert len(again) == len(batches) - after
    for key, scores in expected.scores.items():
        assert torch.equal(found.scores[key].signed, scores.signed)
    assert list(tmp_path.iterdir()) == []
