"""Many sets on the same questions: each prompt's lower layers run once for all the sets that leave them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import Batch
from ..corpora.examples import Corpus
from ..neurons.interventions import Kind, Reference, intervene
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .choices import choice_losses, finished, loss_dtype, piece_losses, planned
from .plans import EncodedChoices, Part
from .stages import Recorded, Resumed, Whole

Piece = Batch | Part
Ablated = Callable[[NeuronSet | None], AbstractContextManager[None]]


def choice_losses_off(
    subject: Subject,
    corpus: Corpus | EncodedChoices,
    *,
    sets: Sequence[NeuronSet | None],
    kind: Kind = "zero",
    factor: float = 2.0,
    reference: Reference | None = None,
    seed: int = 0,
    max_tokens: int = 4096,
    normalise: bool = False,
    reuse: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "set example choice"]:
    """`choice_losses` with each of several sets ablated; None and the empty set stand for nothing ablated.

    Below the lowest layer of a set the states are those of the intact subject, so they are computed once for each
    batch of questions and the sets' passes go on from there. `reuse` says whether to (True), to run every layer for
    every set (False), or to where it saves work and a trial on a few questions gives the same losses both ways (None).
    `noise` and `resample` draw anew in every pass and always run whole. The other arguments are those of
    `choice_losses` and `intervene`. `progress(done, total)` is called after every set, or batch of questions.

    Raises what `choice_losses` and `intervene` raise.
    """
    plan = planned(subject, corpus, max_tokens=max_tokens)
    depths = [_lowest(neurons) for neurons in sets]

    def ablated(neurons: NeuronSet | None) -> AbstractContextManager[None]:
        if neurons is None:
            return nullcontext()
        return intervene(subject, neurons, kind=kind, factor=factor, reference=reference, seed=seed)

    if reuse is None:
        saved = sum(subject.num_layers if depth is None else depth for depth in depths)
        reuse = saved > subject.num_layers and _proved(subject, plan, sets, depths, ablated)
    if not reuse or kind in ("noise", "resample"):
        tables = []
        for neurons in sets:
            with ablated(neurons):
                tables.append(choice_losses(subject, plan, normalise=normalise))
            if progress is not None:
                progress(len(tables), len(sets))
        return torch.stack(tables)
    pieces = [*plan.plain, *plan.parts]
    table = torch.full((len(sets), plan.lengths.numel()), torch.nan, dtype=loss_dtype(subject))
    for done, piece in enumerate(pieces, start=1):
        cells, losses = _resumed(subject, piece, sets, depths, ablated)
        table[:, cells] = losses
        if progress is not None:
            progress(done, len(pieces))
    whole = table.view(len(sets), *plan.lengths.shape)
    return torch.stack([finished(subject, plan, losses, normalise=normalise) for losses in whole])


def _lowest(neurons: NeuronSet | None) -> int | None:
    """The lowest layer of a set; None for nothing ablated."""
    layers = () if neurons is None else neurons.per_layer.nonzero().flatten().tolist()
    return layers[0] if layers else None


def _resumed(
    subject: Subject,
    piece: Piece,
    sets: Sequence[NeuronSet | None],
    depths: Sequence[int | None],
    ablated: Ablated,
) -> tuple[Tensor, Float[Tensor, "set pair"]]:
    """The losses of one piece under every set, and their cells."""
    with subject.scoring(), torch.no_grad():
        recorded = Recorded(subject.blocks, sorted({depth for depth in depths if depth}))
        cells, base = piece_losses(subject, piece, stage=recorded)
        rows = []
        for neurons, depth in zip(sets, depths, strict=True):
            if depth is None:
                rows.append(base)
                continue
            with ablated(neurons):
                stage = Resumed(recorded, depth) if depth else Whole()
                rows.append(piece_losses(subject, piece, stage=stage)[1])
    return cells, torch.stack(rows)


def _proved(
    subject: Subject,
    plan: EncodedChoices,
    sets: Sequence[NeuronSet | None],
    depths: Sequence[int | None],
    ablated: Ablated,
) -> bool:
    """Whether the shallowest and the deepest set give the same losses whole and resumed, on a few questions of each kind."""
    order = sorted((depth, place) for place, depth in enumerate(depths) if depth)
    if not order:
        return True
    # twice the first: a recording that a pass had changed would show
    chosen = [order[0][1], order[-1][1], order[0][1]]
    trial = [sets[place] for place in chosen]
    pieces: list[Piece] = [part.first_prompts(2) for part in plan.parts[:1]]
    pieces += list(plan.plain[-1:])
    for piece in pieces:
        with subject.scoring(), torch.no_grad():
            expected = []
            for neurons in trial:
                with ablated(neurons):
                    expected.append(piece_losses(subject, piece, stage=Whole())[1])
        try:
            _, found = _resumed(subject, piece, trial, [depths[place] for place in chosen], ablated)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False  # a family whose blocks or cache are put together in another way
        tolerance = 1e-4 if subject.dtype in (torch.float32, torch.float64) else 0.05
        if not torch.allclose(found, torch.stack(expected), rtol=tolerance, atol=tolerance):
            return False
    return True
