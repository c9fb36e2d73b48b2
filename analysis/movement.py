"""Movement: how far training turned and stretched the parameters of each set, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, library_versions, record_type
from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .ablate import control
from .overlap import comparable
from .parameters import matrix_names, neuron_parameters


@dataclass(frozen=True, eq=False)
class Movement:
    """Parameters of each set before and after training.

    `cosine` [group, layer] is that of a set's concatenated parameters before and after, `change` the norm of the
    difference over the norm before. `control_cosine` and `control_change` [group, repeat, layer] are those of random sets
    with the same counts per layer. NaN where a set has no members. `counts` [group, layer] are the members.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    counts: Int[Tensor, "group layer"]
    cosine: Float[Tensor, "group layer"]
    change: Float[Tensor, "group layer"]
    control_cosine: Float[Tensor, "group repeat layer"]
    control_change: Float[Tensor, "group repeat layer"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "movement") -> Record:
        """The table as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"site": self.site, "subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("movement", name, arrays, meta)


@record_type("movement")
def movement_from_record(record: Record) -> Movement:
    """The table back from an atlas."""
    return Movement(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def movement(
    before: Subject,
    after: Subject,
    sets: Mapping[str, NeuronSet],
    *,
    matrices: Sequence[str] | None = None,
    controls: int = 20,
    seed: int = 0,
) -> Movement:
    """How far two checkpoints of one model lie apart in the parameters of each set, against matched random sets.

    `matrices` are those of `neuron_parameters`. The neurons are the same before and after, so that nothing needs
    aligning. Raises SetError when sets belong to neither checkpoint, or when the checkpoints differ in shape.
    """
    chosen = comparable(sets)
    site = chosen[0].site
    for neurons in chosen:
        neurons.check(after if neurons.subject == after.fingerprint else before)
    masks = torch.stack([
        torch.stack([one.mask, *(control(one, name=name, repeat=r, seed=seed).mask for r in range(controls))])
        for name, one in sets.items()
    ]).float()  # fmt: skip
    found = []
    for layer in range(masks.shape[2]):
        old, new = (neuron_parameters(subject, site, layer, matrices=matrices).cpu() for subject in (before, after))
        if old.shape != new.shape:
            raise SetError(
                f"layer {layer} of {before.name!r} has {list(old.shape)} numbers in its neurons, of {after.name!r} "
                f"{list(new.shape)}; give two checkpoints of one model"
            )
        parts = torch.stack([(old * new).sum(1), old.square().sum(1), new.square().sum(1), (new - old).square().sum(1)])
        dot, norm, other, moved = (masks[:, :, layer] @ parts.T).unbind(dim=-1)
        found.append(torch.stack([(dot / (norm * other).sqrt()).clamp(-1, 1), (moved / norm).sqrt()]))
    cosine, change = torch.stack(found, dim=-1)
    return Movement(
        site, chosen[0].subject, tuple(sets), masks[:, 0].sum(dim=2).long(), cosine[:, 0], change[:, 0],
        cosine[:, 1:], change[:, 1:],
        {
            "before": before.fingerprint, "after": after.fingerprint, "after_name": after.name,
            "matrices": list(matrices or matrix_names(before, site)), "controls": controls, "seed": seed,
            "sets": {name: neurons.digest for name, neurons in sets.items()}, "versions": library_versions(),
        },
    )  # fmt: skip
