"""Methods that train every parameter: one task after another, each task alone, all together, and with replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..attribution.encoding import Encoded, encode_corpus
from .delta import Delta
from .learners import Learned, Lesson, learner
from .trainable import Trainable, trainable_full
from .training import Penalty, Recipe, train


@learner("full", lr=5e-5)
def full(lesson: Lesson) -> Learned:
    """Sequential full fine-tuning: theta_n = argmin L_n from theta_{n-1}; nothing holds the earlier tasks."""
    return trained_whole(lesson, encode_corpus(lesson.subject, lesson.task.train))


@learner("per-task", lr=5e-5)
def per_task(lesson: Lesson) -> Learned:
    """Full fine-tuning of the untouched subject on the task alone: the upper reference A_i of Leng & Xiong's Eq 5."""
    return full(replace(lesson, before=None))


@learner("joint", lr=5e-5)
def joint(lesson: Lesson) -> Learned | None:
    """Full fine-tuning of the untouched subject on all tasks together, in as many steps as the stream has.

    A bound: it sees every task at once, and only at the last stage; before that it gives None.
    """
    if lesson.place + 1 < len(lesson.stream):
        return None
    encoded = [one for task in lesson.stream for one in encode_corpus(lesson.subject, task.train)]
    steps = sum(lesson.recipe.num_steps(len(task.train)) for task in lesson.stream)
    return trained_whole(replace(lesson, before=None), encoded, recipe=replace(lesson.recipe, steps=steps))


def trained_whole(
    lesson: Lesson,
    encoded: Sequence[Encoded],
    *,
    recipe: Recipe | None = None,
    penalty: Callable[[Trainable], Penalty] | None = None,
) -> Learned:
    """Train every parameter on top of what the task before left; `penalty` makes of them what is
    added to each step's loss."""
    subject = lesson.subject
    with lesson.resumed(), trainable_full(subject) as trainable:
        history = train(
            subject, encoded, trainable, recipe or lesson.recipe, progress=lesson.progress,
            penalty=None if penalty is None else penalty(trainable),
        )  # fmt: skip
        base = trainable.base_values() if lesson.before is None else lesson.before.delta.base
        delta = Delta(subject.fingerprint, None, trainable.values(), base, history)
        return Learned(delta, trainable.num_parameters)
