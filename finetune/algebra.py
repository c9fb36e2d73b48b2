"""Arithmetic with deltas: several as one, and a delta made stronger, weaker or turned round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .entries import Entry, whole_entries
from .errors import DeltaError
from .slices import parts_of, slice_entries

Overlap = Literal["error", "last", "sum"]


def stack_deltas(subject: Subject, deltas: Sequence[Delta], *, overlap: Overlap = "error") -> Delta:
    """Several deltas of one subject and one site as one, whose set is the union of theirs.

    An entry that one delta trained is that delta's, bit for bit. Where several trained the same entry, `overlap` says
    what holds: "error" refuses, "last" takes the last delta of the sequence, "sum" adds the changes up,
    `base + sum_i (values_i - base)`, computed in float64 and rounded once (task arithmetic: Ilharco et al. 2023,
    arXiv 2212.04089, section 2).

    Raises DeltaError when a delta is of another subject, when sites differ (apply one inside the other instead, or merge
    one after the other), or when they overlap and may not.
    """
    if not deltas:
        raise DeltaError("there is no delta to stack; give one at least")
    if overlap not in ("error", "last", "sum"):
        raise DeltaError(f"unknown overlap {overlap!r}; expected error, last or sum")
    for delta in deltas:
        delta.check(subject)
    union = _union(deltas)
    _check_overlap(deltas, overlap)
    entries = _entries(subject, union)
    base = {entry.key: entry.read().cpu() for entry in entries}
    values = {entry.key: _stacked(entry, base[entry.key], _of(subject, entry, deltas), overlap) for entry in entries}
    origin = {"made": "stack_deltas", "overlap": overlap, "of": [dict(delta.origin) for delta in deltas]}
    return Delta(subject.fingerprint, union, _finite(values), base, (), origin)


def scaled(delta: Delta, factor: float) -> Delta:
    """The delta with its change multiplied: `values = base + factor (values - base)`, in float64 and rounded once.

    1 gives the delta's values and 0 the base, bit for bit. Between them it is weaker, above 1 stronger; -1 is its
    negation, which applied to the untouched subject moves it away from what the delta learned (Ilharco et al. 2023,
    arXiv 2212.04089). Negation does not take a delta off a merged model: `unmerge` does, exactly.

    Raises DeltaError when a value leaves the range of its dtype.
    """
    if factor == 1:
        values: Mapping[str, Tensor] = delta.values
    else:
        values = {
            key: (base.double() + factor * (delta.values[key].double() - base.double())).to(base.dtype)
            for key, base in delta.base.items()
        }
    origin = {"made": "scaled", "factor": factor, "of": dict(delta.origin)}
    return Delta(delta.subject, delta.neurons, _finite(values), delta.base, (), origin)


def _union(deltas: Sequence[Delta]) -> NeuronSet | None:
    """The neurons of all; None where every delta is of all parameters."""
    sites = sorted({"all parameters" if delta.neurons is None else delta.neurons.site for delta in deltas})
    if len(sites) > 1:
        raise DeltaError(
            f"cannot stack deltas of {' and '.join(sites)}; apply one inside the other, or merge one after the other"
        )
    union = deltas[0].neurons
    for delta in deltas[1:]:
        union = None if union is None or delta.neurons is None else union | delta.neurons
    return union


def _check_overlap(deltas: Sequence[Delta], overlap: Overlap) -> None:
    if overlap != "error" or len(deltas) == 1:
        return
    sets = [delta.neurons for delta in deltas if delta.neurons is not None]
    if not sets:
        raise DeltaError("deltas of all parameters overlap everywhere; choose overlap='last' or 'sum'")
    shared = torch.stack([neurons.mask for neurons in sets]).sum(dim=0) > 1
    if bool(shared.any()):
        layer, neuron = shared.nonzero()[0].tolist()
        raise DeltaError(
            f"the deltas share {int(shared.sum())} {sets[0].site} neurons, such as {neuron} of layer {layer}; "
            "choose overlap='last' or 'sum', or train them on sets that do not overlap (a - b)"
        )


def _entries(subject: Subject, neurons: NeuronSet | None) -> tuple[Entry, ...]:
    return whole_entries(subject) if neurons is None else slice_entries(parts_of(subject, neurons))


def _of(subject: Subject, entry: Entry, deltas: Sequence[Delta]) -> list[tuple[Tensor | None, Delta]]:
    """The deltas that hold numbers of an entry, each with where its channels stand in it; None where it holds all."""
    found: list[tuple[Tensor | None, Delta]] = []
    for delta in deltas:
        for own in _entries(subject, delta.neurons):
            if own.key == entry.key:
                whole = own.index is None or entry.index is None
                found.append((None if whole else torch.searchsorted(entry.index.cpu(), own.index.cpu()), delta))  # pyright: ignore[reportOptionalMemberAccess]
    return found


def _stacked(entry: Entry, base: Tensor, found: Sequence[tuple[Tensor | None, Delta]], overlap: Overlap) -> Tensor:
    """An entry's new numbers. Only those that several deltas hold are computed; all others are copied."""
    values = base.clone()
    changes = torch.zeros(base.shape, dtype=torch.float64)
    holders = torch.zeros(base.shape, dtype=torch.int32)
    for where, delta in found:
        own, old = delta.values[entry.key], delta.base[entry.key].double()
        place: tuple[slice | Tensor, ...] = (...,) if where is None else (*[slice(None)] * entry.dim, where)  # pyright: ignore[reportAssignmentType]
        values[place] = own
        changes[place] += own.double() - old
        holders[place] += 1
    if overlap == "sum":
        values = torch.where(holders > 1, (base.double() + changes).to(base.dtype), values)
    return values


def _finite(values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for key, tensor in values.items():
        if not bool(tensor.isfinite().all()):
            raise DeltaError(f"{key} leaves the range of {tensor.dtype}; take a smaller factor, or fewer deltas")
    return values
