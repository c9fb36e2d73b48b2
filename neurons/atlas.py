"""The atlas: one HDF5 file per study, written atomically, checksummed, read record by record.

A file begins with a 512-byte header in HDF5's user block that holds the SHA-256 of everything behind it; a flipped bit or
a missing tail is found before anything is believed. Behind it stand records: a kind, a name, named arrays and metadata as
JSON. What a kind means is known to the class that registered it with `record_type`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from .errors import AtlasError

HEADER_BYTES = 512
_MAGIC = b"NEUROPOLIS ATLAS 1\n"
_REGISTRY: dict[str, Callable[[Record], Any]] = {}
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One artefact as it stands in a file: arrays (numpy, by name) and JSON metadata, under (kind, name).

    The arrays of `Atlas.lazily` are read from the file when they are indexed.
    """

    kind: str
    name: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name


def record_type(kind: str) -> Callable[[Callable[[Record], T]], Callable[[Record], T]]:
    """Register the function that turns records of a kind back into its artefact."""

    def register(decode: Callable[[Record], T]) -> Callable[[Record], T]:
        _REGISTRY[kind] = decode
        return decode

    return register


def decode(record: Record) -> Any:
    """The artefact that a record holds. Raises AtlasError for a kind that this version does not know."""
    if record.kind not in _REGISTRY:
        raise AtlasError(
            f"the atlas holds a {record.kind!r}, which this version cannot read; it knows {sorted(_REGISTRY)}"
        )
    return _REGISTRY[record.kind](record)


def write_atlas(path: str | Path, records: Iterable[Record], *, subject: Mapping[str, Any] | None = None) -> Path:
    """Write records into an atlas; an existing one keeps its other records, and records of the same kind and name are replaced.

    The file is made beside its place and moved there when it is whole: after an error, or a kill at any moment, either the
    old file or the new one stands. `subject` (`{"fingerprint", "name", ...}`) must be the one that the file is about.

    Raises AtlasError when the path holds something else than an atlas, when the subject differs, or when writing fails.
    """
    path = Path(path)
    new = {record.key: record for record in records}
    old_subject = check_target(path, subject=subject)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        _write(Path(temporary), new, {**old_subject, **(subject or {})}, old=path if path.exists() else None)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AtlasError(
            f"could not write {path}: {reason}; what stood there before is untouched. Is the disk full or read-only?"
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return path


def check_target(path: str | Path, *, subject: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Raise AtlasError unless an atlas about this subject can be written here; returns the subject that stands there.

    For asking before long work whose result is to be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise AtlasError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise AtlasError(
            f"cannot write {path}: it is a folder; give the name of a file in it, such as {path / 'study.h5'}"
        )
    if not os.access(path.parent, os.W_OK):
        raise AtlasError(f"cannot write {path}: no permission to write in {path.parent}; choose another folder")
    if not path.exists():
        return {}
    with Atlas(path) as atlas:
        _same_subject(path, atlas.subject, subject)
        return atlas.subject


class Atlas:
    """An open atlas, for reading. Records are read when they are asked for.

    Raises AtlasError when the file is missing, is no atlas, is truncated or does not match its checksum.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        digest, size = _read_header(self.path)
        actual = self.path.stat().st_size
        if actual != size:
            raise AtlasError(
                f"{self.path} is damaged: it has {actual} bytes and should have {size} "
                f"({'truncated' if actual < size else 'overgrown'}); restore it from a copy or make it again"
            )
        if verify and _digest(self.path) != digest:
            raise AtlasError(
                f"{self.path} is damaged: its checksum does not match; restore it from a copy or make it again"
            )
        self._file = h5py.File(self.path, "r")
        self.subject: dict[str, Any] = json.loads(str(self._file.attrs["subject"]))
        self.versions: dict[str, str] = json.loads(str(self._file.attrs["versions"]))

    def __enter__(self) -> Atlas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def records(self) -> tuple[tuple[str, str], ...]:
        """(kind, name) of every record, in the order of writing."""
        return tuple(key for key, _ in self._entries())

    def _entries(self) -> Iterator[tuple[tuple[str, str], Any]]:
        folder: Any = self._file["records"]
        for number in folder:
            entry = folder[number]
            yield (str(entry.attrs["kind"]), str(entry.attrs["name"])), entry

    def copy(self, folder: h5py.Group, *, without: Iterable[tuple[str, str]]) -> None:
        """Copy the other records, packed as they are, into another file's folder of records."""
        left_out = set(without)
        for key, entry in self._entries():
            if key not in left_out:
                self._file.copy(entry, folder, name=f"{len(folder):04d}")

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of the records of one kind."""
        return tuple(name for k, name in self.records if k == kind)

    def record(self, kind: str, name: str) -> Record:
        """One record. Raises AtlasError that lists what there is."""
        found = self.lazily(kind, name)
        return Record(kind, name, {key: array[()] for key, array in found.arrays.items()}, found.meta)

    def lazily(self, kind: str, name: str) -> Record:
        """One record whose arrays stay in the file, for as long as this atlas is open: `arrays[name][rows]` reads those rows."""
        for _, entry in self._entries():
            if (entry.attrs["kind"], entry.attrs["name"]) == (kind, name):
                arrays = {array: entry["arrays"][array] for array in entry["arrays"]}
                return Record(kind, name, arrays, json.loads(entry["meta"].asstr()[()]))
        raise AtlasError(f"{self.path} has no {kind} {name!r}; it has {[f'{k} {n}' for k, n in self.records]}")

    def get(self, kind: str, name: str) -> Any:
        """One artefact, decoded."""
        return decode(self.record(kind, name))

    def all(self, kind: str) -> Iterator[Any]:
        """Every artefact of a kind, decoded."""
        return (self.get(kind, name) for name in self.names(kind))


def _write(
    path: Path, records: Mapping[tuple[str, str], Record], subject: Mapping[str, Any], *, old: Path | None
) -> None:
    with _late_errors(path) as raw, h5py.File(raw, "w", userblock_size=HEADER_BYTES, track_order=True) as file:
        file.attrs["subject"] = json.dumps(dict(subject))
        file.attrs["versions"] = json.dumps(library_versions())
        folder = file.create_group("records", track_order=True)
        if old is not None:
            with Atlas(old, verify=False) as atlas:  # check_target has just verified it
                atlas.copy(folder, without=records)
        for record in records.values():
            raw.check()
            _write_record(folder.create_group(f"{len(folder):04d}", track_order=True), record)
    with open(path, "r+b") as whole:
        whole.write(_header(_digest(path), path.stat().st_size))
        whole.flush()
        os.fsync(whole.fileno())


def _write_record(entry: h5py.Group, record: Record) -> None:
    entry.attrs["kind"] = record.kind
    entry.attrs["name"] = record.name
    # a dataset, since an attribute holds at most 64 KiB
    entry.create_dataset("meta", data=json.dumps(dict(record.meta), ensure_ascii=False))
    arrays = entry.create_group("arrays", track_order=True)
    for name, array in record.arrays.items():
        options: dict[str, Any] = {}
        if array.size > 1024:
            options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        if array.ndim > 1 and _BY_ROW < array.nbytes // max(1, len(array)) < _LARGEST_CHUNK:
            options["chunks"] = (1, *array.shape[1:])  # so that one group is read without the others
        arrays.create_dataset(name, data=array, **options)


_BY_ROW, _LARGEST_CHUNK = 2**14, 2**28  # bytes of a row (HDF5 takes chunks up to 4 GiB)


class _Raw(io.FileIO):
    """A file that HDF5 writes to, whose errors wait until `check`.

    HDF5 cannot close a file that it cannot write to, and crashes when the interpreter ends. After the first error nothing
    more is written, and what is read back there is zeros.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0

    def check(self) -> None:
        """Raise the error that there was."""
        if self.error is not None:
            raise self.error


@contextmanager
def _late_errors(path: Path) -> Iterator[_Raw]:
    with _Raw(path, "w+") as raw:
        yield raw
        raw.check()


def _read_header(path: Path) -> tuple[str, int]:
    if not path.is_file():
        raise AtlasError(f"no atlas at {path}; make one with 'neuropolis locate' or npl.save")
    with open(path, "rb") as raw:
        header = raw.read(HEADER_BYTES)
    if not header.startswith(_MAGIC):
        raise AtlasError(
            f"{path} is not a neuropolis atlas (or its header is damaged); expected a file made by this toolkit"
        )
    try:
        lines = header.decode("ascii").splitlines()
        digest, size = lines[1].removeprefix("sha256 "), int(lines[2].removeprefix("bytes "))
    except (IndexError, ValueError) as error:
        raise _damaged_header(path) from error
    if header != _header(digest, size):
        raise _damaged_header(path)
    return digest, size


def _header(digest: str, size: int) -> bytes:
    return (_MAGIC + f"sha256 {digest}\nbytes {size}\n".encode()).ljust(HEADER_BYTES, b"\0")


def _damaged_header(path: Path) -> AtlasError:
    return AtlasError(f"{path} is damaged: its header cannot be read; restore it from a copy or make it again")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as raw:
        raw.seek(HEADER_BYTES)
        while block := raw.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _same_subject(path: Path, old: Mapping[str, Any], new: Mapping[str, Any] | None) -> None:
    if new and old and old.get("fingerprint") != new.get("fingerprint"):
        raise AtlasError(
            f"{path} is about subject {old.get('fingerprint')} ({old.get('name')}), not {new.get('fingerprint')} "
            f"({new.get('name')}); write to another file, or load the model that the study was made with"
        )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that move numbers, for provenance."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("neuropolis", "torch", "transformers", "transformer-lens", "captum", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
