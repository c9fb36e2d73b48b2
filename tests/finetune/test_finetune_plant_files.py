"""Plants as folders: what is saved comes back, and what is damaged or of another subject is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.plant_files import load_plant, save_plant
from plant_makers import make_plant
from tiny_families import build, same_bits, state


def test_a_plant_comes_back(tmp_path: Path) -> None:
    subject = build("llama")
    made = make_plant(subject, variant="redundant")
    again = load_plant(subject, save_plant(made, tmp_path / "plant"))
    assert again.subject.fingerprint == made.subject.fingerprint
    assert same_bits(state(again.subject), state(made.subject))
    assert again.facts.hash == made.facts.hash
    assert dict(again.truth) == dict(made.truth)
    assert dict(again.beds) == dict(made.beds)
    assert dict(again.ways) == dict(made.ways)
    assert again.proof == made.proof
    assert again.delta.origin["variant"] == "redundant"
    assert state(subject).keys() == state(build("llama")).keys()
    assert same_bits(state(subject), state(build("llama")))


def test_one_plant_replaces_another_but_nothing_else(tmp_path: Path) -> None:
    subject = build("llama")
    save_plant(make_plant(subject), tmp_path / "plant")
    other = make_plant(subject, seed=1)
    assert load_plant(subject, save_plant(other, tmp_path / "plant")).groups == other.groups
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(TuneError, match="is there and is no plant"):
        save_plant(other, tmp_path / "mine")
    with pytest.raises(TuneError, match="there is no folder"):
        save_plant(other, tmp_path / "nowhere" / "plant")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "plant"]


def test_another_subject_is_refused(tmp_path: Path) -> None:
    folder = save_plant(make_plant(), tmp_path / "plant")
    other = build("llama")
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    from neuropolis.neurons.subject import load_model

    other = load_model((other.model, other.tokenizer))
    with pytest.raises(TuneError, match=r"is in subject \w+, but 'LlamaForCausalLM' is \w+; load the model"):
        load_plant(other, folder)


def test_damage_is_told(tmp_path: Path) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match=r"no plant at .*: expected a folder with plant.json"):
        load_plant(subject, tmp_path / "plant")
    folder = save_plant(make_plant(subject), tmp_path / "plant")
    facts = (folder / "facts.jsonl").read_text()
    (folder / "facts.jsonl").write_text(facts.replace("train", "tests", 1))
    with pytest.raises(TuneError, match=r"facts.jsonl is missing, truncated or altered"):
        load_plant(subject, folder)
    (folder / "facts.jsonl").write_text(facts)
    whole = (folder / "plant.json").read_text()
    (folder / "plant.json").write_text(whole.replace('"holds": true', '"holds": false'))
    with pytest.raises(TuneError, match="damaged: its checksum does not match"):
        load_plant(subject, folder)
    (folder / "plant.json").write_text("[]")
    with pytest.raises(TuneError, match="is no JSON object"):
        load_plant(subject, folder)
    (folder / "plant.json").write_text(json.dumps({"format": "neuropolis plant", "version": 9}))
    with pytest.raises(TuneError, match="version 9; expected 'neuropolis plant', version 1"):
        load_plant(subject, folder)
