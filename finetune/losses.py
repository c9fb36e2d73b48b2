"""The loss of a batch and its gradient, in as many parts as memory and processes ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, Encoded, answer_log_probs, collate, forward, pad_id
from ..neurons.subject import Subject
from .processes import Team, parts
from .recipe import Recipe

Penalty = Callable[[], Tensor]


def answer_loss(subject: Subject, batch: Batch) -> Float[Tensor, ""]:
    """Negative log-likelihood in nats of a batch's answers, meaned over their tokens."""
    log_probs = answer_log_probs(forward(subject, batch), batch.targets)
    return -log_probs.sum() / (batch.targets != IGNORED).sum().to(log_probs.device)


def batch_gradient(
    subject: Subject,
    encoded: Sequence[Encoded],
    rows: Sequence[int],
    recipe: Recipe,
    team: Team,
    penalty: Penalty | None,
) -> Float[Tensor, " 1"]:
    """This process's part of a batch's loss, after its backward; parts and processes add up to the batch's mean.

    Every part is divided by the answer tokens of the whole batch, not by its own.
    """
    total = sum(len(example.answer) for example in encoded)
    shares = [share for share in parts(team.share(range(len(rows))), recipe.accumulate) if share]
    losses = []
    for number, share in enumerate(shares):
        loss = (
            answer_sum(subject, [encoded[place] for place in share], [rows[place] for place in share], recipe) / total
        )
        losses.append(loss.detach().to(subject.device))
        if penalty is not None and number == len(shares) - 1:
            loss = loss + penalty() / team.size
        loss.backward()
    if penalty is not None and not shares:
        (penalty() / team.size).backward()
    return torch.stack(losses).sum(dim=0, keepdim=True) if losses else torch.zeros(1, device=subject.device)


def answer_sum(subject: Subject, encoded: Sequence[Encoded], rows: Sequence[int], recipe: Recipe) -> Float[Tensor, ""]:
    """Negative log-likelihood in nats of the answers, summed over their tokens."""
    batch = collate(encoded, rows, pad_id=pad_id(subject))
    with _products(subject, recipe):
        logits = forward(subject, batch)
    return -answer_log_probs(logits, batch.targets).sum()


def _products(subject: Subject, recipe: Recipe) -> AbstractContextManager[object]:
    return torch.autocast(subject.device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
