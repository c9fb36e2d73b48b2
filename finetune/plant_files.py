"""Plants as folders: the delta, the facts, and what is true about them; written whole or not at all, so that they can be shared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..corpora.examples import CorpusError
from ..corpora.jsonl import read_jsonl, write_jsonl
from ..neurons.atlas import library_versions
from ..neurons.errors import SetError
from ..neurons.subject import Subject
from .delta_files import checked_text, in_place_of, load_delta, neurons_of, said_of, save_delta
from .errors import TuneError
from .plant_proof import Proof
from .plants import Plant

FORMAT, VERSION = "neuropolis plant", 1
PLANT, FACTS, DELTA = "plant.json", "facts.jsonl", "delta"


def save_plant(plant: Plant, folder: str | Path) -> Path:
    """Write a plant: the delta (folder `delta`), the facts (`facts.jsonl`), and truth, beds, ways and proof (`plant.json`).

    The folder is made beside its place and moved there when it is whole. An earlier plant of that name is replaced. What is
    saved is small: the trained entries, not the subject.

    Raises TuneError when the path holds something else than a plant, DeltaError when writing fails.
    """
    folder = Path(folder)
    if folder.exists() and not _is_plant(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise TuneError(f"{folder} is there and is no plant; give a new folder, or one that holds a plant to replace")
    if not folder.absolute().parent.is_dir():
        raise TuneError(f"cannot write {folder}: there is no folder {folder.parent}; make it first")
    with in_place_of(folder) as temporary:
        save_delta(plant.delta, temporary / DELTA)
        write_jsonl(plant.facts, temporary / FACTS)
        facts = hashlib.sha256((temporary / FACTS).read_bytes()).hexdigest()
        (temporary / PLANT).write_text(checked_text(_said(plant) | {"facts_sha256": facts}), encoding="utf-8")
    return folder


def load_plant(subject: Subject, folder: str | Path) -> Plant:
    """A plant back from its folder, put into the subject that it was made on.

    Raises TuneError when the folder is missing, is no plant, is of a later version, damaged, or of another subject; DeltaError
    when its delta is.
    """
    folder = Path(folder)
    said = _read(folder)
    if said["subject"] != subject.fingerprint:
        raise TuneError(
            f"the plant in {folder} is in subject {said['subject']}, but {subject.name!r} is {subject.fingerprint}; load the "
            "model that it was planted in, or plant anew"
        )
    planted = load_delta(folder / DELTA, subject=subject).merge(subject)
    if planted.fingerprint != said["planted"]:
        raise TuneError(f"{folder / DELTA} is not what was planted; restore it from a copy or plant again")
    try:
        facts = read_jsonl(folder / FACTS, name=said["facts"])
        truth, beds = (
            {name: neurons_of(one, planted.fingerprint) for name, one in said[key].items()} for key in ("truth", "beds")
        )
    except (CorpusError, SetError) as error:
        raise TuneError(f"the plant in {folder} cannot be read: {error}") from error
    ways = {group: tuple(frozenset(way) for way in own) for group, own in said["ways"].items()}
    proof = Proof(**{key: _tuples(value) for key, value in said["proof"].items()})
    return Plant(planted, facts, truth, beds, ways, load_delta(folder / DELTA), proof)


def _said(plant: Plant) -> dict[str, Any]:
    """What stands in `plant.json`."""
    return {
        "format": FORMAT, "version": VERSION, "subject": plant.delta.subject, "planted": plant.subject.fingerprint,
        "facts": plant.facts.name,
        "truth": {name: said_of(one) for name, one in plant.truth.items()},
        "beds": {name: said_of(one) for name, one in plant.beds.items()},
        "ways": {group: [sorted(way) for way in own] for group, own in plant.ways.items()},
        "proof": asdict(plant.proof), "holds": plant.proof.holds, "versions": library_versions(),
    }  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _read(folder: Path) -> dict[str, Any]:
    path = folder / PLANT
    if not path.is_file():
        raise TuneError(f"no plant at {folder}: expected a folder with {PLANT}, {FACTS} and {DELTA}; check the path")
    raw = path.read_bytes()
    try:
        said = json.loads(raw)
        found = said.get("format"), said.get("version")
    except (ValueError, AttributeError) as error:
        raise TuneError(f"{path} is damaged: it is no JSON object; restore it from a copy or plant again") from error
    if found != (FORMAT, VERSION):
        raise TuneError(
            f"{path} is format {found[0]!r}, version {found[1]!r}; expected {FORMAT!r}, version {VERSION}: check the path, or "
            "read it with the toolkit that wrote it"
        )
    said.pop("checksum", None)
    facts = folder / FACTS
    if checked_text(said).encode() != raw:
        raise TuneError(f"{path} is damaged: its checksum does not match; restore it from a copy or plant again")
    if not facts.is_file() or hashlib.sha256(facts.read_bytes()).hexdigest() != said["facts_sha256"]:
        raise TuneError(f"{facts} is missing, truncated or altered; restore it from a copy or plant again")
    return said


def _is_plant(folder: Path) -> bool:
    try:
        return json.loads((folder / PLANT).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False
