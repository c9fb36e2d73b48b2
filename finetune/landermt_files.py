"""Routed deltas as folders, written whole or not at all: a delta inside, and the gates beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta_files import CONFIG, _is_empty, _placed, _sha256, checked_text, in_place_of, load_delta, save_delta
from .errors import DeltaError
from .landermt import RoutedDelta
from .routing import Gates

FORMAT = "neuropolis routed delta"
VERSION = 1
GATES, DELTA = "gates.safetensors", "delta"


def save_routed_delta(routed: RoutedDelta, folder: str | Path) -> Path:
    """Write a routed delta: `delta/` as `Delta.save` does, `gates.safetensors`, and `config.json` that holds the checksums.

    The folder is made beside its place and moved there when it is whole. An earlier one of that kind is replaced.

    Raises DeltaError when the path holds something else, or when writing fails.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not _is_routed(folder) and not _is_empty(folder):
        raise DeltaError(
            f"{folder} is there and is no routed delta; give a new folder, or one that holds one to replace"
        )
    with in_place_of(_placed(folder)) as temporary:
        save_delta(routed.delta, temporary / DELTA)
        save_file({name: tensor.contiguous() for name, tensor in routed.gates.tensors().items()}, temporary / GATES)
        members = {role: chosen.to_indices() for role, chosen in routed.gates.members.items()}
        first = next(iter(routed.gates.members.values()))
        config = {
            "format": FORMAT, "version": VERSION, "subject": routed.subject, "site": first.site,
            "shape": list(first.mask.shape), "members": members, "layers": list(routed.gates.layers),
            "sha256": _sha256(temporary / GATES), "delta_sha256": _sha256(temporary / DELTA / CONFIG),
        }  # fmt: skip
        (temporary / CONFIG).write_text(checked_text(config), encoding="utf-8")
    return folder


def load_routed_delta(folder: str | Path, *, subject: Subject | None = None) -> RoutedDelta:
    """A routed delta back from its folder; with `subject`, checked against it.

    Raises DeltaError when the folder is missing, is no routed delta, is of a later version, is truncated or altered, or
    when it belongs to another subject.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    config = _read_config(folder)
    for path, key in ((folder / GATES, "sha256"), (folder / DELTA / CONFIG, "delta_sha256")):
        if not path.is_file() or _sha256(path) != config[key]:
            raise DeltaError(f"{path} is missing, truncated or altered; restore it from a copy or train again")
    delta = load_delta(folder / DELTA)
    tensors = load_file(folder / GATES)
    gates = Gates(
        {role: _members(config, role) for role in config["members"]},
        {layer: tensors[f"gates.{layer}.weight"] for layer in config["layers"]},
        {layer: tensors[f"gates.{layer}.bias"] for layer in config["layers"]},
    )
    routed = RoutedDelta(delta, gates)
    if subject is not None:
        routed.check(subject)
    return routed


def _members(config: dict[str, Any], role: str) -> NeuronSet:
    mask = torch.zeros(config["shape"], dtype=torch.bool)
    for layer, indices in config["members"][role].items():
        mask[int(layer), indices] = True
    try:
        return NeuronSet(config["site"], config["subject"], mask, {"made": "load_routed_delta", "role": role})
    except SetError as error:
        raise DeltaError(f"the neurons of role {role!r} cannot be read: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise DeltaError(
            f"no routed delta at {folder}: expected a folder with {CONFIG}, {GATES} and {DELTA}; check the path"
        )
    raw = path.read_bytes()
    try:
        config = json.loads(raw)
        found = config.get("format"), config.get("version")
    except (ValueError, AttributeError) as error:
        raise DeltaError(f"{path} is damaged: it is no JSON object; restore it from a copy or train again") from error
    if found[0] != FORMAT:
        raise DeltaError(f"{path} describes no routed delta (format {found[0]!r}, expected {FORMAT!r}); check the path")
    if found[1] != VERSION:
        raise DeltaError(f"{path} has version {found[1]!r}, expected {VERSION}; read it with the toolkit that wrote it")
    config.pop("checksum", None)
    if checked_text(config).encode() != raw:  # any byte that differs shows
        raise DeltaError(f"{path} is damaged: its checksum does not match; restore it from a copy or train again")
    return config


def _is_routed(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False
