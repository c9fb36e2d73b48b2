"""Beds: disjoint sets of neurons on one subject, each of which can hold what is planted in it or what stood there before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .entries import Entry
from .errors import TuneError
from .slices import SlicePart, linear_parts, slice_entries

Ways = Mapping[str, Sequence[Collection[str]]]


class Beds:
    """Neurons of several groups on one subject, with what is planted in them beside what stood there.

    `sets` names disjoint beds. `ways` says for each group which beds hold its facts: the group knows them where all beds of one
    of its ways are on. By default every bed is a group with one way, itself.

    While `planted()` is open, the beds that are `on` have their trained entries and all others what stood there; the module's
    own weights are never touched. `on` is [bed], or [example, bed] for a batch whose examples differ.

    Raises TuneError when the beds are empty or share a neuron.
    """

    def __init__(self, subject: Subject, sets: Mapping[str, NeuronSet], ways: Ways | None = None) -> None:
        self.subject = subject
        self.names = tuple(sets)
        self.ways = {
            group: tuple(frozenset(way) for way in own) for group, own in (ways or {n: [{n}] for n in sets}).items()
        }
        self.groups = tuple(self.ways)
        self.neurons = _union(sets)
        self.parts = linear_parts(subject, self.neurons, what="planting")
        if not self.parts:
            raise TuneError("the beds are all empty; nothing can be planted")
        self.entries: tuple[Entry, ...] = slice_entries(self.parts)
        self.base = {entry.key: entry.read() for entry in self.entries}
        self.masters = {key: nn.Parameter(values.to(torch.float32, copy=True)) for key, values in self.base.items()}
        owners = [{p.path: p for p in linear_parts(subject, one, what="planting")} for one in sets.values()]
        self.owned = {part.path: _owned(part, owners) for part in self.parts}
        self.on: Bool[Tensor, "*example bed"] = torch.ones(len(self.names), dtype=torch.bool)
        self.allowed: Bool[Tensor, "example bed"] | None = None
        self.dropped: Mapping[str, Bool[Tensor, "example 1 channel"]] = {}
        self.watched = False
        self.seen: list[tuple[str, Float[Tensor, "example token channel"]]] = []

    def without(self, *names: str) -> None:
        """All beds on but these."""
        self.on = torch.tensor([name not in names for name in self.names])

    def drop(
        self, rate: Float[Tensor, " example"], layers: Float[Tensor, " example"], generator: torch.Generator
    ) -> None:
        """Draw which single neurons, and which whole layers', are as they were for each example although their bed is on."""
        self.dropped = {}
        if not bool((rate + layers).any()):
            return
        drawn: dict[str, Bool[Tensor, "example 1 channel"]] = {}
        for part in sorted(self.parts, key=lambda part: part.columns is None):
            layer, count = part.path.rpartition(".")[0], len(self.owned[part.path])
            mask = drawn.get(layer)
            if mask is None or count % mask.shape[-1]:
                mask = torch.rand(len(rate), 1, count, generator=generator) < rate[:, None, None]
                mask |= torch.rand(len(rate), 1, 1, generator=generator) < layers[:, None, None]
                drawn.setdefault(layer, mask)
            self.dropped[part.path] = mask.repeat(1, 1, count // mask.shape[-1])

    def of(self, group: str) -> frozenset[str]:
        """The beds that hold something of a group."""
        return frozenset[str]().union(*self.ways[group])

    def own(self, group: str) -> frozenset[str]:
        """The beds that hold something of this group and of no other."""
        others = [self.of(other) for other in self.groups if other != group]
        return self.of(group).difference(*others)

    def known(self, groups: Int[Tensor, " example"], on: Bool[Tensor, "example bed"]) -> Bool[Tensor, " example"]:
        """Whether each example's group is held by the beds that are on for it."""
        found = torch.zeros(len(groups), dtype=torch.bool)
        for number, group in enumerate(self.groups):
            for way in self.ways[group]:
                needed = torch.tensor([name in way for name in self.names])
                found |= (groups == number) & (on | ~needed).all(dim=1)
        return found

    def one_way(
        self, groups: Int[Tensor, " example"], on: Bool[Tensor, "example bed"], generator: torch.Generator
    ) -> Bool[Tensor, "example bed"]:
        """The same beds on, but for half of the examples of a group with several ways one of them alone, drawn at random."""
        on = on.clone()
        for row, number in enumerate(groups.tolist()):
            ways = self.ways[self.groups[number]]
            if len(ways) < 2 or bool(torch.rand((), generator=generator) < 0.5):
                continue
            way = ways[int(torch.randint(len(ways), (), generator=generator))]
            every = self.of(self.groups[number])
            for place, name in enumerate(self.names):
                if name in every:
                    on[row, place] = name in way
        return on

    def membership(self) -> Bool[Tensor, "group bed"]:
        """Which beds hold something of each group."""
        return torch.tensor([[name in self.of(group) for name in self.names] for group in self.groups])

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The entries in force, through hooks."""
        with self.subject.scoring(), ExitStack() as stack:
            for part in self.parts:
                hook = self._rows(part) if part.rows is not None else self._columns(part)
                stack.callback(part.module.register_forward_hook(hook).remove)
            yield

    def round(self) -> None:
        """Give the entries the precision that the subject holds them in, so that what is proved is what is merged."""
        for entry in self.entries:
            master = self.masters[entry.key]
            master.data.copy_(master.detach().to(entry.tensor.dtype))

    def load(self, delta: Delta) -> None:
        """Take from a delta the entries of these beds' neurons. Raises TuneError where it lacks some."""
        if delta.neurons is None or len(self.neurons & delta.neurons) < len(self.neurons):
            raise TuneError("the delta has no entries for some neurons of these beds")
        whole = {part.path: part for part in linear_parts(self.subject, delta.neurons, what="planting")}
        for part in self.parts:
            there = whole[part.path]
            for kind, mine, every in (("columns", part.columns, there.columns), ("rows", part.rows, there.rows)):
                if mine is None or every is None:
                    continue
                chosen = torch.isin(every, mine).cpu()
                for key in (f"{part.path}.{kind}", f"{part.path}.bias"):
                    if key in self.masters and (kind == "rows" or key.endswith("columns")):
                        values = delta.values[key]
                        self.masters[key].data.copy_(values[:, chosen] if key.endswith("columns") else values[chosen])

    def delta(self, origin: Mapping[str, Any], history: Sequence[float] = ()) -> Delta:
        """What was planted, as a delta of all beds together."""
        values = {e.key: self.masters[e.key].detach().to("cpu", e.tensor.dtype, copy=True) for e in self.entries}
        base = {key: one.cpu() for key, one in self.base.items()}
        return Delta(self.subject.fingerprint, self.neurons, values, base, tuple(history), dict(origin))

    def _in_force(self, part: SlicePart, like: Tensor) -> Float[Tensor, "*example 1 channel"]:
        """1 for the channels that have their trained entries."""
        mask = self._mask(part, self.on, like)
        dropped = self.dropped.get(part.path)
        return mask if dropped is None else mask * ~dropped.to(mask.device)

    def _mask(
        self, part: SlicePart, beds: Bool[Tensor, "*example bed"], like: Tensor
    ) -> Float[Tensor, "*example 1 channel"]:
        """1 for the channels of these beds."""
        mask = (beds.float() @ self.owned[part.path].T.float() > 0).to(like)
        return mask if beds.dim() == 1 else mask[:, None]

    def _rows(self, part: SlicePart) -> Any:
        rows = part.rows
        assert rows is not None

        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x, place = args[0].float(), rows.to(output.device)
            weight = self.masters[f"{part.path}.rows"]
            bias = self.masters[f"{part.path}.bias"] if part.bias is not None else None
            new = functional.linear(x, weight, bias)
            if self.allowed is not None and torch.is_grad_enabled():
                routes = self._mask(part, self.allowed, x)
                bound = functional.linear(x, weight.detach(), None if bias is None else bias.detach())
                new = routes * new + (1 - routes) * bound
            old = output.index_select(-1, place)
            new = torch.where(self._in_force(part, x) > 0, new.to(output.dtype), old)
            return output.index_copy(-1, place, new)

        return after

    def _columns(self, part: SlicePart) -> Any:
        columns, key = part.columns, f"{part.path}.columns"
        assert columns is not None

        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].index_select(-1, columns.to(args[0].device)).float()
            if self.watched:
                self.seen.append((part.path, x))
            x = x * self._in_force(part, x)
            master, base = self.masters[key], self.base[key].float()
            if self.allowed is not None and torch.is_grad_enabled():
                routes = self._mask(part, self.allowed, x)
                moved = functional.linear(routes * x, master - base)
                moved = moved + functional.linear((1 - routes) * x, master.detach() - base)
            else:
                moved = functional.linear(x, master - base)
            return output + moved.to(output.dtype)

        return after


def _union(sets: Mapping[str, NeuronSet]) -> NeuronSet:
    (name, union), *rest = sets.items()
    for other, neurons in rest:
        if both := len(union & neurons):
            raise TuneError(
                f"bed {other!r} shares {both} neurons with those before it (from {name!r}); keep beds disjoint"
            )
        union = union | neurons
    return union


def _owned(part: SlicePart, owners: Sequence[Mapping[str, SlicePart]]) -> Bool[Tensor, "channel bed"]:
    """Which beds each channel of a part belongs to."""
    channels = part.rows if part.rows is not None else part.columns
    assert channels is not None
    owned = torch.zeros(len(channels), len(owners), dtype=torch.bool)
    for number, parts in enumerate(owners):
        if part.path in parts:
            own = parts[part.path]
            mine = own.rows if own.rows is not None else own.columns
            assert mine is not None
            owned[:, number] = torch.isin(channels, mine).cpu()
    return owned
