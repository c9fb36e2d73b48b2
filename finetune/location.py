"""Location: how a task's neurons are found while a stream is learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.attribute import attribute
from ..attribution.selection import BY, CONTRASTS, contrasted, select
from ..corpora.examples import Corpus
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .errors import TuneError

if TYPE_CHECKING:
    from .learners import Lesson


@dataclass(frozen=True)
class Location:
    """How neurons are scored and selected for each task, on its training part and on the subject as the stream left it.

    `contrast` compares with the groups seen so far: those of a reference corpus (scored once, on the untouched subject)
    and the earlier tasks, by the scores that they had when they were learned. Where there are none yet, scores are
    ranked as they are. `apart` leaves out the neurons of earlier tasks' sets, so that sets are disjoint. The other
    fields are arguments of `select` (`top`, `layers`, `scope`, `by`) and of `attribute`.
    """

    top: float | int = 0.05
    contrast: str | None = "others"
    layers: tuple[int, ...] | None = None
    scope: str = "global"
    by: str = "values"
    apart: bool = False
    method: str = "taylor"
    site: str = "mlp"
    objective: str = "loss"
    tokens: str = "sum"

    def __post_init__(self) -> None:
        if self.contrast == "controls":
            raise TuneError("contrast 'controls' needs no other groups; a stream takes others, z or None")
        allowed = {"contrast": (None, *CONTRASTS), "scope": ("global", "layer"), "by": BY}
        for name, values in allowed.items():
            if (given := getattr(self, name)) not in values:
                there = ", ".join(str(value) for value in values if value != "controls")
                raise TuneError(f"unknown {name} {given!r} of a location; expected {there}")
        share = isinstance(self.top, float) and 0 < self.top <= 1
        if not share and (isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1):
            raise TuneError(f"top must be a share above 0 and at most 1.0, or a number of neurons, got {self.top!r}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    def score(self, subject: Subject, corpus: Corpus) -> Scores:
        """Scores of a corpus' rows, all of them."""
        return attribute(  # pyright: ignore[reportCallIssue]
            subject, corpus, method=self.method, site=self.site, objective=self.objective, tokens=self.tokens,  # pyright: ignore[reportArgumentType]
            split=None, min_examples=1,
        )  # fmt: skip


def locate(lesson: Lesson) -> tuple[NeuronSet, dict[str, Tensor]]:
    """The set of the lesson's task, and the memory to carry: every task's scores and its set's mask, in order."""
    where, task = lesson.location, lesson.task
    with lesson.resumed():
        scores = where.score(lesson.subject, replace(task.train, examples=_one_group(task.train, task.name)))
    own = scores.values if where.by == "values" else scores.signed
    earlier, masks = lesson.kept("scores"), lesson.kept("masks")
    names = [other.name for other in lesson.stream[: lesson.place]]
    ranked = _ranked(lesson, own, earlier, names)
    chosen = _top(scores, ranked, where)
    if where.apart and masks is not None:
        taken = masks.any(dim=0)
        wanted, chosen = len(chosen), _top(scores, ranked.masked_fill(taken, -torch.inf), where)
        free = int((chosen.mask & ~taken).sum())
        if free < wanted:
            raise TuneError(
                f"task {task.name!r}: the earlier tasks' sets leave {free} of the {wanted} neurons that it needs; lower "
                "top, give more layers, or let sets overlap"
            )
    chosen = NeuronSet(
        chosen.site, chosen.subject, chosen.mask,
        {**chosen.origin, "contrast": where.contrast, "by": where.by, "apart": where.apart, "after": names},
    )  # fmt: skip
    memory = {"scores": _stacked(earlier, own[0]), "masks": _stacked(masks, chosen.mask)}
    return chosen, memory


def _top(scores: Scores, ranked: Float[Tensor, "layer neuron"], where: Location) -> NeuronSet:
    """The selection from what is ranked, for the only group of some scores."""
    rows = ranked[None]
    alone = replace(scores, values=rows, signed=rows, squares=rows)
    return select(alone, top=where.top, scope=where.scope, layers=where.layers)[scores.groups[0]]


def _ranked(
    lesson: Lesson, own: Float[Tensor, "1 layer neuron"], earlier: Tensor | None, names: list[str]
) -> Float[Tensor, "layer neuron"]:
    """The task's scores after the contrast with what was seen so far."""
    rows, groups = [own], [lesson.task.name]
    if earlier is not None:
        rows, groups = [*rows, earlier], [*groups, *names]
    if (known := lesson.reference_scores()) is not None:
        rows.append(known.values if lesson.location.by == "values" else known.signed)
        groups += [f"reference {group}" for group in known.groups]
    if len(groups) == 1:
        return own[0]
    values = torch.cat(rows)
    counts = torch.ones(len(groups), dtype=torch.long)
    together = Scores(lesson.location.site, lesson.subject.fingerprint, tuple(groups), values, values, values, counts)
    return contrasted(together, lesson.location.contrast)[0]


def _one_group(corpus: Corpus, name: str) -> tuple:
    return tuple(replace(example, group=name) for example in corpus)


def _stacked(rows: Tensor | None, row: Tensor) -> Tensor:
    return row[None] if rows is None else torch.cat([rows, row[None]])
