"""Resume: the state of a pass in a file, so that an interrupted run goes on and ends as an uninterrupted one does.

The file is made beside its place, flushed to the disk and moved there, so that a kill at any moment leaves the old one or
the new one. It says what run it is of, and carries a SHA-256 of all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .sums import Sums

_KINDS = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}
EXTRA = "extra."  # before the names of what a method has to tell beside its scores
SHARE = 50  # writing takes at most one part in so many of the time


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another run, or in a place that cannot be written."""


@dataclass(eq=False)
class Checkpoint:
    """Where a pass keeps its state.

    It is written after the first batch that ends `every` seconds or more after the last writing (0: after every batch), and
    less often where writing takes long. `keep` leaves it when the pass is done, for a caller that has yet to write the
    result and then calls `remove`.

    Raises CheckpointError for a place that cannot be written.
    """

    path: Path
    every: float = 30.0
    keep: bool = False
    _due: float = field(default=0.0, repr=False)
    _own: Path | None = field(default=None, repr=False)
    _parts: list[Checkpoint] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if not self.every >= 0:
            raise CheckpointError(f"checkpoint_every is {self.every}; expected seconds, 0 or more")
        if self.path.is_dir():
            raise CheckpointError(
                f"{self.path} is a folder; a checkpoint is a file, give a path such as {self.path}/run"
            )
        if not self.path.absolute().parent.is_dir():
            raise CheckpointError(f"cannot write {self.path}: there is no folder {self.path.parent}; make it first")

    def part(self, name: str = "") -> Checkpoint:
        """Where one of several passes keeps its state: a file beside this one with `name` after a dot, or this file.

        It stays until `remove` of the whole.
        """
        path = self.path.with_name(f"{self.path.name}.{name}") if name else self.path
        self._parts.append(Checkpoint(path, every=self.every, keep=True))
        return self._parts[-1]

    def start(
        self, facts: Mapping[str, Any], sums: Sequence[Sums], *, rank: int = 0, size: int = 1
    ) -> tuple[int, int | None]:
        """Put the state of an interrupted run of the same facts into the sums; returns how many batches are done, and the
        limit on a batch's tokens that memory has set by then. Processes have a file each.

        Raises CheckpointError for a file of another run, which it says how to tell apart, and for a damaged one.
        """
        self._own = _own_path(self.path, rank, size)
        self._due = time.monotonic() + self.every
        _check_size(self.path, size)
        if not self._own.exists():
            return 0, None
        told, tensors = _read(self._own)
        _check_facts(self._own, told["facts"], _plain(facts))
        with torch.no_grad():
            for number, one in enumerate(sums):
                head = f"{number}.{EXTRA}"
                one.extra.update({name.removeprefix(head): x for name, x in tensors.items() if name.startswith(head)})
            for name, tensor in _tensors(sums).items():
                tensor.copy_(tensors[name])
        return told["done"], told["limit"]

    def step(self, facts: Mapping[str, Any], sums: Sequence[Sums], *, done: int, limit: int | None) -> None:
        """Write the state after a batch, if it is due."""
        now = time.monotonic()
        if now >= self._due:
            self.write(facts, sums, done=done, limit=limit)
            took = time.monotonic() - now
            self._due = time.monotonic() + (max(self.every, SHARE * took) if self.every else 0)

    def write(self, facts: Mapping[str, Any], sums: Sequence[Sums], *, done: int, limit: int | None) -> None:
        """Write the state now. Raises CheckpointError when that fails; what stood there before is untouched."""
        assert self._own is not None
        told = json.dumps({"facts": _plain(facts), "done": done, "limit": limit})
        tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(sums).items()}
        part = _part(self._own)
        try:
            _write(part, tensors, {"told": told, "sha256": _digest(told, tensors)})
            part.replace(self._own)
        except OSError as error:
            raise CheckpointError(f"could not write {self._own}: {error}; is the disk full or read-only?") from error

    @property
    def written(self) -> bool:
        """Whether there is a state to go on from."""
        return (self._own is not None and self._own.exists()) or any(part.written for part in self._parts)

    def remove(self) -> None:
        """Take the file away, because the result is there."""
        if self._own is not None:
            self._own.unlink(missing_ok=True)
            _part(self._own).unlink(missing_ok=True)
        for part in self._parts:
            part.remove()


def states(keeper: Checkpoint | None, *, alone: bool) -> Iterator[Checkpoint | None]:
    """Where one pass after another keeps its state; unless one is `alone`, those that are done stay while others run."""
    number = 1
    while True:
        yield keeper if keeper is None or alone else keeper.part("" if number == 1 else str(number))
        number += 1


def _tensors(sums: Sequence[Sums]) -> dict[str, Tensor]:
    names = ("absolute", "signed", "squares", "counts", "tokens", "scored", "rows", "routed")
    every = {f"{number}.{name}": getattr(one, name) for number, one in enumerate(sums) for name in names}
    every |= {f"{number}.{EXTRA}{name}": x for number, one in enumerate(sums) for name, x in one.extra.items()}
    return {name: tensor for name, tensor in every.items() if tensor is not None}


def _own_path(path: Path, rank: int, size: int) -> Path:
    return path if size == 1 else path.with_name(f"{path.name}.{rank}-of-{size}")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(facts), default=str))


def _digest(told: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().view(np.uint8).data)
    return digest.hexdigest()


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, tensor by tensor to the disk: the library's own writing leaves a file of its own when killed."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(tensor.numpy().view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sound = meta["sha256"] == _digest(meta["told"], tensors)
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); remove it to start over") from error
    if not sound:
        raise CheckpointError(f"{path} is damaged: it does not match its checksum; remove it to start over")
    return json.loads(meta["told"]), tensors


def _check_facts(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differ = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if differ:
        said = "; ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in differ)
        raise CheckpointError(
            f"{path} is the checkpoint of another run: {said}. Give what that run was given, or another checkpoint, or remove it"
        )


def _check_size(path: Path, size: int) -> None:
    """Refuse the checkpoints of a run by another number of processes, which had other batches."""
    others = [path, *path.parent.glob(f"{escape(path.name)}.*-of-*")]
    for other in others:
        count = 1 if other == path else int(other.name.rpartition("-of-")[2])
        if count != size and other.exists():
            raise CheckpointError(
                f"{other} is the checkpoint of a run by {count} process{'es' if count > 1 else ''}, and this one has {size}; "
                "start as many, give another checkpoint, or remove it"
            )
