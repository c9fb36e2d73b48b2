"""NCFT: each task tunes its own neurons; and the control that tunes random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..attribution.encoding import Encoded, encode_corpus
from ..neurons.sets import NeuronSet
from .delta import Delta
from .learners import Learned, Lesson, learner, rebased
from .location import locate
from .trainable import trainable_slice
from .training import train


@learner("ncft", lr=3e-4)
def ncft(lesson: Lesson) -> Learned:
    """Neuron-level continual fine-tuning: at task n update only the neurons N_n of task n, all else frozen.

    theta[N_n] <- argmin L_n(theta), theta[rest] unchanged (Leng & Xiong, arXiv 2407.06488, section 5.2). How many
    neurons a set has, and whether sets may overlap, the paper does not say: see `Location`.
    """
    neurons, memory = locate(lesson)
    return tuned(lesson, neurons, memory)


@learner("random", lr=3e-4)
def random_neurons(lesson: Lesson) -> Learned:
    """NCFT with, in each layer, as many random neurons as the task's own set has there, drawn from outside that set.

    Where the location keeps tasks' sets apart, they are drawn from outside the earlier random sets too.
    """
    neurons, memory = locate(lesson)
    earlier = lesson.kept("drawn")
    avoid = None
    if earlier is not None and lesson.location.apart:
        avoid = NeuronSet(neurons.site, neurons.subject, earlier.any(dim=0))
    drawn = NeuronSet.random(neurons, seed=lesson.recipe.seed, avoid=avoid)
    masks = drawn.mask[None] if earlier is None else torch.cat([earlier, drawn.mask[None]])
    return tuned(lesson, drawn, {**memory, "drawn": masks})


def tuned(
    lesson: Lesson, neurons: NeuronSet, memory: Mapping[str, Tensor], *, encoded: Sequence[Encoded] | None = None
) -> Learned:
    """Train a set's slice on top of what the task before left, on the task's rows or on those that are given."""
    subject = lesson.subject
    rows = encode_corpus(subject, lesson.task.train) if encoded is None else encoded
    with lesson.resumed(), trainable_slice(subject, neurons) as trainable:
        history = train(subject, rows, trainable, lesson.recipe, progress=lesson.progress)
        step = Delta(subject.fingerprint, neurons, trainable.values(), trainable.base_values(), history)
        trained = trainable.num_parameters
    return Learned(rebased(lesson, step), trained, memory)
