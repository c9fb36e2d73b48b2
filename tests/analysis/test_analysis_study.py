"""Studies: everything that goes into an atlas comes out equal, and nothing of another subject goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neuropolis.analysis.ablate import ablate
from neuropolis.analysis.overlap import overlap
from neuropolis.analysis.similarity import similarity
from neuropolis.analysis.study import load, save
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons import atlas
from neuropolis.neurons.atlas import Record, record_type
from neuropolis.neurons.errors import AtlasError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Sets = dict[str, NeuronSet]


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b, field.name


@pytest.fixture
def scores(planted: Subject) -> Scores:
    values = torch.arange(48.0).reshape(3, 2, 8)
    return Scores("mlp", planted.fingerprint, ("a", "b", "c"), values, -values, values**2, torch.tensor([16, 16, 16]))


def test_round_trip(planted: Subject, questions: Corpus, planted_sets: Sets, scores: Scores, tmp_path: Path) -> None:
    effects = ablate(planted, questions, planted_sets, controls=2)
    table, alike = overlap(planted_sets), similarity(planted, planted_sets, controls=2)
    path = save(tmp_path / "study.h5", scores, planted_sets, effects, table, alike, subject=planted)
    study = load(path, subject=planted)
    assert_equal(study.scores, scores)
    assert_equal(study.effects, effects)
    assert_equal(study.overlap, table)
    assert_equal(study.similarity, alike)
    assert study.sets == planted_sets
    assert list(study.sets) == ["a", "b", "c"]
    assert study.effects.summary() == effects.summary()
    assert study.effects is study.effects  # read once
    assert (study.subject["fingerprint"], study.subject["class"]) == (planted.fingerprint, "LlamaForCausalLM")
    assert study.path == path


def test_a_study_grows(planted_sets: Sets, scores: Scores, tmp_path: Path) -> None:
    path = save(tmp_path / "study.h5", scores)
    assert not load(path).has("set")
    save(path, planted_sets)
    save(path, replace(scores, method="other"), d=planted_sets["a"])
    study = load(path)
    assert study.scores.method == "other"
    assert study.names("set") == ("a", "b", "c", "d")
    save(path, control=scores)
    assert load(path).scores.method == "other"  # the record of the kind's own name
    assert load(path).get("scores", "control").method == "taylor"


def test_a_lone_set_is_called_after_its_group(planted_sets: Sets, tmp_path: Path) -> None:
    path = save(tmp_path / "one.h5", planted_sets["b"], planted_sets["a"] | planted_sets["b"])
    first, second = load(path).names("set")
    assert first == "b"
    assert second == f"set-{(planted_sets['a'] | planted_sets['b']).digest}"


def test_what_is_missing_is_named_with_its_command(scores: Scores, tmp_path: Path) -> None:
    study = load(save(tmp_path / "study.h5", scores))
    commands = {
        "sets": "select", "effects": "ablate", "overlap": "compare", "similarity": "compare", "retention": "tune",
    }  # fmt: skip
    for name, command in commands.items():
        with pytest.raises(AtlasError, match=f"make it with 'neuropolis {command}' \\(it has scores\\)"):
            getattr(study, name)
    save(study.path, one=scores, two=scores)
    with pytest.raises(AtlasError, match="no 'three' among"):
        load(study.path).get("scores", "three")


def test_several_without_the_kind_s_name_are_ambiguous(scores: Scores, tmp_path: Path) -> None:
    study = load(save(tmp_path / "study.h5", one=scores, two=scores))
    with pytest.raises(AtlasError, match="several records of kind scores: one, two"):
        _ = study.scores


def test_another_subject_is_refused(
    planted: Subject, planted_sets: Sets, scores: Scores, make_subject: Callable[..., Subject], tmp_path: Path
) -> None:
    path = save(tmp_path / "study.h5", scores, subject=planted)
    before = path.read_bytes()
    other = make_subject("llama")
    with pytest.raises(AtlasError, match="load the model that the study was made with"):
        load(path, subject=other)
    foreign = NeuronSet.from_indices(other, indices={0: [1]})
    with pytest.raises(AtlasError, match="write to another file"):
        save(path, foreign_set=foreign)
    with pytest.raises(AtlasError, match="one atlas for each subject"):
        save(tmp_path / "mixed.h5", scores, foreign_set=foreign)
    with pytest.raises(AtlasError, match="one atlas for each subject"):
        save(tmp_path / "mixed.h5", scores, subject=other)
    assert path.read_bytes() == before
    assert not (tmp_path / "mixed.h5").exists()


def test_what_cannot_be_saved_is_refused(scores: Scores, tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="nothing to save"):
        save(tmp_path / "study.h5")
    with pytest.raises(AtlasError, match="cannot save a list"):
        save(tmp_path / "study.h5", [scores])
    with pytest.raises(AtlasError, match="both scores 'scores'"):
        save(tmp_path / "study.h5", scores, scores)


def test_artefacts_of_other_rooms(scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "_REGISTRY", dict(atlas._REGISTRY))

    @dataclass(frozen=True)
    class Retention:
        subject: str
        kept: float

        def to_record(self, name: str = "retention") -> Record:
            return Record("retention", name, {"kept": np.array([self.kept])}, {"subject": self.subject})

    @record_type("retention")
    def back(record: Record) -> Retention:
        return Retention(record.meta["subject"], float(record.arrays["kept"][0]))

    kept = Retention(scores.subject, 0.5)
    assert load(save(tmp_path / "study.h5", scores, kept)).retention == kept


def test_a_damaged_study_is_refused(scores: Scores, tmp_path: Path) -> None:
    path = save(tmp_path / "study.h5", scores)
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(AtlasError, match="checksum"):
        load(path)
