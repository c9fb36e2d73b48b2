"""Similarity: how alike the parameters of two sets' neurons are, layer by layer, next to matched random sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import Record, library_versions, record_type
from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .ablate import control
from .parameters import neuron_parameters


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine of the mean parameter vectors of every pair of sets.

    `values` [group, group, layer] is over all members, `values_unshared` over the members that the other set lacks
    (shared neurons raise a cosine by themselves). `chance`, `chance_low` and `chance_high` are the mean and the central
    95 % over pairs of controls, random sets with the same counts per layer. `counts` [group, layer] is the number of
    members. NaN where a set has no members left in a layer; unshared and chance are NaN on the diagonal.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    counts: Int[Tensor, "group layer"]
    values: Float[Tensor, "group group layer"]
    values_unshared: Float[Tensor, "group group layer"]
    chance: Float[Tensor, "group group layer"]
    chance_low: Float[Tensor, "group group layer"]
    chance_high: Float[Tensor, "group group layer"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "similarity") -> Record:
        """The similarity as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"site": self.site, "subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("similarity", name, arrays, meta)


@record_type("similarity")
def similarity_from_record(record: Record) -> Similarity:
    """Similarity back from an atlas."""
    return Similarity(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def similarity(subject: Subject, sets: Mapping[str, NeuronSet], *, controls: int = 20, seed: int = 0) -> Similarity:
    """How alike the parameters of every pair of sets are, layer by layer, against matched random sets.

    Leng & Xiong (section 5) compare "task-specific neuron parameters" by cosine and leave open which matrices are
    meant, how two different index sets are aligned, and what happens to shared neurons. Here: a neuron's parameters are
    those of `neuron_parameters`, concatenated as they stand, without centring or scaling; a set's vector in a layer is
    their mean, which needs no alignment; and the cosine is given with and without shared neurons. Repeat c of `chance`
    compares the c-th controls of the two sets, drawn independently, so that it holds no overlap beyond that of chance:
    hold it against `values_unshared` first. With 20 repeats the central 95 % are nearly the extremes.

    Raises SetError when there is no set, when sets differ in site, or when one belongs to another subject.
    """
    if not sets:
        raise SetError("no sets to compare; give {name: NeuronSet}, for example from npl.select")
    chosen = list(sets.values())
    for neurons in chosen:
        neurons.check(subject)
        _ = chosen[0] & neurons  # raises where the two cannot be compared
    masks = torch.stack([neurons.mask for neurons in chosen])
    randoms = [
        [control(neurons, name=name, repeat=repeat, seed=seed).mask for name, neurons in sets.items()]
        for repeat in range(controls)
    ]
    rows = [
        _layer(
            neuron_parameters(subject, chosen[0].site, layer), masks[:, layer], [[m[layer] for m in r] for r in randoms]
        )
        for layer in range(masks.shape[1])
    ]
    values, unshared, chance, low, high = (torch.stack(column, dim=-1).cpu() for column in zip(*rows, strict=True))
    return Similarity(
        chosen[0].site, subject.fingerprint, tuple(sets), masks.sum(dim=2), values, unshared, chance, low, high,
        origin={
            "vector": "mean of the neurons' concatenated weights", "measure": "cosine",
            "controls": controls, "seed": seed,
            "sets": {name: neurons.digest for name, neurons in sets.items()}, "versions": library_versions(),
        },
    )  # fmt: skip


def _layer(
    parameters: Float[Tensor, "neuron parameter"], masks: Bool[Tensor, "group neuron"], randoms: list[list[Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, unshared values, and mean, low and high of chance, each [group, group]."""
    values = _cosine(_means(parameters, masks))
    unshared = torch.full_like(values, torch.nan)
    for i in range(len(masks)):
        others = [j for j in range(len(masks)) if j != i]
        if others:
            mine = _means(parameters, masks[i] & ~masks[others])
            theirs = _means(parameters, masks[others] & ~masks[i])
            unshared[i, others] = _pairwise(mine, theirs)
    if not randoms:
        nothing = torch.full_like(values, torch.nan)
        return values, unshared, nothing, nothing.clone(), nothing.clone()
    repeats = torch.stack([_cosine(_means(parameters, torch.stack(row))) for row in randoms])
    repeats[:, range(len(masks)), range(len(masks))] = torch.nan  # a control compared with itself says nothing
    low, high = torch.quantile(repeats, torch.tensor([0.025, 0.975]).to(repeats), dim=0)
    return values, unshared, repeats.mean(dim=0), low, high


def _means(parameters: Tensor, masks: Bool[Tensor, "set neuron"]) -> Float[Tensor, "set parameter"]:
    """Mean parameter vector of each set, NaN for an empty one; only the members' rows are read."""
    masks = masks.to(parameters.device)
    counts = masks.sum(dim=1)
    members = masks.nonzero()[:, 1]
    starts = counts.cumsum(dim=0) - counts
    sums = torch.nn.functional.embedding_bag(members, parameters, starts, mode="sum")
    return sums / torch.where(counts > 0, counts, torch.nan)[:, None]


def _cosine(vectors: Float[Tensor, "set parameter"]) -> Float[Tensor, "set set"]:
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    # NaN rows would spread through a product of finite rows with zeros, so they are put back afterwards
    missing = unit.isnan().any(dim=1)
    table = unit.nan_to_num() @ unit.nan_to_num().T
    return table.masked_fill(missing[:, None] | missing[None], torch.nan)


def _pairwise(a: Float[Tensor, "pair parameter"], b: Float[Tensor, "pair parameter"]) -> Float[Tensor, " pair"]:
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
