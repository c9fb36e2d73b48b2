"""Interventions: what is put in the place of a set's activations while a block of code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import SetError
from .experts import RoutedEdit, by_expert
from .sets import NeuronSet
from .sites import Edit, Tap
from .subject import Subject

Kind = Literal["zero", "mean", "scale", "resample", "noise"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Reference:
    """Activations of a site over a named reference corpus, which `mean`, `resample` and `noise` draw from.

    `mean` and `std` [layer, neuron] are over all tokens; `pool` [layer, sample, neuron] holds whole rows of sampled tokens.

    At routed experts all three are over the tokens that were routed to the neuron's expert, sampled for each expert
    apart; `sampled` [layer, expert] says how many of the pool's rows an expert has, from the first (0: no token was
    routed to it, and its mean is NaN). It is None at other sites.
    """

    site: str
    subject: str
    name: str
    mean: Float[Tensor, "layer neuron"]
    std: Float[Tensor, "layer neuron"]
    pool: Float[Tensor, "layer sample neuron"]
    sampled: Int[Tensor, "layer expert"] | None = None


@contextmanager
def intervene(
    subject: Subject,
    neurons: NeuronSet,
    *,
    kind: Kind = "zero",
    factor: float = 2.0,
    reference: Reference | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """While the block runs, replace the activations of a set at every position, in forward passes and in `generate`.

    - `zero`: silence the neurons.
    - `scale`: multiply by `factor` (2 doubles, as CULNIG's enhancement does).
    - `mean`: the neuron's mean over `reference`.
    - `resample`: the activations of one token drawn at random from `reference`'s pool, drawn anew for every position.
    - `noise`: add Gaussian noise of `factor` times the neuron's standard deviation over `reference`.

    Neurons of site `expert` are replaced where a token is routed to their expert; the routing is left to the model.
    The hooks are gone afterwards, also after an exception. An empty set changes nothing, bit for bit.

    Raises SetError when the set is of another subject or site, when the kind is unknown, when it needs a reference, or
    when no token of the reference was routed to an expert of the set.
    """
    neurons.check(subject)
    if kind not in KINDS:
        raise SetError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
    if kind in ("mean", "resample", "noise"):
        _check_reference(neurons, reference, kind)
    site = subject.site(neurons.site)
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        for layer, tap in enumerate(site.taps):
            index = neurons.indices(layer)
            if not len(index):
                continue
            if tap.routed is None:
                edit = _edit(kind, layer, index, index, factor, reference, generator)
                stack.enter_context(tap.attached(edit))
            else:
                routed = _routed_edit(kind, layer, tap, index, factor, reference, generator)
                stack.enter_context(tap.attached_routed(routed))
        yield


def _check_reference(neurons: NeuronSet, reference: Reference | None, kind: str) -> None:
    if reference is None:
        raise SetError(f"kind {kind!r} needs a reference: npl.reference(subject, corpus, site={neurons.site!r})")
    if (reference.site, reference.subject) != (neurons.site, neurons.subject):
        raise SetError(
            f"the reference is of site {reference.site!r}, subject {reference.subject}; "
            f"the set is of site {neurons.site!r}, subject {neurons.subject}"
        )


def _routed_edit(
    kind: str,
    layer: int,
    tap: Tap,
    index: Tensor,
    factor: float,
    reference: Reference | None,
    generator: torch.Generator,
) -> RoutedEdit:
    """The function that replaces the set's units of each expert, on the tokens routed to it."""
    edits: dict[int, Edit] = {}
    for expert, columns in by_expert(index, units=tap.units).items():
        rows = None
        if reference is not None and reference.sampled is not None and kind in ("mean", "resample", "noise"):
            rows = int(reference.sampled[layer, expert])
            if not rows:
                raise SetError(
                    f"no token of reference {reference.name!r} was routed to expert {expert} of layer {layer}, which the "
                    f"set has {len(columns)} neurons of; give a larger reference, or take these neurons out of the set"
                )
        edits[expert] = _edit(kind, layer, columns, columns + expert * tap.units, factor, reference, generator, rows)

    def routed(x: Tensor, expert: int, _tokens: Tensor) -> Tensor | None:
        return edits[expert](x) if expert in edits else None

    return routed


def _edit(
    kind: str,
    layer: int,
    columns: Tensor,
    index: Tensor,
    factor: float,
    reference: Reference | None,
    generator: torch.Generator,
    rows: int | None = None,
) -> Edit:
    """The function that replaces `columns` of the activations ([..., neuron]): the neurons `index` of a layer.

    `rows` is how many rows of the pool may be drawn, by default all.
    """

    def new(x: Tensor) -> Tensor:
        old = x.index_select(-1, columns.to(x.device))
        if kind == "zero":
            return torch.zeros_like(old)
        if kind == "scale":
            return old * factor
        assert reference is not None
        if kind == "mean":
            return reference.mean[layer, index].to(x).expand_as(old)
        if kind == "resample":
            pool = reference.pool[layer, :rows][:, index].to(x)
            drawn = torch.randint(len(pool), old.shape[:-1], generator=generator)
            return pool[drawn.to(x.device)]
        noise = torch.randn(old.shape, generator=generator).to(x)
        return old + factor * reference.std[layer, index].to(x) * noise

    return lambda x: x.index_copy(-1, columns.to(x.device), new(x))
