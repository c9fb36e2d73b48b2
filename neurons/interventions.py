"""Interventions: what is put in the place of a set's activations while a block of code runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import SetError
from .experts import RoutedEdit, by_expert
from .positions import On, Where, check_place, watched
from .sets import NeuronSet
from .sites import Edit, Tap
from .subject import Subject

Kind = Literal["zero", "mean", "scale", "resample", "noise", "keep"]
KINDS: tuple[str, ...] = get_args(Kind)
REFERRING = ("mean", "resample", "noise")


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


References = Reference | Mapping[str, Reference]


@contextmanager
def intervene(
    subject: Subject,
    neurons: NeuronSet | Iterable[NeuronSet],
    *,
    kind: Kind = "zero",
    factor: float = 2.0,
    reference: References | None = None,
    on: On = "both",
    seed: int = 0,
) -> Iterator[None]:
    """While the block runs, replace the activations of a set, in forward passes and in `generate`.

    - `zero`: silence the neurons.
    - `scale`: multiply by `factor`: above 1 amplifies (2 is CULNIG's enhancement), below 1 weakens.
    - `mean`: the neuron's mean over `reference`.
    - `resample`: the activations of one token drawn at random from `reference`'s pool, drawn anew for every position.
    - `noise`: add Gaussian noise of `factor` times the neuron's standard deviation over `reference`.
    - `keep`: everything else of the set's site off, in every layer: at its mean over `reference` where one is given, else
      at zero. An empty set then leaves nothing on; with the other kinds it changes nothing, bit for bit.

    `neurons` may be several sets, of several sites (with `reference` by site): they act together. `on` is where: at every
    position, at the prompt's tokens or at the answer's. In `generate` the answer's are those that the model reads again of
    what it has written; where a corpus is scored, those after the border of prompt and answer (of an answer of one token
    none is read before it is scored). Neurons of site `expert` are replaced where a token is routed to their expert; the
    routing is left to the model. The hooks are gone afterwards, also after an exception.

    Raises SetError when a set is of another subject or site, when the kind is unknown, when it needs a reference, or
    when no token of the reference was routed to an expert of the set.
    """
    check_words(kind, on)
    chosen = united(neurons)
    for one in chosen:
        one.check(subject)
    with watched(subject.model, on) as where, ExitStack() as stack:
        for one in chosen:
            known = reference.get(one.site) if isinstance(reference, Mapping) else reference
            if kind in REFERRING or (kind == "keep" and known is not None):
                _check_reference(one, known, kind)
            _attach(stack, subject, one, kind, factor, known, torch.Generator().manual_seed(seed), where)
        yield


def check_words(kind: str, on: str = "both") -> None:
    """Raise SetError for an unknown kind or place; for callers that have much to do before they intervene."""
    if kind not in KINDS:
        raise SetError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
    check_place(on)


def united(neurons: NeuronSet | Iterable[NeuronSet]) -> tuple[NeuronSet, ...]:
    """One set a site, those of one site taken together. Raises SetError when there are none."""
    sets = (neurons,) if isinstance(neurons, NeuronSet) else tuple(neurons)
    if not sets:
        raise SetError("no set to intervene on; give a NeuronSet, or several (an empty NeuronSet is one too)")
    sites = dict.fromkeys(one.site for one in sets)
    return tuple(reduce(or_, (one for one in sets if one.site == site)) for site in sites)


def _attach(
    stack: ExitStack,
    subject: Subject,
    neurons: NeuronSet,
    kind: str,
    factor: float,
    reference: Reference | None,
    generator: torch.Generator,
    where: Where | None,
) -> None:
    """Enter the hooks of one site's set into the stack."""
    if kind == "keep":
        neurons, kind = ~neurons, "zero" if reference is None else "mean"
    for layer, tap in enumerate(subject.site(neurons.site).taps):
        index = neurons.indices(layer)
        if not len(index):
            continue
        if tap.routed is None:
            edit = _edit(kind, layer, index, index, factor, reference, generator)
            stack.enter_context(tap.attached(edit if where is None else _placed(edit, where)))
        else:
            routed = _routed_edit(kind, layer, tap, index, factor, reference, generator)
            stack.enter_context(tap.attached_routed(routed if where is None else _routed_placed(routed, where)))


def _placed(edit: Edit, where: Where) -> Edit:
    """An edit at some positions alone."""

    def placed(x: Tensor) -> Tensor | None:
        places = where()
        if isinstance(places, bool):
            return edit(x) if places else None
        new = edit(x)
        return None if new is None else torch.where(places.to(x.device).reshape(*x.shape[:-1], 1), new, x)

    return placed


def _routed_placed(edit: RoutedEdit, where: Where) -> RoutedEdit:
    def placed(x: Tensor, expert: int, tokens: Tensor) -> Tensor | None:
        places = where()
        if isinstance(places, bool):
            return edit(x, expert, tokens) if places else None
        new = edit(x, expert, tokens)
        return None if new is None else torch.where(places.to(x.device).flatten()[tokens][:, None], new, x)

    return placed


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
        if reference is not None and reference.sampled is not None and kind in REFERRING:
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
