"""How near a model's answers to a survey are to what a culture's majority says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpora.examples import CorpusError
from ..corpora.survey import Survey, first_number
from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields

MOST = 10  # the largest number that counts as an answer
Answers = Mapping[str, Mapping[str, str | int | None]]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Alignment scores by culture, from 100 (every answer is the majority's) downwards.

    `values` [group] with 95 % of a bootstrap over questions from `low` to `high`; `chance` [group] is the mean score of
    random answers to the same questions, `middle` [group] that of always answering the middle option (the lower of two),
    which is above chance without any values. `valid` [group] answers counted out of `asked` [group], the questions whose
    majority is known: leaving out invalid answers can raise a score. NaN where no answer is valid. `subject` is the
    fingerprint of the model that answered, empty where it is not known.
    """

    groups: tuple[str, ...]
    values: Float[Tensor, " group"]
    low: Float[Tensor, " group"]
    high: Float[Tensor, " group"]
    chance: Float[Tensor, " group"]
    middle: Float[Tensor, " group"]
    valid: Int[Tensor, " group"]
    asked: Int[Tensor, " group"]
    origin: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @property
    def mean(self) -> float:
        """The mean over cultures."""
        return float(self.values.mean())

    def to_record(self, name: str = "alignment") -> Record:
        """The scores as a record of the atlas."""
        arrays = {key: getattr(self, key).numpy() for key in _ARRAYS}
        meta = {"groups": list(self.groups), "origin": dict(self.origin), "subject": self.subject}
        return Record("alignment", name, arrays, meta)


_ARRAYS = ("values", "low", "high", "chance", "middle", "valid", "asked")


@record_type("alignment")
def alignment_from_record(record: Record) -> Alignment:
    """Alignment scores back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Alignment(**{**record.meta, **arrays})


def alignment(
    survey: Survey, answers: Answers, *, resamples: int = 1000, seed: int = 0, subject: str = ""
) -> Alignment:
    """The alignment of answers with a survey's majorities, for every culture in `answers`.

    `answers` [culture][question id] is an option's number or the text that a model said, whose first whole number counts.
    CultureSPA's score (Xu et al. 2024, arXiv 2410.12971; their result_analysis_run_3.py), with answer r_q, the majority's
    option g_q and n_q options, over the questions that have both:

        S(c) = 100 (1 - sqrt(sum_q (r_q - g_q)^2) / sqrt(sum_q (n_q - 1)^2))

    As in the authors' program an answer is valid from 0 to 10, whatever the question's options, and every scale counts as
    ordered. Raises CorpusError for a culture or a question that the survey lacks.
    """
    if not answers:
        raise CorpusError("no answers to align; expected culture -> question id -> answer")
    generator = torch.Generator().manual_seed(seed)
    found = {key: _scored(survey, key, said, resamples, generator) for key, said in answers.items()}
    rows = torch.tensor([row for row, _ in found.values()], dtype=torch.float64)
    counts = torch.tensor([count for _, count in found.values()])
    origin = {"survey": survey.name, "most": MOST, "resamples": resamples, "seed": seed}
    return Alignment(
        tuple(found), **dict(zip(_ARRAYS, (*rows.t(), *counts.t()), strict=True)), origin=origin, subject=subject
    )


def culture_similarity(survey: Survey) -> dict[str, dict[str, float]]:
    """The alignment of every culture's majority answers with every other's, for a survey without a file of similarities."""
    table: dict[str, dict[str, float]] = {}
    for key in survey.cultures:
        said = survey.majority(key)
        others = {other: said for other in survey.cultures if other != key}
        found = alignment(survey, others, resamples=0)
        table[key] = dict(zip(found.groups, found.values.tolist(), strict=True))
    return table


def _scored(
    survey: Survey, key: str, said: Mapping[str, str | int | None], resamples: int, generator: torch.Generator
) -> tuple[list[float], list[int]]:
    """(score, low, high, chance, middle), (valid, asked) of one culture."""
    questions = {question.id: question for question in survey.questions}
    if unknown := [id for id in said if id not in questions]:
        raise CorpusError(
            f"{survey.name} has no question {unknown[0]!r}, which {key} answers; is it another survey's file?"
        )
    gold = survey.majority(key)
    numbers = {id: first_number(str(answer), most=MOST) for id, answer in said.items() if answer is not None}
    valid = [id for id in gold if numbers.get(id) is not None]
    if not valid:
        return [torch.nan] * 5, [0, len(gold)]
    right = torch.tensor([gold[id] for id in valid], dtype=torch.float64)
    given = torch.tensor([numbers[id] for id in valid], dtype=torch.float64)
    count = torch.tensor([len(questions[id].options) for id in valid], dtype=torch.float64)
    first = torch.tensor([questions[id].first for id in valid], dtype=torch.float64)
    missed, widest = (given - right).square(), (count - 1).square()
    if not resamples:
        return [_score(missed, widest).item(), torch.nan, torch.nan, torch.nan, torch.nan], [len(valid), len(gold)]
    drawn = torch.randint(len(valid), (resamples, len(valid)), generator=generator)
    low, high = (
        _score(missed[drawn], widest[drawn]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    )
    guess = (torch.rand((resamples, len(valid)), generator=generator, dtype=torch.float64) * count).floor() + first
    chance = _score((guess - right).square(), widest.expand_as(guess)).mean().item()
    middle = _score((first + ((count - 1) / 2).floor() - right).square(), widest).item()
    return [_score(missed, widest).item(), low, high, chance, middle], [len(valid), len(gold)]


def _score(missed: Float[Tensor, "*draw question"], widest: Float[Tensor, "*draw question"]) -> Float[Tensor, "*draw"]:
    return 100 * (1 - missed.sum(dim=-1).sqrt() / widest.sum(dim=-1).sqrt())
