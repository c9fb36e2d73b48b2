"""Similarity: how alike the parameters of two sets' neurons are, layer by layer, next to matched random sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import Record, library_versions, record_type
from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .ablate import control
from .alignment import Align, check_align, table_of, unshared_table
from .overlap import comparable
from .parameters import matrix_names, neuron_parameters

Of = Literal["weights", "deltas"]


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine of the parameters of every pair of sets, by default of their mean vectors.

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


def similarity(
    subject: Subject,
    sets: Mapping[str, NeuronSet],
    *,
    align: Align = "mean",
    matrices: Sequence[str] | None = None,
    center: bool = False,
    base: Subject | None = None,
    of: Of = "weights",
    scores: Scores | None = None,
    controls: int = 20,
    seed: int = 0,
) -> Similarity:
    """How alike the parameters of every pair of sets are, layer by layer, against matched random sets.

    Leng & Xiong (arXiv 2407.06488, section 5) compare "task-specific neuron parameters" by cosine and leave open which
    matrices are meant, how two different index sets are aligned, whether shared neurons count, and whether weights or
    what training changed of them is compared. Here these are options:

    - `matrices`: those of `neuron_parameters` (`gate`, `up`, `down`), concatenated as they stand; by default all.
    - `align`: `mean` takes the cosine of the two sets' mean vectors and `pairs` the mean cosine over all pairs of
      neurons, which need no alignment; `index` and `score` concatenate the neurons in the order of their index, or of
      their `scores` (the group's own, highest first), as far as both sets have some; `match` takes the mean cosine over
      the one-to-one assignment with the highest.
    - `center` takes the mean of all the layer's neurons off first; without it, what they have in common counts.
    - `base` is the subject before training; the sets may be its own. `of="deltas"` compares this subject's weights less
      those of `base`. A neuron that was not trained has no direction: where a whole set has not (with `pairs` and
      `match`, one of its neurons), the value is NaN (`match` takes 0).

    Shared neurons are in `values` and not in `values_unshared`. Repeat c of `chance` compares the c-th controls of the
    two sets, drawn independently, so that it holds no overlap beyond that of chance: hold it against `values_unshared`
    first. With 20 repeats the central 95 % are nearly the extremes. Weights are read layer by layer, also those of an
    offloaded subject.

    Raises SetError when there is no set, when sets differ in site, when one belongs to neither subject, or when `score`
    is asked for without scores of every set's group.
    """
    chosen = comparable(sets)
    check_align(align)
    if of not in get_args(Of) or (of == "deltas" and base is None):
        raise SetError(f"of={of!r} with{'out' if base is None else ''} a base; expected weights, or deltas with base=")
    changed = base if of == "deltas" else None
    order = _order(sets, scores) if align == "score" else None
    for neurons in chosen:
        neurons.check(base if base is not None and neurons.subject == base.fingerprint else subject)
    masks = torch.stack([neurons.mask for neurons in chosen])
    randoms = [
        torch.stack([control(neurons, name=name, repeat=repeat, seed=seed).mask for name, neurons in sets.items()])
        for repeat in range(controls)
    ]
    rows = []
    for layer in range(masks.shape[1]):
        parameters = _compared(subject, changed, chosen[0].site, layer, matrices, center)
        priority = None if order is None else order[:, layer]
        rows.append(_layer(parameters, masks[:, layer], [r[:, layer] for r in randoms], align, priority))
    values, unshared, chance, low, high = (torch.stack(column, dim=-1).cpu() for column in zip(*rows, strict=True))
    return Similarity(
        chosen[0].site, chosen[0].subject, tuple(sets), masks.sum(dim=2), values, unshared, chance, low, high,
        origin={
            "vector": "mean of the neurons' concatenated weights" if align == "mean" else "the neurons' own",
            "measure": "cosine", "align": align, "center": center,
            "matrices": list(matrices or matrix_names(subject, chosen[0].site)),
            "of": of,
            "model": subject.fingerprint, "base": None if base is None else base.fingerprint,
            "controls": controls, "seed": seed,
            "sets": {name: neurons.digest for name, neurons in sets.items()}, "versions": library_versions(),
        },
    )  # fmt: skip


def _compared(
    subject: Subject, base: Subject | None, site: str, layer: int, matrices: Sequence[str] | None, center: bool
) -> Float[Tensor, "neuron parameter"]:
    """The weights of a layer's neurons, or what training changed of them."""
    parameters = neuron_parameters(subject, site, layer, matrices=matrices)
    if base is not None:
        before = neuron_parameters(base, site, layer, matrices=matrices)
        if before.shape != parameters.shape:
            raise SetError(
                f"layer {layer} of {subject.name!r} has {list(parameters.shape)} numbers in its neurons, of "
                f"{base.name!r} {list(before.shape)}; give two checkpoints of one model"
            )
        parameters = parameters - before.to(parameters.device)
    return parameters - parameters.mean(dim=0) if center else parameters


def _order(sets: Mapping[str, NeuronSet], scores: Scores | None) -> Float[Tensor, "group layer neuron"]:
    """Every set's own scores."""
    if scores is None:
        raise SetError("align='score' orders neurons by their scores; give scores=")
    first = next(iter(sets.values()))
    found = torch.stack([scores.of(name) for name in sets])
    if (scores.site, scores.subject, *found.shape[1:]) != (first.site, first.subject, *first.mask.shape):
        raise SetError(
            f"the scores are of site {scores.site!r} of subject {scores.subject}, the sets of site {first.site!r} of "
            f"{first.subject}; give the scores that the sets were selected from"
        )
    return found


def _layer(
    parameters: Float[Tensor, "neuron parameter"],
    masks: Bool[Tensor, "group neuron"],
    randoms: Sequence[Bool[Tensor, "group neuron"]],
    align: Align,
    order: Float[Tensor, "group neuron"] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, unshared values, and mean, low and high of chance, each [group, group]."""
    values = table_of(parameters, masks, align, order)
    unshared = unshared_table(parameters, masks, align, order)
    if not randoms:
        nothing = torch.full_like(values, torch.nan)
        return values, unshared, nothing, nothing.clone(), nothing.clone()
    repeats = torch.stack([table_of(parameters, row, align, order) for row in randoms])
    repeats[:, range(len(masks)), range(len(masks))] = torch.nan  # a control compared with itself says nothing
    low, high = torch.quantile(repeats, torch.tensor([0.025, 0.975]).to(repeats), dim=0)
    return values, unshared, repeats.mean(dim=0), low, high
