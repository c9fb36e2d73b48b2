"""Slices of routed experts, whose weights stand in three dimensions: which entries belong to a set of site `expert`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..neurons.experts import expert_weights, input_channels
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .entries import Entry, check_writable


@dataclass(frozen=True, eq=False)
class ExpertPart:
    """The rows or the columns of one of the two projections that a layer's routed experts keep as a three-dimensional
    weight; exactly one of the two is given.

    `name` is the weight's in `module`. Rows and columns run over the channels of all experts, expert * channels +
    channel, ascending. Rows take their biases along.
    """

    path: str
    module: nn.Module
    name: str
    rows: Int[Tensor, " row"] | None = None
    columns: Int[Tensor, " column"] | None = None

    @property
    def stored(self) -> Tensor:
        """The parameter that the part is of."""
        return getattr(self.module, self.name)

    @property
    def bias(self) -> Float[Tensor, "expert out"] | None:
        """The whole bias of the projection, where rows have one."""
        if self.rows is None or not self.module.has_bias:
            return None
        return getattr(self.module, f"{self.name}_bias").detach()

    @property
    def num_channels(self) -> int:
        """Channels of one expert that rows or columns count."""
        into, out = expert_weights(self.module)
        return (out if self.rows is None else into).shape[1]

    def entries(self) -> Iterator[Entry]:
        """The part's weight entries, then its bias entries where it has them."""
        into, out = expert_weights(self.module)
        if self.columns is not None:
            columns = out.detach().permute(2, 0, 1)  # [model, expert, unit]
            yield Entry(f"{self.path}.columns", columns, 1, self.columns, self.num_channels)
            return
        yield Entry(f"{self.path}.rows", into.detach(), 0, self.rows, self.num_channels)
        if self.bias is not None:
            yield Entry(f"{self.path}.bias", self.bias, 0, self.rows, self.num_channels)


def expert_parts(subject: Subject, neurons: NeuronSet) -> tuple[ExpertPart, ...]:
    """The parts of a set of site `expert`: two for every layer that has members."""
    parts = []
    for layer, tap in enumerate(subject.site("expert").taps):
        index = neurons.indices(layer)
        if not len(index):
            continue
        module: Any = tap.module
        name = "gate_up_proj" if module.has_gate else "up_proj"
        for weight in (name, "down_proj"):
            check_writable(getattr(module, weight), f"{tap.path}.{weight}")
        device = module.down_proj.device
        fused = input_channels(module)
        channels = len(fused) * tap.units
        rows = torch.cat([index // tap.units * channels + one[index % tap.units] for one in fused]).sort().values
        parts.append(ExpertPart(f"{tap.path}.{name}", module, name, rows=rows.to(device)))
        parts.append(ExpertPart(f"{tap.path}.down_proj", module, "down_proj", columns=index.to(device)))
    return tuple(parts)
