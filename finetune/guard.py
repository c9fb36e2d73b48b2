"""Guard: a slice that learns only where the inputs of what was learned before do not reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import Encoded, answer_log_probs, batches, forward, pad_id
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .slices import SlicePart, linear_parts
from .trainable import Trainable

Moments = dict[str, Tensor]


def input_moments(
    subject: Subject, neurons: NeuronSet, encoded: Sequence[Encoded], *, matrices: str = "out"
) -> Moments:
    """sum_t w_t x_t x_t^T of the inputs of every projection that a set's slice goes through, by path, over all channels.

    w_t is how much of a row's loss is felt at token t: the norm of the gradient of its answer in what the projection
    writes there, divided by the sum of these norms over the row's tokens. So each row counts as one; in the last layer
    only the tokens that predict an answer count, and in the layers below those that an answer is read from. [in, in] in
    at least float32, on the CPU.
    """
    found: Moments = {}
    with subject.quiet(), ExitStack() as stack:
        embedded = subject.model.get_input_embeddings()
        stack.callback(embedded.register_forward_hook(lambda _, __, output: output.requires_grad_()).remove)
        for part in guarded_parts(subject, neurons, matrices):
            stack.callback(part.module.register_forward_hook(_adding(found, part.path)).remove)
        for batch in batches(encoded, pad_id=pad_id(subject)):
            (-answer_log_probs(forward(subject, batch), batch.targets).sum()).backward()
    return {path: moment.cpu() for path, moment in found.items()}


def _adding(found: Moments, path: str) -> Callable[..., None]:
    """A forward hook that adds a batch's part to a moment once the backward gets there."""

    def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()

        def add(grad: Tensor) -> None:
            weights = grad.to(x.dtype).norm(dim=-1)  # [batch, token]
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
            rows = (weights.sqrt()[..., None] * x).flatten(0, -2)
            rows = rows[rows.any(dim=-1)]
            rows = rows if rows.dtype == torch.float64 else rows.float()
            found[path] = found.get(path, 0) + rows.t() @ rows

        output.register_hook(add)

    return hook


def guarded_parts(subject: Subject, neurons: NeuronSet, matrices: str) -> list[SlicePart]:
    """The parts of a set's slice that are trained. Raises SiteError for experts."""
    parts = linear_parts(subject, neurons, what="the guard")
    return [part for part in parts if matrices == "all" or part.columns is not None]


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
        moments: Sequence[Moments],
        share: float,
        *,
        soft: bool = False,
    ) -> None:
        by_key = {entry.key: part for part in parts for entry in part.entries()}
        self.held: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for entry, master in zip(trainable.entries, trainable.masters, strict=True):
            part = by_key[entry.key]
            projector = None
            if master.dim() == 2:
                projector = free_projector([_of(one[part.path], part) for one in moments], share, soft=soft).to(master)
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
    moments: Sequence[Float[Tensor, "channel channel"]], share: float, *, soft: bool = False
) -> Float[Tensor, "channel channel"]:
    """P of `Guard`: what is left of a change in every direction of the inputs.

    Each moment in turn is looked at through what the ones before it leave, and takes its share of the energy that is
    left there: what sets a task apart is little beside what all questions have in common.
    """
    whole = torch.eye(len(moments[0]), dtype=torch.float64, device=moments[0].device)
    free, weight = whole, torch.zeros_like(whole)
    for moment in moments:
        values, vectors = torch.linalg.eigh(free @ moment.double() @ free)
        count = kept_count(values, share, eps=torch.finfo(moment.dtype).eps)
        if soft:
            weight += moment.double() / values[-count]
            free = torch.linalg.inv(whole + weight)
        else:
            free = free - vectors[:, -count:] @ vectors[:, -count:].t()
    return free


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


def _of(moment: Tensor, part: SlicePart) -> Tensor:
    """The moment over the input channels that a part multiplies."""
    if part.columns is None:
        return moment
    index = part.columns.cpu()
    return moment[index][:, index]
