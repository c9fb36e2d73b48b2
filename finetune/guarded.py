"""Guarded: neuron-restricted tuning that leaves the answers of earlier tasks where they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..attribution.encoding import encode_corpus
from ..neurons.sets import NeuronSet
from .delta import Delta
from .errors import TuneError
from .guard import Guard, Moments, guarded_parts, input_moments
from .learners import Learned, Lesson, entries_now, learner, rebased
from .location import Location, locate
from .streams import sampled
from .trainable import Matrices, trainable_slice
from .training import train


@dataclass(frozen=True)
class GuardOptions:
    """`share` of the energy of the earlier tasks' inputs is kept out of reach, by a hard cut or a `soft` one (`Guard`).

    `matrices` "out" trains columns alone, of as many more neurons as makes the budget of a whole slice: when a neuron
    fires does not change then, and the inputs that the guard protects stay what they were. "all" trains whole slices.
    `neurons` "random" draws as many in each layer. `known` rows of every group of the
    reference (0: none) are protected from the first task on. `layers` are those whose neurons are trained; None: the
    location's. Sets may share neurons whatever the location says, since it is the guard that keeps them.
    """

    share: float = 0.9
    soft: bool = False
    matrices: Matrices = "out"
    neurons: Literal["located", "random"] = "located"
    known: int = 0
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise TuneError(f"share is one of the inputs' energy, expected above 0 and at most 1, got {self.share}")
        for name, allowed in (("matrices", ("all", "out")), ("neurons", ("located", "random"))):
            if getattr(self, name) not in allowed:
                raise TuneError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.known < 0:
            raise TuneError(f"known must be 0 or more, got {self.known}")


@learner("guarded", lr=3e-3, options=GuardOptions)
def guarded(lesson: Lesson) -> Learned:
    """NCFT whose every step is projected away from the inputs that earlier tasks' answers are read from.

    W_n = W_{n-1} + D with D U = 0, where U spans the inputs of the slice's projections on the rows of tasks 1..n-1, up
    to the share of their energy that is left out (gradient projection memory: Saha, Garg and Roy 2021, arXiv 2103.09762;
    there whole layers, tokens of one weight and SGD). Of earlier tasks the weighed second moments of `input_moments` are
    kept, two [in, in] matrices a projection whatever their number, and no rows.
    """
    options: GuardOptions = lesson.options
    subject = lesson.subject
    where = replace(lesson.location, layers=options.layers or lesson.location.layers, apart=False)
    lesson = replace(lesson, location=where)
    neurons, memory = locate(_widened(lesson))
    if options.neurons == "random":
        neurons = NeuronSet.random(neurons, seed=lesson.recipe.seed)
    moments, rows = _kept(lesson), encode_corpus(subject, lesson.task.train)
    with lesson.resumed():
        base = entries_now(subject, neurons)
        with trainable_slice(subject, neurons, matrices=options.matrices) as trainable, ExitStack() as stack:
            guard = None
            if moments:
                guard = Guard(
                    trainable,
                    guarded_parts(subject, neurons, options.matrices),
                    tuple(moments.values()),
                    options.share,
                    soft=options.soft,
                )
                stack.enter_context(guard.gradients())
            history = train(
                subject, rows, trainable, lesson.recipe, after_step=guard, progress=lesson.progress
            )  # fmt: skip
            step = Delta(subject.fingerprint, neurons, base | trainable.values(), base, history)
            trained = trainable.num_parameters
    delta = rebased(lesson, step)
    with delta.applied(subject):
        seen = input_moments(subject, _everywhere(lesson), rows, matrices=options.matrices)
    stream = moments.get("stream", {})
    moments["stream"] = {path: moment + stream.get(path, 0) for path, moment in seen.items()}
    kept = {f"{of}/{path}": moment for of, found in moments.items() for path, moment in found.items()}
    return Learned(delta, trained, memory | kept)


def _kept(lesson: Lesson) -> dict[str, Moments]:
    """The second moments so far: those of the reference, where it is to be protected, and those of the stream's tasks."""
    found: dict[str, Moments] = {}
    if lesson.before is not None:
        for key, moment in lesson.before.memory.items():
            of, _, path = key.partition("/")
            if of in ("known", "stream"):
                found.setdefault(of, {})[path] = moment
    elif lesson.options.known and lesson.reference is not None:
        rows = encode_corpus(lesson.subject, sampled(lesson.reference, lesson.options.known))
        found["known"] = input_moments(lesson.subject, _everywhere(lesson), rows, matrices=lesson.options.matrices)
    return dict(sorted(found.items()))


def _everywhere(lesson: Lesson) -> NeuronSet:
    """Every neuron that a task's set may have."""
    where, site = lesson.location, lesson.subject.site(lesson.location.site)
    mask = torch.zeros((site.num_layers, site.width), dtype=torch.bool)
    mask[list(range(site.num_layers) if where.layers is None else where.layers)] = True
    return NeuronSet(where.site, lesson.subject.fingerprint, mask, {"made": "guarded"})


def _widened(lesson: Lesson) -> Lesson:
    """With `matrices="out"`, a location of so many neurons that their columns are as many numbers as whole slices."""
    if lesson.options.matrices == "all":
        return lesson
    everywhere = _everywhere(lesson)
    sizes: dict[str, int] = {"all": 0, "out": 0}
    for matrices in sizes:
        for part in guarded_parts(lesson.subject, everywhere, matrices):
            sizes[matrices] += sum(entry.tensor.numel() for entry in part.entries())
    where: Location = lesson.location
    top = where.top * sizes["all"] / sizes["out"]
    room = everywhere.mask.sum(dim=1).max() if where.scope == "layer" else everywhere.mask.sum()
    if where.top < 1:
        return replace(lesson, location=replace(where, top=min(top, float(room / everywhere.mask.numel()))))
    return replace(lesson, location=replace(where, top=min(round(top), int(room))))
