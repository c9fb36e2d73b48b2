"""EWC: a spring on every parameter, as strong as the earlier tasks need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import Encoded, answer_log_probs, collate, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.subject import Subject
from .errors import TuneError
from .full_methods import trained_whole
from .learners import Learned, Lesson, learner
from .streams import sampled
from .trainable import Trainable, trainable_full
from .training import Penalty


@dataclass(frozen=True)
class EwcOptions:
    """`weight` is lambda; `samples` rows of a task give its Fisher information.

    `known` rows of every group of the reference (0: none) give a Fisher information before the first task, so that what
    the subject knew before the stream is held too.
    """

    weight: float = 1000.0
    samples: int = 64
    known: int = 0

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and self.samples > 0 and self.known >= 0):
            raise TuneError(
                f"weight and known must be 0 or more and samples above 0, got {self.weight}, {self.known}, {self.samples}"
            )


@learner("ewc", lr=5e-5, options=EwcOptions)
def ewc(lesson: Lesson) -> Learned:
    """Elastic weight consolidation on every parameter: L = L_t + (lambda / 2) sum_i F_i (theta_i - theta*_i)^2.

    F is the diagonal of the empirical Fisher information, summed over the tasks so far, theta* what the last one left
    (Kirkpatrick et al. 2017, arXiv 1612.00796, Eq 3; one spring for all tasks as in Huszar 2018, arXiv 1712.03847).
    """
    options: EwcOptions = lesson.options
    subject = lesson.subject
    fishers = None if lesson.before is None else dict(lesson.before.memory)
    if fishers is None and options.known and lesson.reference is not None:
        fishers = _fisher_now(lesson, sampled(lesson.reference, options.known))
    encoded = encode_corpus(subject, lesson.task.train)

    def spring(trainable: Trainable) -> Penalty:
        assert fishers is not None
        parts = [
            (master, base.to(master), fishers[entry.key].to(master))
            for entry, master, base in zip(trainable.entries, trainable.masters, trainable.base, strict=True)
        ]
        return lambda: options.weight * torch.stack([elastic(*part) for part in parts]).sum()

    learned = trained_whole(lesson, encoded, penalty=spring if fishers is not None else None)
    with learned.delta.applied(subject):
        new = _fisher_now(lesson, lesson.task.train, options.samples)
    fishers = new if fishers is None else {key: fishers[key] + new[key] for key in new}
    return Learned(learned.delta, learned.trained, fishers)


def elastic(
    values: Float[Tensor, "*shape"], anchor: Float[Tensor, "*shape"], fisher: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """(1/2) sum_i F_i (theta_i - theta*_i)^2."""
    return 0.5 * (fisher * (values - anchor).square()).sum()


def fisher_diagonal(subject: Subject, encoded: Sequence[Encoded], trainable: Trainable) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: the mean over rows of the squared gradient of log p(answer | prompt).

    Empirical: of the answers as they stand and not of answers drawn from the model. Float32, on the CPU, by entry key.
    """
    sums = [torch.zeros_like(master) for master in trainable.masters]
    for row, one in enumerate(encoded):  # row by row: the square of a gradient is not the gradient of a batch
        batch = collate([one], [row], pad_id=pad_id(subject))
        found = torch.autograd.grad(answer_log_probs(forward(subject, batch), batch.targets).sum(), trainable.masters)
        for total, gradient in zip(sums, found, strict=True):
            total += gradient.square()
    keys = [entry.key for entry in trainable.entries]
    return {key: (total / len(encoded)).float().cpu() for key, total in zip(keys, sums, strict=True)}


def _fisher_now(lesson: Lesson, corpus: Corpus, count: int | None = None) -> dict[str, Tensor]:
    """Of the subject as it stands, over the corpus or a sample of it."""
    encoded = encode_corpus(lesson.subject, corpus)
    if count is not None:
        drawn = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(lesson.recipe.seed))[:count]
        encoded = [encoded[row] for row in drawn.tolist()]
    with trainable_full(lesson.subject) as trainable:
        return fisher_diagonal(lesson.subject, encoded, trainable)
