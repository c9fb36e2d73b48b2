"""Objectives: the scalar of an example that is differentiated.

Each objective is a function of the kept logits that gives one value per example, and says which direction is better for
the model: scores are signed so that a positive one always means that silencing the neuron makes the objective worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError, Example
from ..neurons.subject import Subject
from .encoding import IGNORED, Batch, Encoded, answer_log_probs, encode

ObjectiveName = Literal["loss", "loss_all", "probability", "logit_difference"]


@dataclass(frozen=True)
class Contrast:
    """Where a right and a wrong choice part: the answer's token at `offset` and the token that the wrong choice has there."""

    offset: int
    right: int
    wrong: int


@dataclass(frozen=True)
class Objective:
    """A named objective. `lower_is_better` is true of losses."""

    name: str
    lower_is_better: bool
    value: Callable[[Tensor, Batch, Sequence[Sequence[Contrast]]], Float[Tensor, " batch"]]
    needs_choices: bool = False


def loss(logits: Tensor, batch: Batch, _contrasts: Sequence[Sequence[Contrast]]) -> Float[Tensor, " batch"]:
    """-sum_t log p(answer_t | prompt, answer_<t): negative log-likelihood of the answer, summed over its tokens."""
    return -answer_log_probs(logits, batch.targets).sum(dim=1)


def probability(logits: Tensor, batch: Batch, _contrasts: Sequence[Sequence[Contrast]]) -> Float[Tensor, " batch"]:
    """prod_t p(answer_t | prompt, answer_<t): probability of the whole answer (CULNIG's objective for one-token answers)."""
    return answer_log_probs(logits, batch.targets).sum(dim=1).exp()


def logit_difference(logits: Tensor, batch: Batch, contrasts: Sequence[Sequence[Contrast]]) -> Float[Tensor, " batch"]:
    """Mean over the wrong choices of logit(right token) - logit(wrong token) at the first token where the two part."""
    first = (batch.targets != IGNORED).int().argmax(dim=1)
    table = [
        (place, int(first[place]) + c.offset, c.right, c.wrong, 1 / len(contrasts[row]))
        for place, row in enumerate(batch.rows.tolist())
        for c in contrasts[row]
    ]
    place, column, right, wrong, weight = (
        torch.tensor(part, device=logits.device) for part in zip(*table, strict=True)
    )
    wide = logits if logits.dtype == torch.float64 else logits.float()
    difference = (wide[place, column, right] - wide[place, column, wrong]) * weight.to(wide.dtype)
    return torch.zeros(len(batch.rows), dtype=wide.dtype, device=wide.device).index_add(0, place, difference)


OBJECTIVES: dict[str, Objective] = {
    "loss": Objective("loss", True, loss),
    "loss_all": Objective("loss_all", True, loss),
    "probability": Objective("probability", False, probability),
    "logit_difference": Objective("logit_difference", False, logit_difference, needs_choices=True),
}


def objective_named(name: str) -> Objective:
    """An objective by name. Raises ValueError that lists the names."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; objectives are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def prepare(
    subject: Subject, corpus: Corpus, encoded: Sequence[Encoded], objective: Objective
) -> tuple[list[Encoded], list[list[Contrast]]]:
    """What the objective needs beyond the encoded answers: every token a target (`loss_all`), or where choices part."""
    if objective.name == "loss_all":
        return [replace(one, start=1) for one in encoded], []
    if not objective.needs_choices:
        return list(encoded), []
    return list(encoded), [_contrasts(subject, *pair) for pair in zip(corpus, encoded, strict=True)]


def _contrasts(subject: Subject, example: Example, encoded: Encoded) -> list[Contrast]:
    if len(example.choices) < 2:
        raise CorpusError(
            f"example {example.id!r} has no wrong choice; objective 'logit_difference' needs 'choices' and 'answer_index'"
        )
    found = []
    for place, choice in enumerate(example.choices):
        if place == example.answer_index:
            continue
        wrong = encode(subject, example.prompt, choice, name=f"example {example.id!r}, choice {place}").ids
        right = encoded.ids
        part = next((i for i, pair in enumerate(zip(right, wrong, strict=False)) if pair[0] != pair[1]), None)
        if part is None or part < encoded.start:
            raise CorpusError(
                f"example {example.id!r}: choices {example.answer!r} and {choice!r} do not part at a token of both answers; "
                "end them with a mark (a full stop) or use another objective"
            )
        found.append(Contrast(part - encoded.start, right[part], wrong[part]))
    return found
