"""Where an interrupted run goes on: one folder for every method and seed, one result for every stage, written whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .checkpoints import digest_of
from .delta import Delta
from .errors import TuneError
from .learners import Learned, entries_now


@dataclass(frozen=True)
class Stage:
    """What was measured after a stage: accuracy by task, on what was known before, and the numbers trained."""

    row: tuple[float, ...]
    known: float
    trained: int


@dataclass(frozen=True)
class Folder:
    """The stages of one (method, seed). A path of None keeps nothing."""

    path: Path | None

    def stages(self) -> list[Stage]:
        """The finished stages, in order."""
        found: list[Stage] = []
        while self.path is not None and (file := self._result(len(found))).is_file():
            found.append(_stage(file))
        return found

    def write(self, place: int, stage: Stage, learned: Learned | None) -> None:
        """What was learned first, then the result, which says that the stage is done; then the stage before's is dropped."""
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if learned is not None:
            save_learned(learned, self.path / f"learned-{place + 1}.safetensors")
        said = {**vars(stage), "checksum": _checksum(vars(stage))}
        write_whole(self._result(place), json.dumps(said).encode())
        (self.path / f"learned-{place}.safetensors").unlink(missing_ok=True)

    def learned(self, subject: Subject, count: int) -> Learned | None:
        """What the method held after so many stages."""
        if self.path is None or count == 0:
            return None
        file = self.path / f"learned-{count}.safetensors"
        return load_learned(subject, file) if file.is_file() else None

    def done(self, count: int) -> None:
        """Drop what was learned; the results stay."""
        if self.path is not None:
            (self.path / f"learned-{count}.safetensors").unlink(missing_ok=True)

    def _result(self, place: int) -> Path:
        assert self.path is not None
        return self.path / f"stage-{place + 1}.json"


def open_state(state: str | Path | None, arguments: Mapping[str, Any], methods: Mapping[str, Any]) -> Path | None:
    """The folder of a run with these arguments, made where it is not there.

    Methods and seeds may be added to a run that is there. Raises TuneError when it was made with other arguments, and
    says which differs.
    """
    if state is None:
        return None
    folder = Path(state)
    if folder.exists() and not folder.is_dir():
        raise TuneError(f"{folder} is a file; the state is a folder, give another path for it")
    if folder.exists() and not (folder / "run.json").is_file() and any(folder.iterdir()):
        raise TuneError(f"{folder} exists and holds no run of this kind; choose another folder for the state")
    folder.mkdir(parents=True, exist_ok=True)
    _same(folder / "run.json", arguments, "repeat the run with the arguments it began with, or choose another folder")
    for name, options in methods.items():
        (folder / name).mkdir(exist_ok=True)
        _same(
            folder / name / "method.json",
            options,
            "choose another folder, or remove this one to learn by the method anew",
        )
    return folder


def _same(file: Path, arguments: Mapping[str, Any], advice: str) -> None:
    now = json.loads(json.dumps(arguments))
    if not file.is_file():
        write_whole(file, json.dumps(now, indent=1).encode())
        return
    then = _read(file, f"remove {file.parent} to start over, or put the file back")
    for key in dict.fromkeys([*then, *now]):
        if then.get(key) != now.get(key):
            raise TuneError(
                f"{file.parent} holds a run with another {key}: {_short(then.get(key))}, now {_short(now.get(key))}; {advice}"
            )


def _stage(file: Path) -> Stage:
    advice = f"remove {file.parent} to learn this sequence again"
    said = _read(file, advice)
    checksum = said.pop("checksum", None)
    if set(said) != set(Stage.__dataclass_fields__) or checksum not in (None, _checksum(said)):
        raise TuneError(f"{file} is damaged: its checksum or its entries do not match; {advice}")
    return Stage(tuple(said["row"]), said["known"], said["trained"])


def _read(file: Path, advice: str) -> dict[str, Any]:
    """A JSON object. Raises TuneError for anything else, with what to do."""
    try:
        said = json.loads(file.read_text())
    except ValueError as error:
        raise TuneError(f"{file} is damaged ({error}); {advice}") from error
    if not isinstance(said, dict):
        raise TuneError(f"{file} is damaged: expected a JSON object, found {_short(said)}; {advice}")
    return said


def _checksum(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the place and move there, so that a kill at any moment leaves the old file or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            raw.write(content)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise TuneError(
            f"could not write {path}: {error}; what was finished before stands; is the disk full?"
        ) from error


def save_learned(learned: Learned, path: Path) -> None:
    """What a method holds, as safetensors; the untouched subject's entries are left out."""
    from safetensors.torch import save

    delta = learned.delta
    tensors = {f"delta/{key}": value.contiguous() for key, value in delta.values.items()}
    tensors |= {f"memory/{key}": value.detach().cpu().contiguous() for key, value in learned.memory.items()}
    meta = {"trained": str(learned.trained), "subject": delta.subject}
    if delta.neurons is not None:
        tensors["mask"] = delta.neurons.mask
        meta |= {"site": delta.neurons.site, "origin": json.dumps(dict(delta.neurons.origin))}
    alone = {key: tensor.clone() for key, tensor in tensors.items()}  # the format refuses tensors that share memory
    meta["checksum"] = digest_of(alone)
    write_whole(path, save(alone, metadata=meta))


def load_learned(subject: Subject, path: Path) -> Learned:
    """What a method held, back on its untouched subject."""
    from safetensors import SafetensorError, safe_open

    advice = f"remove {path.parent} to learn this sequence again"
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TuneError(f"{path} cannot be read: {error}; {advice}") from error
    if meta.get("checksum") not in (None, digest_of(tensors)):
        raise TuneError(f"{path} is damaged: its checksum does not match; {advice}")
    if meta.get("subject") != subject.fingerprint or "trained" not in meta:
        raise TuneError(f"{path} holds nothing that was learned on this subject; {advice}")
    neurons = None
    if "mask" in tensors:
        neurons = NeuronSet(meta["site"], meta["subject"], tensors["mask"], json.loads(meta["origin"]))
    parts: dict[str, dict[str, torch.Tensor]] = {"delta": {}, "memory": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind in parts:
            parts[kind][name] = tensor
    base = entries_now(subject, neurons)
    missing = [key for key in base if key not in parts["delta"]]
    if missing:
        raise TuneError(f"{path} has no {missing[0]}; {advice}")
    values = {key: parts["delta"][key] for key in base}
    return Learned(Delta(meta["subject"], neurons, values, base), int(meta["trained"]), parts["memory"])
