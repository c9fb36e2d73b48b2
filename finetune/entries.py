"""Entries: some numbers of a parameter that are read and written together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ..neurons.errors import SiteError
from ..neurons.subject import Subject


@dataclass(frozen=True, eq=False)
class Entry:
    """Some entries of a parameter that are read and written together.

    `tensor` shares the parameter's memory. `index` runs over dimension `dim`; None means the whole tensor. With `inner`
    it runs over that dimension and the next one, of length `inner`, as if they were one.
    """

    key: str
    tensor: Tensor
    dim: int = 0
    index: Int[Tensor, " chosen"] | None = None
    inner: int | None = None

    @property
    def shape(self) -> list[int]:
        shape = list(self.tensor.shape)
        if self.index is not None:
            shape[self.dim : self.dim + (1 if self.inner is None else 2)] = [len(self.index)]
        return shape

    def read(self) -> Tensor:
        """A contiguous copy of the entries."""
        if self.index is None:
            return self.tensor.clone(memory_format=torch.contiguous_format)
        if self.inner is None:
            return self.tensor.index_select(self.dim, self.index.to(self.tensor.device)).contiguous()
        return self.tensor[self._place(self.index, self.inner)].contiguous()

    def write(self, values: Tensor) -> None:
        """Put values in the entries' place; a wider dtype is rounded to the parameter's."""
        values = values.to(self.tensor)
        if self.index is None:
            self.tensor.copy_(values)
        elif self.inner is None:
            self.tensor.index_copy_(self.dim, self.index.to(self.tensor.device), values)
        else:
            self.tensor[self._place(self.index, self.inner)] = values

    def _place(self, index: Tensor, inner: int) -> tuple[slice | Tensor, ...]:
        index = index.to(self.tensor.device)
        return (*[slice(None)] * self.dim, index // inner, index % inner)


def whole_entries(subject: Subject) -> tuple[Entry, ...]:
    """Every parameter of the model as one entry; tied parameters stand once."""
    return tuple(Entry(name, parameter.data) for name, parameter in subject.model.named_parameters())


def check_writable(weight: Tensor, path: str) -> None:
    """Raise SiteError unless a weight is a tensor in memory that a slice can write into."""
    if not weight.dtype.is_floating_point:
        raise SiteError(f"{path} is quantised ({weight.dtype}); load the model in a floating-point dtype")
    if type(weight.data) is not Tensor:
        raise SiteError(
            f"the weight of {path} is a {type(weight.data).__name__}; a slice writes into plain tensors: load the "
            "model without quantisation and without sharding"
        )
    if weight.is_meta:
        raise SiteError(f"{path} is offloaded; load the model without offloading, a slice needs its weights")
