"""Metrics: what is measured of every question under an intervention, as one number a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, answer_log_probs, batches, encode_corpus, forward, pad_id
from ..attribution.generation import generated
from ..corpora.examples import Corpus
from ..neurons.errors import SetError, SubjectError
from ..neurons.positions import On
from ..neurons.subject import Subject
from .choices import answer_correct, choice_losses, encode_choices
from .plans import EncodedChoices
from .texts import chrf_scorer, exact_match, rouge_scorer

Values = Float[Tensor, " question"]


@dataclass(frozen=True)
class Asking:
    """How questions are asked: tokens of a batch, tokens generated at most, what ends a generated answer, `on`."""

    max_tokens: int = 4096
    max_new_tokens: int = 32
    stops: tuple[str, ...] = ("\n",)
    on: On = "both"


@dataclass(frozen=True)
class Metric:
    """A named metric. `prepare(subject, corpus, asking)` encodes a corpus once and gives what measures it, each time anew.

    `unit` is "share" of a number between 0 and 1 and else its unit; `higher_is_better` is false of losses.
    """

    name: str
    prepare: Callable[[Subject, Corpus, Asking], Callable[[], Values]]
    about: str
    unit: str = "share"
    higher_is_better: bool = True


def accuracy(subject: Subject, corpus: Corpus, asking: Asking, *, normalise: bool = False) -> Callable[[], Values]:
    """Whether the right choice alone has the lowest loss, summed over its tokens or, with `normalise`, their mean."""
    plan = _choices(subject, corpus, asking)
    return lambda: answer_correct(subject, plan, normalise=normalise)


def choice_share(subject: Subject, corpus: Corpus, asking: Asking) -> Callable[[], Values]:
    """The right choice's probability where only the choices are possible: exp(-loss) over the sum of all choices' exp(-loss)."""
    plan = _choices(subject, corpus, asking)

    def measure() -> Values:
        losses = choice_losses(subject, plan)
        shares = (-losses.nan_to_num(nan=torch.inf)).softmax(dim=1)
        return shares.gather(1, plan.answer[:, None]).squeeze(1)

    return measure


@dataclass(frozen=True, eq=False)
class Losses:
    """The right answers of a corpus as batches. Called, it gives each one's loss; `finish` makes the metric of it.

    `lengths` [question] are the numbers of tokens that are scored.
    """

    subject: Subject
    names: tuple[str, ...]
    batches: tuple[Batch, ...]
    lengths: Float[Tensor, " question"]
    finish: Callable[[Tensor, Tensor], Tensor]

    def __call__(self) -> Values:
        return self.measured(partial(forward, self.subject))

    def measured(self, run: Callable[[Batch], Tensor]) -> Values:
        """The metric of every question from the logits that `run` gives of a batch."""
        found = torch.zeros(len(self.lengths), dtype=torch.float64)
        with self.subject.scoring(), torch.no_grad():
            for batch in self.batches:
                found[batch.rows] = self.of_batch(batch, run(batch))
        return self.finished(found)

    def of_batch(self, batch: Batch, logits: Tensor) -> Tensor:
        """Loss of each example of a batch, in nats, summed over its scored tokens."""
        return -answer_log_probs(logits, batch.targets).sum(dim=1).to("cpu", torch.float64)

    def finished(self, sums: Float[Tensor, " question"]) -> Values:
        """The metric, from the sums of losses. Raises SubjectError that names the example when one is not finite."""
        if not bool(sums.isfinite().all()):
            row = int((~sums.isfinite()).nonzero()[0])
            raise SubjectError(
                f"example {self.names[row]!r}: its loss is {sums[row].item()}; expected a finite number. Is "
                f"{self.subject.name} damaged, or does {self.subject.dtype} overflow? Try dtype=torch.float32"
            )
        return self.finish(sums, self.lengths)


def losses(
    subject: Subject, corpus: Corpus, asking: Asking, *, finish: Callable[[Tensor, Tensor], Tensor], whole: bool = False
) -> Losses:
    """Losses of the answers, or with `whole` of all tokens of prompt and answer but the first."""
    if whole and asking.on != "both":
        raise SetError(
            "a metric of all tokens scores the prompt too: it goes with on='both' alone; measure 'loss' instead"
        )
    encoded = encode_corpus(subject, corpus)
    if whole:
        encoded = [replace(one, start=1) for one in encoded]
    return Losses(
        subject,
        tuple(example.id for example in corpus),
        tuple(batches(encoded, max_tokens=asking.max_tokens, pad_id=pad_id(subject))),
        torch.tensor([len(one.answer) for one in encoded], dtype=torch.float64),
        finish,
    )


def generation(
    subject: Subject, corpus: Corpus, asking: Asking, *, score: Callable[[Sequence[str], Sequence[str]], list[float]]
) -> Callable[[], Values]:
    """How alike what the subject writes after each prompt is to the answer."""
    meant = [example.answer for example in corpus]

    def measure() -> Values:
        said = generated(subject, corpus, max_new_tokens=asking.max_new_tokens, stops=asking.stops)
        return torch.tensor(score(said, meant), dtype=torch.float64)

    return measure


def _scored(
    make: Callable[[], Callable[[str, str], float]],
) -> Callable[[Subject, Corpus, Asking], Callable[[], Values]]:
    """A generation metric whose library is looked for before anything is run."""

    def prepare(subject: Subject, corpus: Corpus, asking: Asking) -> Callable[[], Values]:
        one = make()
        return generation(
            subject, corpus, asking, score=lambda said, meant: [one(a, b) for a, b in zip(said, meant, strict=True)]
        )

    return prepare


def _choices(subject: Subject, corpus: Corpus, asking: Asking) -> EncodedChoices:
    """A plan in which the border of prompt and answer is where positions say it is (see `positions`)."""
    plan = encode_choices(subject, corpus, max_tokens=asking.max_tokens)
    if asking.on != "both" and any(bool((part.first == IGNORED).any()) for part in plan.parts):
        return encode_choices(subject, corpus, max_tokens=asking.max_tokens, share=False)
    return plan


def _mean(sums: Tensor, lengths: Tensor) -> Tensor:
    return sums / lengths


def _perplexity(sums: Tensor, lengths: Tensor) -> Tensor:
    return (sums / lengths).exp()


def _probability(sums: Tensor, _lengths: Tensor) -> Tensor:
    return (-sums).exp()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, "the right choice has the lowest loss"),
        Metric("accuracy_normalised", partial(accuracy, normalise=True), "the same, loss divided by the choice's tokens"),
        Metric("choice_share", choice_share, "the right choice's probability among the choices"),
        Metric("probability", partial(losses, finish=_probability), "probability of the whole answer"),
        Metric("loss", partial(losses, finish=_mean), "loss of the answer", "nats a token", False),
        Metric(
            "loss_all", partial(losses, finish=_mean, whole=True), "loss of prompt and answer", "nats a token", False
        ),
        Metric(
            "perplexity", partial(losses, finish=_perplexity, whole=True), "perplexity of prompt and answer",
            "perplexity", False,
        ),
        Metric("exact_match", partial(generation, score=exact_match), "the generated answer is the right one"),
        Metric("rouge_l", _scored(rouge_scorer), "ROUGE-L of the generated answer"),
        Metric("chrf", _scored(chrf_scorer), "chrF of the generated answer"),
    )
}  # fmt: skip


def metric_named(metric: str | Metric) -> Metric:
    """A metric by name. Raises ValueError that lists the names."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; metrics are {', '.join(METRICS)}")
    return METRICS[metric]
