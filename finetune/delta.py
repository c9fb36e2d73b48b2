"""Delta: what a training run changed, applied to its subject and taken away again bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..neurons.pickling import by_fields
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject, fingerprint
from .entries import Entry, whole_entries
from .errors import DeltaError
from .quantised import QuantisedEntry
from .slices import parts_of, slice_entries


@dataclass(frozen=True, eq=False)
class Delta:
    """Trained entries of one subject, beside what stood there before.

    `values` and `base` hold new and old entries by key: `<path>.rows` [row, in], `<path>.columns` [out, column],
    `<path>.bias` [row], in the dtype that the subject had. Values are kept, not differences, since old + difference is
    not exact in floating point. `neurons` is the set that was trained; None after full fine-tuning, where every
    parameter is an entry under its own name. `history` is the loss of every step, `origin` what made the delta.
    """

    subject: str
    neurons: NeuronSet | None
    values: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    history: tuple[float, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("values", "base"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        object.__setattr__(self, "history", tuple(self.history))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        if list(self.values) != list(self.base):
            raise DeltaError("a delta needs the old entries of exactly the keys that it has new ones of")

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(values.numel() for values in self.values.values())

    def __repr__(self) -> str:
        what = "all parameters" if self.neurons is None else f"{len(self.neurons)} {self.neurons.site} neurons"
        return f"Delta({what}, {self.num_parameters} numbers, {len(self.history)} steps, subject {self.subject})"

    def check(self, subject: Subject) -> None:
        """Raise DeltaError unless this delta was trained on that subject, in the dtype that it is loaded in."""
        if self.subject != subject.fingerprint:
            raise DeltaError(
                f"the delta belongs to subject {self.subject}, but {subject.name!r} is {subject.fingerprint}; "
                "load the model that it was trained on, or train it again on this one"
            )
        self._entries(subject)

    def check_mergeable(self, subject: Subject) -> None:
        """Raise DeltaError unless that subject's weights can hold what this delta has."""
        if any(isinstance(entry, QuantisedEntry) for entry in self._entries(subject)):
            raise DeltaError(
                f"{subject.name!r} is quantised and cannot hold the delta in its weights; use it with delta.applied(subject)"
            )

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[None]:
        """While the block runs the subject has the trained entries; what stood there comes back bit for bit.

        Applied deltas stack: where two overlap, the inner one counts.
        """
        self.check(subject)
        entries = self._entries(subject)
        before = {entry.key: entry.read() for entry in entries}
        _write(entries, self.values)
        try:
            yield
        finally:
            _write(entries, before)

    def merge(self, subject: Subject, *, in_place: bool = False) -> Subject:
        """The subject with the trained entries in its weights, under a fingerprint of its own.

        By default in a copy of the module, so that the subject stays what its fingerprint says. `in_place` spares the
        memory of the copy; the Subject that was given then names weights that are gone, and only the one returned is
        to be used. A further delta trained on the result merges onto it; take them off in the reverse order.
        """
        self.check(subject)
        return self._exchanged(subject, self.base, self.values, in_place)

    def unmerge(self, subject: Subject, *, in_place: bool = False) -> Subject:
        """The reverse of `merge`: the old entries put back bit for bit.

        Raises DeltaError when the subject does not hold this delta's entries.
        """
        return self._exchanged(subject, self.values, self.base, in_place)

    def scaled(self, factor: float) -> Delta:
        """The delta with its change multiplied; 1 and 0 are exact, see `algebra.scaled` for the rounding of others."""
        from .algebra import scaled

        return scaled(self, factor)

    def __neg__(self) -> Delta:
        """`scaled(-1)`: away from what the delta learned."""
        return self.scaled(-1.0)

    def save(self, folder: str | Path) -> Path:
        """Write the delta as `delta.safetensors` and `config.json`; see `load_delta`."""
        from .delta_files import save_delta

        return save_delta(self, folder)

    def export(self, subject: Subject, folder: str | Path) -> Path:
        """Write a plain Hugging Face checkpoint, with tokenizer, that has the trained entries in its weights."""
        from .delta_files import export_merged

        return export_merged(self, subject, folder)

    def export_peft(self, subject: Subject, folder: str | Path) -> Path:
        """Write a PEFT adapter (LoRA) that adds what the delta changed; see `peft_export.export_peft`."""
        from .peft_export import export_peft

        return export_peft(self, subject, folder)

    def _exchanged(
        self, subject: Subject, old: Mapping[str, Tensor], new: Mapping[str, Tensor], in_place: bool
    ) -> Subject:
        self.check_mergeable(subject)
        for entry in self._entries(subject):
            if not torch.equal(entry.read().cpu(), old[entry.key]):
                why = "was not merged into this model" if old is self.values else "is merged already"
                raise DeltaError(
                    f"{entry.key} of {subject.name!r} is not what the delta expects there: it {why}, the weights "
                    "changed, or another delta lies on top; load the model again, or take the other delta off first"
                )
        model = subject.model if in_place else copy.deepcopy(subject.model)
        result = Subject(model, subject.tokenizer, subject.name, "")
        _write(self._entries(result), new)
        return Subject(model, subject.tokenizer, subject.name, fingerprint(model))

    def _entries(self, subject: Subject) -> tuple[Entry, ...]:
        """Where the delta's numbers stand in a model. Raises DeltaError when keys, shapes or dtype differ."""
        neurons = self.neurons
        entries = whole_entries(subject) if neurons is None else slice_entries(parts_of(subject, neurons))
        if {entry.key for entry in entries} != set(self.values):
            missing = sorted({entry.key for entry in entries} ^ set(self.values))[0]
            raise DeltaError(
                f"{missing} is in only one of the delta and {subject.name!r}; load the model it was trained on"
            )
        for entry in entries:
            values = self.values[entry.key]
            if list(values.shape) != entry.shape:
                raise DeltaError(f"{entry.key}: expected shape {entry.shape}, the delta has {list(values.shape)}")
            if values.dtype != entry.tensor.dtype:
                raise DeltaError(
                    f"{entry.key}: the delta is in {values.dtype}, {subject.name!r} in {entry.tensor.dtype}; "
                    f"load the model with dtype={values.dtype}"
                )
        return entries


def _write(entries: tuple[Entry, ...], values: Mapping[str, Tensor]) -> None:
    for entry in entries:
        entry.write(values[entry.key])
