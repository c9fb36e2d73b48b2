"""Experience replay: some rows of every batch are earlier tasks'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..attribution.encoding import Encoded, encode_corpus
from .errors import TuneError
from .full_methods import trained_whole
from .learners import Learned, Lesson, learner
from .location import locate
from .ncft import tuned
from .streams import sampled


@dataclass(frozen=True)
class ReplayOptions:
    """`buffer` rows of every earlier task are kept, `known` rows of every group of the reference (0: none).

    `share` of the rows of an epoch are replayed ones: each kept row comes as often as that takes. Steps and batch size
    stay, so what is replayed is trained instead of the new task's rows. `on`: "full" trains every parameter, "neurons"
    the task's slice as `ncft` does.
    """

    buffer: int = 32
    share: float = 0.5
    known: int = 0
    on: Literal["full", "neurons"] = "full"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TuneError(f"share must lie between 0 and 1, got {self.share}")
        if self.buffer < 0 or self.known < 0 or self.buffer + self.known == 0:
            raise TuneError(f"buffer and known must be 0 or more, and one above, got {self.buffer} and {self.known}")
        if self.on not in ("full", "neurons"):
            raise TuneError(f"on must be full or neurons, got {self.on!r}")


@learner("replay", lr=5e-5, options=ReplayOptions)
def replay(lesson: Lesson) -> Learned:
    """Experience replay: L = (1 - share) L_t + share L_buffer, with a fixed sample of every earlier task in the buffer.

    (Rolnick et al. 2019, arXiv 1811.11682; Chaudhry et al. 2019, arXiv 1902.10486.)
    """
    options: ReplayOptions = lesson.options
    earlier = lesson.stream[: lesson.place] if options.buffer else ()
    kept = [sampled(task.train, options.buffer, by_group=False) for task in earlier]
    if options.known and lesson.reference is not None:
        kept.append(sampled(lesson.reference, options.known))
    new = encode_corpus(lesson.subject, lesson.task.train)
    old = [one for corpus in kept for one in encode_corpus(lesson.subject, corpus)]
    mixed = mixture(new, old, options.share, seed=lesson.recipe.seed)
    recipe = replace(lesson.recipe, steps=lesson.recipe.num_steps(len(new)))
    if options.on == "full":
        return trained_whole(lesson, mixed, recipe=recipe)
    neurons, memory = locate(lesson)
    return tuned(replace(lesson, recipe=recipe), neurons, memory, encoded=mixed)


def mixture(new: list[Encoded], old: list[Encoded], share: float, *, seed: int) -> list[Encoded]:
    """The new rows and so many old ones, drawn evenly, that these are the given share of all."""
    if not old:
        return new
    count = max(1, round(len(new) * share / (1 - share)))
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(old), generator=generator) for _ in range(-(-count // len(old)))]
    return [*new, *(old[row] for row in torch.cat(rounds)[:count].tolist())]
