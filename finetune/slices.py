"""Slices: which rows and columns of which projections belong to a set's neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.sets import NeuronSet
from ..neurons.sites import Tap, is_transposed
from ..neurons.subject import Subject

Side = Literal["rows", "columns"]


@dataclass(frozen=True, eq=False)
class SlicePart:
    """The rows (output channels) or the columns (input channels) of one projection; exactly one of the two is given.

    Rows and columns are those of the weight as [out, in], however the module stores it. Rows take their bias along.
    """

    path: str
    module: nn.Module
    rows: Int[Tensor, " row"] | None = None
    columns: Int[Tensor, " column"] | None = None

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The projection's whole weight, as a view that is not on any autograd tape."""
        weight: Any = self.module.weight
        return weight.data.t() if is_transposed(self.module) else weight.data

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """The projection's whole bias, where rows have one."""
        bias: Any = getattr(self.module, "bias", None)
        return None if bias is None or self.rows is None else bias.data

    def entries(self) -> Iterator[Entry]:
        """The part's weight entries, then its bias entries where it has them."""
        if self.columns is not None:
            yield Entry(f"{self.path}.columns", self.weight, 1, self.columns)
            return
        yield Entry(f"{self.path}.rows", self.weight, 0, self.rows)
        if self.bias is not None:
            yield Entry(f"{self.path}.bias", self.bias, 0, self.rows)


@dataclass(frozen=True, eq=False)
class Entry:
    """Some entries of a parameter that are read and written together.

    `tensor` shares the parameter's memory. `index` runs over dimension `dim`; None means the whole tensor.
    """

    key: str
    tensor: Tensor
    dim: int = 0
    index: Int[Tensor, " chosen"] | None = None

    @property
    def shape(self) -> list[int]:
        shape = list(self.tensor.shape)
        if self.index is not None:
            shape[self.dim] = len(self.index)
        return shape

    def read(self) -> Tensor:
        """A contiguous copy of the entries."""
        if self.index is None:
            return self.tensor.clone(memory_format=torch.contiguous_format)
        return self.tensor.index_select(self.dim, self.index.to(self.tensor.device)).contiguous()

    def write(self, values: Tensor) -> None:
        """Put values in the entries' place; a wider dtype is rounded to the parameter's."""
        values = values.to(self.tensor)
        if self.index is None:
            self.tensor.copy_(values)
        else:
            self.tensor.index_copy_(self.dim, self.index.to(self.tensor.device), values)


def slice_parts(subject: Subject, neurons: NeuronSet) -> tuple[SlicePart, ...]:
    """The parts of a subject's projections that belong to a set, layer by layer, none of them empty.

    - `mlp`, `gate`, `up`: rows of the FFN's gate and up projections (of the only input projection where there is no
      gate) with their biases, and columns of its output projection.
    - `q`, `k`, `v`, `mlp_out`: rows of that projection with their biases.
    - `attn`: columns of the attention output projection.

    Rows of a fused projection are merged into one part.

    Raises SetError when the set is of another subject, SiteError when a projection is not there, is no plain linear map
    in floating point, or is not in memory.
    """
    neurons.check(subject)
    return parts_of(subject, neurons)


def parts_of(subject: Subject, neurons: NeuronSet) -> tuple[SlicePart, ...]:
    """`slice_parts` without the check that the set was made for these very weights."""
    found: dict[str, tuple[Tap, Side, Tensor]] = {}
    places = _places(subject, neurons)
    for layer in range(neurons.num_layers):
        index = neurons.indices(layer)
        for taps, side in places if len(index) else ():
            tap = taps[layer]
            channels = index if tap.channels is None else tap.channels.cpu()[index]
            if tap.path in found:
                channels = torch.cat([found[tap.path][2], channels])
            found[tap.path] = (tap, side, channels.unique())
    parts = []
    for path, (tap, side, channels) in found.items():
        module = _plain(tap)
        index = channels.to(module.weight.device)
        parts.append(SlicePart(path, module, **{side: index}))
    weights = [id(part.module.weight) for part in parts]
    if len(set(weights)) < len(weights):
        raise SiteError(f"projections of {subject.name!r} share one weight; they cannot be tuned apart")
    return tuple(parts)


def slice_entries(parts: Sequence[SlicePart]) -> tuple[Entry, ...]:
    """The entries of all parts, in order."""
    return tuple(entry for part in parts for entry in part.entries())


def whole_entries(subject: Subject) -> tuple[Entry, ...]:
    """Every parameter of the model as one entry; tied parameters stand once."""
    return tuple(Entry(name, parameter.data) for name, parameter in subject.model.named_parameters())


def _places(subject: Subject, neurons: NeuronSet) -> list[tuple[tuple[Tap, ...], Side]]:
    """Which taps the neurons of a site go through, and on which side of the module they stand."""
    if neurons.site == "attn":
        return [(subject.site("attn").taps, "columns")]
    if neurons.site not in ("mlp", "gate", "up"):
        return [(subject.site(neurons.site).taps, "rows")]
    places: list[tuple[tuple[Tap, ...], Side]] = []
    for name in _ffn_inputs(subject):
        site = subject.site(name)
        if site.width != neurons.width:
            raise SiteError(
                f"site {name!r} of {subject.name!r} has {site.width} neurons in a layer, site {neurons.site!r} has "
                f"{neurons.width}; a slice needs one row for every neuron"
            )
        places.append((site.taps, "rows"))
    return [*places, (subject.site("mlp").taps, "columns")]


def _ffn_inputs(subject: Subject) -> list[str]:
    """`gate` where the FFN has one, and `up`, which it must have."""
    try:
        subject.site("gate")
    except SiteError:
        return ["up"]
    return ["gate", "up"]


def _plain(tap: Tap) -> Any:
    """The tap's module, known to be a linear map whose weight can be written."""
    weight: Any = tap.module.weight
    if not isinstance(tap.module, nn.Linear) and not is_transposed(tap.module):
        raise SiteError(f"{tap.path} is a {type(tap.module).__name__}; a slice needs a Linear or a Conv1D")
    if not weight.dtype.is_floating_point:
        raise SiteError(f"{tap.path} is quantised ({weight.dtype}); load the model in a floating-point dtype")
    if type(weight.data) is not Tensor:
        raise SiteError(
            f"the weight of {tap.path} is a {type(weight.data).__name__}; a slice writes into plain tensors: load the "
            "model without quantisation and without sharding"
        )
    if weight.is_meta:
        raise SiteError(f"{tap.path} is offloaded; load the model without offloading, a slice needs its weights")
    return tap.module
