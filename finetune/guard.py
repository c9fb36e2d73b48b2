"""Guard: a slice that learns only where the inputs of what was learned before do not reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, Encoded, batches, forward, pad_id
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .slices import Entry, SlicePart, parts_of
from .trainable import Trainable

Moments = dict[str, Tensor]


def input_moments(
    subject: Subject, neurons: NeuronSet, encoded: Sequence[Encoded], *, matrices: str = "out"
) -> Moments:
    """X^T X of the inputs of every projection that a set's slice goes through, by path, over all its input channels.

    X has a row for each token whose state can still reach an answer's prediction: in the last layer the tokens that
    predict an answer token, since what the others write is read by nothing; in the layers below all of them.
    [in, in] in at least float32, on the CPU.
    """
    found: Moments = {}
    mask: list[Tensor] = []

    def count(path: str, last: bool) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0][mask[0] if last else mask[1]]
            x = x if x.dtype == torch.float64 else x.float()
            found[path] = found.get(path, 0) + x.t() @ x

        return hook

    with subject.quiet(), torch.no_grad(), ExitStack() as stack:
        for layer, part in guarded_parts(subject, neurons, matrices):
            last = layer == neurons.num_layers - 1
            stack.callback(part.module.register_forward_pre_hook(count(part.path, last)).remove)
        for batch in batches(encoded, pad_id=pad_id(subject)):
            mask[:] = [one.to(subject.device) for one in (predicting(batch), batch.real)]
            forward(subject, batch)
    return {path: moment.cpu() for path, moment in found.items()}


def guarded_parts(subject: Subject, neurons: NeuronSet, matrices: str) -> Iterator[tuple[int, SlicePart]]:
    """The parts of a set's slice with their layers."""
    for layer in range(neurons.num_layers):
        for part in parts_of(subject, neurons.layers([layer])):
            if matrices == "all" or part.columns is not None:
                yield layer, part


def predicting(batch: Batch) -> Bool[Tensor, "batch token"]:
    """The tokens whose logits predict an answer's token."""
    found = torch.zeros_like(batch.real)
    wanted = batch.targets != IGNORED
    if isinstance(batch.keep, int):
        found[:, -batch.keep :] = wanted
        return found
    rows = torch.arange(len(found))[:, None].expand_as(batch.keep)
    found[rows[wanted], batch.keep[wanted]] = True
    return found


class Guard:
    """Keeps a slice's steps from what earlier inputs would feel of them: step P instead of step.

    P = I - U U^T for the basis U of the `kept_count` strongest directions, or, `soft`, P = (I + X^T X / c)^-1 with c the
    energy of the last direction that U would hold: that one is halved, stronger ones are held more and weaker ones less.
    The gradient is projected before the optimizer sees it, and the step that it makes after, since AdamW's step is not
    the gradient. Biases, which act on every input, do not move.
    """

    def __init__(
        self,
        trainable: Trainable,
        parts: Sequence[SlicePart],
        moments: Mapping[str, Tensor],
        share: float,
        *,
        soft: bool = False,
    ) -> None:
        by_key = {entry.key: (part, entry) for part in parts for entry in part.entries()}
        self.held: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for entry, master in zip(trainable.entries, trainable.masters, strict=True):
            part, _ = by_key[entry.key]
            projector = None
            if master.dim() == 2:
                projector = free_projector(_of(moments[part.path], part, entry), share, soft=soft).to(master)
            self.held.append((master, master.detach().clone(), projector))

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """While the block runs, gradients arrive projected."""
        with ExitStack() as stack:
            for master, _, projector in self.held:
                stack.callback(master.register_hook(lambda grad, p=projector: projected(grad, p)).remove)
            yield

    @torch.no_grad()
    def __call__(self) -> None:
        """Project what the optimizer just did."""
        for master, before, projector in self.held:
            before += projected(master - before, projector)
            master.copy_(before)


def free_projector(
    moment: Float[Tensor, "channel channel"], share: float, *, soft: bool = False
) -> Float[Tensor, "channel channel"]:
    """P of `Guard`: what it leaves of a change in every direction of the inputs."""
    values, vectors = torch.linalg.eigh(moment.double())
    count = kept_count(values, share, eps=torch.finfo(moment.dtype).eps)
    if soft:
        weights = 1 / (1 + values.clamp(min=0) / values[len(values) - count])
    else:
        weights = (torch.arange(len(values)) < len(values) - count).to(values)
    return (vectors * weights) @ vectors.t()


def kept_count(energies: Float[Tensor, " direction"], share: float, *, eps: float) -> int:
    """The fewest directions, from the last, that hold a share of the inputs' energy tr(X^T X).

    They are the leading right singular vectors of X (Saha, Garg and Roy 2021, arXiv 2103.09762, Eq 5 and 9). At a share
    of 1 all whose energy is not rounding. `energies` are in ascending order.
    """
    falling = energies.flip(0).clamp(min=0)
    if share >= 1:
        return int((falling > falling[0] * eps).sum())
    return int((falling.cumsum(0) < share * falling.sum()).sum()) + 1


def projected(change: Tensor, projector: Tensor | None) -> Tensor:
    """A change [out, in] through a projector [in, in]; None leaves nothing of it."""
    return torch.zeros_like(change) if projector is None else change @ projector


def _of(moment: Tensor, part: SlicePart, entry: Entry) -> Tensor:
    """The moment over the input channels that an entry multiplies."""
    if part.columns is None:
        return moment
    index = part.columns.cpu()
    return moment[index][:, index]
