"""Slices: which rows and columns of which projections belong to a set's neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.sets import NeuronSet
from ..neurons.sites import Tap, is_transposed
from ..neurons.subject import Subject
from .entries import Entry, check_writable
from .expert_slices import ExpertPart, expert_parts
from .quantised import QuantisedEntry, is_quantised

Side = Literal["rows", "columns"]
Numbering = Callable[[Tensor], Tensor]


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
    def stored(self) -> Tensor:
        """The parameter that the part is of."""
        return self.module.weight  # pyright: ignore[reportReturnType]

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

    @property
    def quantised(self) -> bool:
        """Whether what the part learns stands beside the weight, which cannot hold it."""
        return is_quantised(self.module)

    def entries(self) -> Iterator[Entry]:
        """The part's weight entries, then its bias entries where it has them."""
        if self.columns is not None:
            yield self._entry("columns", 1, self.columns)
            return
        assert self.rows is not None
        yield self._entry("rows", 0, self.rows)
        if self.bias is not None:
            yield Entry(f"{self.path}.bias", self.bias, 0, self.rows)

    def _entry(self, side: Side, dim: int, index: Tensor) -> Entry:
        if not self.quantised:
            return Entry(f"{self.path}.{side}", self.weight, dim, index)
        shape = (self.module.out_features, self.module.in_features)
        hollow = torch.empty(shape, dtype=torch.float32, device="meta")  # pyright: ignore[reportArgumentType, reportCallIssue]
        return QuantisedEntry(f"{self.path}.{side}", hollow, dim, index, module=self.module)


Part = SlicePart | ExpertPart


def slice_parts(subject: Subject, neurons: NeuronSet) -> tuple[Part, ...]:
    """The parts of a subject's projections that belong to a set, layer by layer, none of them empty.

    - `mlp`, `gate`, `up`: rows of the FFN's gate and up projections (of the only input projection where there is no
      gate) with their biases, and columns of its output projection.
    - `q`, `k`, `v`, `mlp_out`: rows of that projection with their biases.
    - `attn`: columns of the attention output projection, and the rows of the value projection that they come from, with
      their biases: unit d of a head is a mean of row d of the head's values. Under grouped-query attention several heads
      share a row, which is taken where all of its units are in the set (take site `v` to train it anyway). Rows of queries
      and keys belong to no unit, since they are summed over before they act; they are sites of their own.
    - `expert`: of those experts, rows of the fused gate and up weights with their biases, and columns of the output weights.

    Rows of a fused projection are merged into one part.

    What a quantised projection (bitsandbytes, torchao) learns stands beside it, in float32 (see `quantised`).

    Raises SetError when the set is of another subject, SiteError when a projection is not there, is no linear map, or is not
    in memory.
    """
    neurons.check(subject)
    return parts_of(subject, neurons)


def parts_of(subject: Subject, neurons: NeuronSet) -> tuple[Part, ...]:
    """`slice_parts` without the check that the set was made for these very weights."""
    parts = expert_parts(subject, neurons) if neurons.site == "expert" else _linear_parts(subject, neurons)
    weights = [id(part.stored) for part in parts]
    if len(set(weights)) < len(weights):
        raise SiteError(f"projections of {subject.name!r} share one weight; they cannot be tuned apart")
    return parts


def linear_parts(subject: Subject, neurons: NeuronSet, *, what: str) -> tuple[SlicePart, ...]:
    """`parts_of` for a caller that knows projections of two dimensions only. Raises SiteError for experts."""
    parts = parts_of(subject, neurons)
    experts = [part.path for part in parts if isinstance(part, ExpertPart)]
    if experts:
        raise SiteError(
            f"{experts[0]} of {subject.name!r} holds the weights of all experts of a layer; {what} is for projections of "
            "one matrix: take a site outside the experts (attn, q, k, v)"
        )
    return tuple(part for part in parts if isinstance(part, SlicePart))


def _linear_parts(subject: Subject, neurons: NeuronSet) -> tuple[SlicePart, ...]:
    found: dict[str, tuple[Tap, Side, Tensor]] = {}
    places = _places(subject, neurons)
    for layer in range(neurons.num_layers):
        index = neurons.indices(layer)
        for taps, side, of in places if len(index) else ():
            tap, own = taps[layer], of(index)
            if not len(own):
                continue
            channels = own if tap.channels is None else tap.channels.cpu()[own]
            if tap.path in found:
                channels = torch.cat([found[tap.path][2], channels])
            found[tap.path] = (tap, side, channels.unique())
    parts = []
    for path, (tap, side, channels) in found.items():
        module = _plain(tap)
        index = channels.to(module.weight.device)
        parts.append(SlicePart(path, module, **{side: index}))
    return tuple(parts)


def slice_entries(parts: Sequence[Part]) -> tuple[Entry, ...]:
    """The entries of all parts, in order."""
    return tuple(entry for part in parts for entry in part.entries())


def _places(subject: Subject, neurons: NeuronSet) -> list[tuple[tuple[Tap, ...], Side, Numbering]]:
    """Which taps the neurons of a site go through, on which side of the module they stand, and under which numbers."""
    if neurons.site == "attn":
        values = _values(subject)
        return [*values, (subject.site("attn").taps, "columns", _same)]
    if neurons.site not in ("mlp", "gate", "up"):
        return [(subject.site(neurons.site).taps, "rows", _same)]
    places: list[tuple[tuple[Tap, ...], Side, Numbering]] = []
    for name in _ffn_inputs(subject):
        site = subject.site(name)
        if site.width != neurons.width:
            raise SiteError(
                f"site {name!r} of {subject.name!r} has {site.width} neurons in a layer, site {neurons.site!r} has "
                f"{neurons.width}; a slice needs one row for every neuron"
            )
        places.append((site.taps, "rows", _same))
    return [*places, (subject.site("mlp").taps, "columns", _same)]


def _same(index: Int[Tensor, " neuron"]) -> Int[Tensor, " neuron"]:
    return index


def _values(subject: Subject) -> list[tuple[tuple[Tap, ...], Side, Numbering]]:
    """The value projection's rows by unit of `attn`; nothing where the family has no plain one (latent attention)."""
    try:
        site, width = subject.site("v"), subject.site("attn").width
    except SiteError:
        return []
    heads = int(getattr(subject.config, "num_attention_heads", 0))
    if not heads or width % heads or width % site.width or site.width % (width // heads):
        return []
    size, shared = width // heads, width // site.width

    def rows(index: Int[Tensor, " neuron"]) -> Int[Tensor, " row"]:
        read, times = (index // size // shared * size + index % size).unique(return_counts=True)
        return read[times == shared]

    return [(site.taps, "rows", rows)]


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
    if not is_quantised(tap.module):
        check_writable(weight, tap.path)
    return tap.module
