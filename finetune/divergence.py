"""Divergence: when finite losses say that a run has lost what the subject knew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..attribution.encoding import Encoded
from ..neurons.subject import Subject
from .losses import answer_sum
from .processes import Team, parts
from .recipe import Recipe
from .trainable import Trainable

WINDOW = 5  # steps
FAR = 2.0  # times the untouched subject's loss


@dataclass(frozen=True, eq=False)
class Watch:
    """Compares a run's losses with those of the subject as it was before the run, on the same examples.

    A loss is far off when it is above that of an even guess over the vocabulary, and more than FAR times what the
    subject as it was has there. The latter is computed only for losses above the even guess, so a healthy run costs
    nothing.
    """

    subject: Subject
    trainable: Trainable
    recipe: Recipe
    team: Team

    @property
    def even_guess(self) -> float:
        """Loss in nats of an even guess over the vocabulary."""
        return math.log(len(self.subject.tokenizer))

    def far_off(self, losses: Sequence[float], batches: Sequence[Sequence[Encoded]]) -> str | None:
        """Why the median of some batches' losses is far off; None where it is not."""
        now = median(losses)
        if now <= self.even_guess:
            return None
        before = median(self._before(batches))
        if now <= FAR * before:
            return None
        return (
            f"the loss is {now:.3g} nats a token, where the subject as it was has {before:.3g} on the same examples and an "
            f"even guess {self.even_guess:.3g}"
        )

    def loss(self, encoded: Sequence[Encoded]) -> float:
        """The answer loss of some examples, as things stand, over all processes."""
        total = sum(len(example.answer) for example in encoded)
        mine = sorted(self.team.share(encoded), key=lambda example: len(example.ids))
        summed = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad():
            for part in parts(mine, self._number(len(mine))) if mine else ():
                summed += answer_sum(self.subject, part, list(range(len(part))), self.recipe).double().cpu()
        return self.team.sum(summed.to(self.subject.device, torch.float32)).item() / total

    def _number(self, rows: int) -> int:
        """Parts no larger than those of a step, so that what trains in memory is measured in it."""
        return min(rows, math.ceil(rows * self.recipe.accumulate / self.recipe.batch_size))

    def _before(self, batches: Sequence[Sequence[Encoded]]) -> list[float]:
        """Losses with the entries as they were; the masters come back."""
        masters = self.trainable.masters
        held = [master.detach().to("cpu", copy=True) for master in masters]
        with torch.no_grad():
            try:
                _copy(self.trainable.base, masters)
                return [self.loss(batch) for batch in batches]
            finally:
                _copy(held, masters)


def _copy(values: Sequence[torch.Tensor], masters: Sequence[torch.Tensor]) -> None:
    for master, tensor in zip(masters, values, strict=True):
        master.copy_(tensor)
