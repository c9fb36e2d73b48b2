"""Overlap: how many neurons two sets share, next to how many two random sets of these sizes would share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.selection import in_common
from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from .chance import levels
from .statistics import holm

Join = Literal["union", "intersection"]


@dataclass(frozen=True, eq=False)
class Overlap:
    """Overlap of every pair of sets against chance, over the site and within each layer.

    `jaccard` [group, group] is |A & B| / |A | B| (Leng & Xiong, eq. 13), NaN where both sets are empty. `expected`,
    `low` and `high` are its mean and its 95 % interval when the two sets are drawn independently at random with their
    actual sizes; `p` is two-sided (twice the smaller tail), `p_corrected` is `p` after Holm over the pairs. All five
    are NaN on the diagonal. `coefficient` is |A & B| / min(|A|, |B|), the overlap coefficient, and
    `coefficient_expected` its mean by chance; since the sizes are given, both indices grow with the number shared, and
    p is the p of both. What begins with `layer_` [group, group, layer] is the same within one layer, corrected over
    pairs and layers; intervals and p of layers are None where the null leaves the sizes in a layer open (`uniform`).
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    sizes: Int[Tensor, " group"]
    intersections: Int[Tensor, "group group"]
    jaccard: Float[Tensor, "group group"]
    expected: Float[Tensor, "group group"]
    low: Float[Tensor, "group group"]
    high: Float[Tensor, "group group"]
    p: Float[Tensor, "group group"]
    p_corrected: Float[Tensor, "group group"]
    layer_jaccard: Float[Tensor, "group group layer"]
    layer_expected: Float[Tensor, "group group layer"]
    origin: Mapping[str, Any] = field(default_factory=dict)
    coefficient: Float[Tensor, "group group"] | None = None
    coefficient_expected: Float[Tensor, "group group"] | None = None
    layer_coefficient: Float[Tensor, "group group layer"] | None = None
    layer_low: Float[Tensor, "group group layer"] | None = None
    layer_high: Float[Tensor, "group group layer"] | None = None
    layer_p: Float[Tensor, "group group layer"] | None = None
    layer_p_corrected: Float[Tensor, "group group layer"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "overlap") -> Record:
        """The overlap as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"site": self.site, "subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("overlap", name, arrays, meta)


@record_type("overlap")
def overlap_from_record(record: Record) -> Overlap:
    """Overlap back from an atlas."""
    return Overlap(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def overlap(sets: Mapping[str, NeuronSet], *, uniform: bool = False) -> Overlap:
    """Overlap of every pair of sets, over the site and layer by layer, against chance.

    By chance means: two sets drawn independently, each with its actual number of neurons in every layer, or with
    `uniform` its actual number over the whole site. Against the first, sets do not overlap merely because both live in
    the same layers. Two sets with k of N neurons share k/(2N - k) of their union in expectation (N large).

    Raises SetError when there is no set or when sets differ in site, subject or shape.
    """
    chosen = comparable(sets)
    width, depth = chosen[0].width, chosen[0].num_layers
    shared = _shared(chosen)
    per_layer = shared.diagonal(dim1=0, dim2=1).T
    union = per_layer[:, None] + per_layer[None] - shared
    smaller = torch.minimum(per_layer[:, None], per_layer[None])
    sizes, total = per_layer.sum(dim=1), shared.sum(dim=2)
    first, second = torch.triu_indices(len(chosen), len(chosen), offset=1).unbind()
    a, b, both = (part.long().numpy() for part in (per_layer[first], per_layer[second], shared[first, second]))
    if uniform:
        a, b, both, width = a.sum(1, keepdims=True), b.sum(1, keepdims=True), both.sum(1, keepdims=True), width * depth
    found = levels(a, b, both, width=width)

    def table(values: np.ndarray) -> Tensor:
        full = torch.full((len(chosen), len(chosen), *values.shape[1:]), torch.nan, dtype=torch.float64)
        full[first, second] = full[second, first] = torch.from_numpy(values)
        return full

    # of the site's union each neuron is shared with one probability wherever it stands, so layers expect the same
    expected = np.repeat(found.layer_expected, depth, axis=1) if uniform else found.layer_expected
    within = () if uniform else (found.layer_low, found.layer_high, found.layer_p, _holm(found.layer_p))
    small = torch.minimum(sizes[:, None], sizes[None])
    return Overlap(
        chosen[0].site, chosen[0].subject, tuple(sets), sizes.long(), total.long(), total / union.sum(dim=2),
        *(table(values) for values in (found.expected, found.low, found.high, found.p, _holm(found.p))),
        shared / union, table(expected),  # pyright: ignore[reportCallIssue]
        {  # pyright: ignore[reportCallIssue]
            "null": "uniform over the site" if uniform else "same counts by layer",
            "interval": 0.95, "p": "two-sided, Holm over the pairs",
            "sets": {name: neurons.digest for name, neurons in sets.items()},
        },
        total / small, table(found.shared) / small, shared / smaller, *(table(values) for values in within),  # pyright: ignore[reportCallIssue]
    )  # fmt: skip


def combine(
    sets: Mapping[str, NeuronSet], groups: Mapping[str, Sequence[str]], *, how: Join = "union"
) -> dict[str, NeuronSet]:
    """Sets of groups of tasks or cultures: {"CLS": ("sst2", "qqp"), ...} gives the union (or the intersection) of each.

    Leng & Xiong (arXiv 2407.06488) compare unions of three tasks' neurons (eq. 13 and appendix A.6). `overlap` of what
    this returns takes chance from the unions' actual sizes, which lie far above those of single sets.

    Raises SetError for an unknown `how`, and when a name is not among the sets; the text lists what is.
    """
    if how not in get_args(Join):
        raise SetError(f"unknown way {how!r} to combine sets; expected {', '.join(get_args(Join))}")
    joined = {}
    for name, members in groups.items():
        missing = [member for member in members if member not in sets]
        if missing or not members:
            what = f"no set {missing[0]!r}" if missing else "no members"
            raise SetError(f"{name!r} has {what}; name some of {', '.join(sets)}")
        joined[name] = in_common({m: sets[m] for m in members}, at_least=1 if how == "union" else None)
    return joined


def comparable(sets: Mapping[str, NeuronSet]) -> list[NeuronSet]:
    """The sets in order, of one subject, site and shape. Raises SetError where there are none or they differ."""
    if not sets:
        raise SetError("no sets to compare; give {name: NeuronSet}, for example from npl.select")
    chosen = list(sets.values())
    for other in chosen[1:]:
        _ = chosen[0] & other  # raises where the two cannot be compared
    return chosen


def _shared(chosen: Sequence[NeuronSet]) -> Float[Tensor, "group group layer"]:
    """Members of both sets in each layer; float32 counts exactly up to 2^24, more than a layer's neurons."""
    layers = (torch.stack([neurons.mask[layer] for neurons in chosen]).float() for layer in range(chosen[0].num_layers))
    return torch.stack([(masks @ masks.T).double() for masks in layers], dim=2)


def _holm(p: np.ndarray) -> np.ndarray:
    """Each pair counts once, though it stands in the table twice."""
    return holm(torch.from_numpy(p)).numpy()
