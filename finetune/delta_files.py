"""Deltas and merged checkpoints as folders, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..neurons.atlas import library_versions
from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .errors import DeltaError

FORMAT = "neuropolis delta"
VERSION = 1
CONFIG, TENSORS = "config.json", "delta.safetensors"


def save_delta(delta: Delta, folder: str | Path) -> Path:
    """Write a delta: its tensors as safetensors, everything else as JSON that holds the tensors' checksum and its own.

    The folder is made beside its place and moved there when it is whole. An earlier delta of that name is replaced.

    Raises DeltaError when the path holds something else than a delta, or when writing fails.
    """
    from safetensors.torch import save_file

    folder = delta_target(folder)
    tensors = {f"values/{key}": tensor.contiguous() for key, tensor in delta.values.items()}
    tensors |= {f"base/{key}": tensor.contiguous() for key, tensor in delta.base.items()}
    with in_place_of(folder) as temporary:
        save_file(tensors, temporary / TENSORS)
        config = _config(delta) | {"keys": list(delta.values), "sha256": _sha256(temporary / TENSORS)}
        (temporary / CONFIG).write_text(checked_text(config), encoding="utf-8")
    return folder


def load_delta(folder: str | Path, *, subject: Subject | None = None) -> Delta:
    """A delta back from its folder; with `subject`, checked against it.

    Raises DeltaError when the folder is missing, is no delta, is of a later version, is truncated or altered, or when
    the delta belongs to another subject.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    config = _read_config(folder)
    if not (folder / TENSORS).is_file() or _sha256(folder / TENSORS) != config["sha256"]:
        raise DeltaError(f"{folder / TENSORS} is missing, truncated or altered; restore it from a copy or train again")
    tensors = load_file(folder / TENSORS)
    delta = Delta(
        config["subject"],
        _neurons(config),
        {key: tensors[f"values/{key}"] for key in config["keys"]},
        {key: tensors[f"base/{key}"] for key in config["keys"]},
        tuple(config["history"]),
        config["origin"],
    )
    if subject is not None:
        delta.check(subject)
    return delta


def export_merged(delta: Delta, subject: Subject, folder: str | Path) -> Path:
    """Write the subject with the delta in its weights as a Hugging Face checkpoint that `from_pretrained` loads.

    Raises DeltaError when the folder is there and not empty, when the delta is of another subject, or when writing
    fails.
    """
    folder = folder_for(folder, "the checkpoint")
    delta.check_mergeable(subject)
    with delta.applied(subject), in_place_of(folder) as temporary:
        subject.model.save_pretrained(temporary)
        subject.tokenizer.save_pretrained(temporary)
    return folder


def delta_target(folder: str | Path) -> Path:
    """A folder that a delta can be saved to. Raises DeltaError when it holds something else or has no place to be in."""
    folder = Path(folder)
    if folder.exists() and not _is_delta(folder) and not _is_empty(folder):
        raise DeltaError(f"{folder} is there and is no delta; give a new folder, or one that holds a delta to replace")
    return _placed(folder)


def folder_for(folder: str | Path, what: str) -> Path:
    """A folder that something can be written to. Raises DeltaError when it holds anything or has no place to be in."""
    folder = Path(folder)
    if folder.exists() and not _is_empty(folder):
        raise DeltaError(f"{folder} is there and not empty; give a new folder for {what}")
    return _placed(folder)


def _placed(folder: Path) -> Path:
    if not folder.absolute().parent.is_dir():
        raise DeltaError(f"cannot write {folder}: there is no folder {folder.parent}; make it first")
    return folder


def _config(delta: Delta) -> dict[str, Any]:
    neurons = delta.neurons
    config: dict[str, Any] = {"format": FORMAT, "version": VERSION, "subject": delta.subject}
    if neurons is None:
        config["neurons"] = None
    else:
        config["neurons"] = said_of(neurons)
    return config | {"origin": dict(delta.origin), "history": list(delta.history), "versions": library_versions()}


def said_of(neurons: NeuronSet) -> dict[str, Any]:
    """A set as plain values, which `neurons_of` reads."""
    return {
        "site": neurons.site, "shape": list(neurons.mask.shape), "indices": neurons.to_indices(),
        "origin": dict(neurons.origin),
    }  # fmt: skip


def neurons_of(said: Mapping[str, Any], subject: str) -> NeuronSet:
    """A set of a subject (its fingerprint) back from plain values. Raises SetError for what is no set."""
    import torch

    mask = torch.zeros(said["shape"], dtype=torch.bool)
    for layer, indices in said["indices"].items():
        mask[int(layer), indices] = True
    return NeuronSet(said["site"], subject, mask, said["origin"])


def _neurons(config: Mapping[str, Any]) -> NeuronSet | None:
    if config["neurons"] is None:
        return None
    try:
        return neurons_of(config["neurons"], config["subject"])
    except SetError as error:
        raise DeltaError(f"the delta's neurons cannot be read: {error}") from error


def checked_text(config: Mapping[str, Any]) -> str:
    """One line for every field, the last one the checksum of those above."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in config.items()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return "{\n" + ",\n".join([*lines, f'"checksum": "{digest}"']) + "\n}\n"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise DeltaError(f"no delta at {folder}: expected a folder with {CONFIG} and {TENSORS}; check the path")
    raw = path.read_bytes()
    try:
        config = json.loads(raw)
        found = config.get("format"), config.get("version")
    except (ValueError, AttributeError) as error:
        raise DeltaError(f"{path} is damaged: it is no JSON object; restore it from a copy or train again") from error
    if found[0] != FORMAT:
        raise DeltaError(f"{path} does not describe a delta (format {found[0]!r}, expected {FORMAT!r}); check the path")
    if found[1] != VERSION:
        raise DeltaError(f"{path} has version {found[1]!r}, expected {VERSION}; read it with the toolkit that wrote it")
    config.pop("checksum", None)
    # The file is written again from what was read: any byte that differs then shows, blanks included.
    if checked_text(config).encode() != raw:
        raise DeltaError(f"{path} is damaged: its checksum does not match; restore it from a copy or train again")
    return config


@contextmanager
def in_place_of(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and is removed otherwise."""
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.absolute().parent))
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        _exchange(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise DeltaError(
            f"could not write {folder}: {error}; what stood there before is untouched. Is the disk full or read-only?"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(temporary: Path, folder: Path) -> None:
    """Move a finished folder to its place, an earlier one out of the way first (and back, when the move fails)."""
    old = temporary.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_delta(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
