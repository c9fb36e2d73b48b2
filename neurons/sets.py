"""NeuronSet: an immutable set of neurons of one site of one subject, with the algebra of sets."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .atlas import Record, record_type
from .errors import SetError
from .experts import by_expert
from .pickling import by_fields
from .subject import Subject


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """A set of neurons (site, layer, index).

    `mask` (bool [layer, neuron], on the CPU) is true where a neuron belongs; it is a copy of what was given, and is not to
    be written into, since the set's hash and digest follow from it. `subject` is the fingerprint of the model
    that the indices mean something for. `origin` says how the set came about; the algebra carries it along.
    """

    site: str
    subject: str
    mask: Bool[Tensor, "layer neuron"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        if self.mask.dim() != 2 or self.mask.dtype != torch.bool:
            raise SetError(f"mask must be bool [layer, neuron], got {self.mask.dtype} of shape {list(self.mask.shape)}")
        object.__setattr__(self, "mask", self.mask.detach().cpu().clone())
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @classmethod
    def from_indices(
        cls,
        subject: Subject,
        *,
        site: str = "mlp",
        indices: Mapping[int, Iterable[int]],
        origin: Mapping[str, Any] | None = None,
    ) -> NeuronSet:
        """The set of these neurons, given as {layer: neuron indices}.

        Raises SetError when a layer or an index lies outside the site, TypeError when one is no whole number; nothing is
        dropped, clipped or rounded.
        """
        place = subject.site(site)
        mask = torch.zeros((place.num_layers, place.width), dtype=torch.bool)
        for layer, neurons in indices.items():
            if not 0 <= layer < place.num_layers:
                raise SetError(f"layer {layer} is outside 0 to {place.num_layers - 1} of site {site!r}")
            for neuron in map(operator.index, neurons):
                if not 0 <= neuron < place.width:
                    raise SetError(
                        f"neuron {neuron} of layer {layer} is outside 0 to {place.width - 1} of site {site!r}; "
                        "was the set made for another site or model?"
                    )
                mask[operator.index(layer), neuron] = True
        return cls(site, subject.fingerprint, mask, origin or {"made": "from_indices"})

    @classmethod
    def from_experts(
        cls,
        subject: Subject,
        *,
        indices: Mapping[int, Mapping[int, Iterable[int]]],
        origin: Mapping[str, Any] | None = None,
    ) -> NeuronSet:
        """The set of these units of routed experts (site `expert`), given as {layer: {expert: unit indices}}.

        Raises SetError when a layer, an expert or a unit lies outside the site.
        """
        tap = subject.site("expert").taps[0]
        flat: dict[int, list[int]] = {}
        for layer, experts in indices.items():
            flat[layer] = []
            for expert, units in experts.items():
                for unit in units:
                    if not (0 <= expert < (tap.routed or 0) and 0 <= unit < tap.units):
                        raise SetError(
                            f"unit {unit} of expert {expert} of layer {layer} is outside {tap.routed} experts of "
                            f"{tap.units} units"
                        )
                    flat[layer].append(expert * tap.units + unit)
        return cls.from_indices(subject, site="expert", indices=flat, origin=origin or {"made": "from_experts"})

    @classmethod
    def random(cls, like: NeuronSet, *, seed: int, avoid: NeuronSet | None = None) -> NeuronSet:
        """A control: as many neurons in each layer of the same site as `like` has, drawn without replacement.

        Drawn from outside `like` (and outside `avoid`) as far as a layer has neurons enough, else from the whole layer.
        """
        generator = torch.Generator().manual_seed(seed)
        taken = like.mask if avoid is None else like.mask | like._matched(avoid).mask
        mask = torch.zeros_like(like.mask)
        for layer, count in enumerate(like.per_layer.tolist()):
            free = (~taken[layer]).nonzero().flatten()
            if len(free) < count:
                free = torch.arange(mask.shape[1])
            mask[layer, free[torch.randperm(len(free), generator=generator)[:count]]] = True
        return cls(like.site, like.subject, mask, {"made": "control", "seed": seed, "like": like.digest})

    @property
    def num_layers(self) -> int:
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def per_layer(self) -> Int[Tensor, " layer"]:
        """Neurons of the set in each layer."""
        return self.mask.sum(dim=1)

    @property
    def share(self) -> float:
        """Share of the site's neurons that are in the set."""
        return len(self) / self.mask.numel()

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name site, subject and members."""
        text = f"{self.site}|{self.subject}|{list(self.mask.shape)}|".encode()
        return hashlib.sha256(text + self.mask.numpy().tobytes()).hexdigest()[:12]

    def indices(self, layer: int) -> Int[Tensor, " member"]:
        """The members in one layer, ascending."""
        return self.mask[layer].nonzero().flatten()

    def to_indices(self) -> dict[int, list[int]]:
        """{layer: neuron indices} of the layers that have members."""
        return {layer: self.indices(layer).tolist() for layer in range(self.num_layers) if bool(self.mask[layer].any())}

    def to_experts(self, subject: Subject) -> dict[int, dict[int, list[int]]]:
        """{layer: {expert: unit indices}} of a set of site `expert`; the subject says how many units an expert has.

        Raises SetError when the set is of another subject or site.
        """
        self.check(subject)
        tap = subject.site(self.site).taps[0]
        if tap.routed is None:
            raise SetError(f"site {self.site!r} has no experts; expected a set of site 'expert'")
        return {
            layer: {expert: u.tolist() for expert, u in by_expert(torch.tensor(index), units=tap.units).items()}
            for layer, index in self.to_indices().items()
        }

    def layers(self, layers: Iterable[int]) -> NeuronSet:
        """The members in these layers."""
        kept = torch.zeros_like(self.mask)
        chosen = list(layers)
        for layer in chosen:
            if not 0 <= layer < self.num_layers:
                raise SetError(f"layer {layer} is outside 0 to {self.num_layers - 1}")
            kept[layer] = self.mask[layer]
        return NeuronSet(self.site, self.subject, kept, {"made": "layers", "layers": chosen, "of": dict(self.origin)})

    def check(self, subject: Subject) -> None:
        """Raise SetError unless this set was made for that subject and fits its site."""
        if self.subject != subject.fingerprint:
            raise SetError(
                f"the set belongs to subject {self.subject}, but {subject.name!r} is {subject.fingerprint}; "
                "locate the neurons again on this model, or load the model that the set was made with"
            )
        site = subject.site(self.site)
        if self.mask.shape != (site.num_layers, site.width):
            raise SetError(
                f"the set has shape {list(self.mask.shape)}, site {self.site!r} of {subject.name!r} has "
                f"{[site.num_layers, site.width]}"
            )

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __bool__(self) -> bool:
        return bool(self.mask.any())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((int(layer), int(neuron)) for layer, neuron in self.mask.nonzero())

    def __contains__(self, neuron: tuple[int, int]) -> bool:
        layer, index = neuron
        inside = 0 <= layer < self.num_layers and 0 <= index < self.width
        return inside and bool(self.mask[layer, index])

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, self.mask & self._matched(other).mask, "&")

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, self.mask | self._matched(other).mask, "|")

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, self.mask & ~self._matched(other).mask, "-")

    def __xor__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, self.mask ^ self._matched(other).mask, "^")

    def __invert__(self) -> NeuronSet:
        return NeuronSet(self.site, self.subject, ~self.mask, {"made": "~", "of": dict(self.origin)})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self.site == other.site and self.subject == other.subject and torch.equal(self.mask, other.mask)

    def __le__(self, other: NeuronSet) -> bool:
        return not bool((self.mask & ~self._matched(other).mask).any())

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        where = f"{self.site} neurons in {self.num_layers} layers of subject {self.subject}"
        return f"NeuronSet({len(self)} of {self.mask.numel()} {where})"

    def _matched(self, other: NeuronSet) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            raise SetError(f"expected a NeuronSet, got {type(other).__name__}")
        if self.site != other.site:
            raise SetError(f"cannot combine a set of site {self.site!r} with one of site {other.site!r}")
        if self.subject != other.subject:
            raise SetError(f"cannot combine a set of subject {self.subject} with one of subject {other.subject}")
        if self.mask.shape != other.mask.shape:
            raise SetError(f"cannot combine sets of shapes {list(self.mask.shape)} and {list(other.mask.shape)}")
        return other

    def _combined(self, other: NeuronSet, mask: Tensor, sign: str) -> NeuronSet:
        return NeuronSet(self.site, self.subject, mask, {"made": sign, "of": [dict(self.origin), dict(other.origin)]})

    def to_record(self, name: str) -> Record:
        """The set as a record of the atlas (one bit a neuron)."""
        meta = {
            "site": self.site, "subject": self.subject, "shape": list(self.mask.shape), "origin": dict(self.origin),
            "digest": self.digest,
        }  # fmt: skip
        return Record("set", name, {"bits": np.packbits(self.mask.numpy())}, meta)


@record_type("set")
def set_from_record(record: Record) -> NeuronSet:
    """A set back from an atlas."""
    layers, width = record.meta["shape"]
    bits = np.unpackbits(record.arrays["bits"], count=layers * width).astype(bool)
    mask = torch.from_numpy(bits).reshape(layers, width)
    return NeuronSet(record.meta["site"], record.meta["subject"], mask, record.meta["origin"])
