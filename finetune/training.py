"""Fine-tuning on a corpus: one training loop for a set's slice and for all parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attribution.encoding import IGNORED, Batch, Encoded, answer_log_probs, collate, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .errors import TuneError
from .trainable import Trainable, trainable_full, trainable_slice

Schedule = Literal["cosine", "constant"]
Progress = Callable[[int, int], None]
Penalty = Callable[[], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a run trains: AdamW over batches of examples in an order drawn from `seed` alone.

    `steps` overrules `epochs`. `clip` is the largest norm of the whole gradient; None does not clip. The learning rate
    rises linearly over the share `warmup` of the steps, then stays (`constant`) or falls to zero (`cosine`).
    """

    lr: float
    steps: int | None = None
    epochs: int = 3
    batch_size: int = 16
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size", "steps", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TuneError(f"{name} must be above 0, got {value}")
        if self.weight_decay < 0:
            raise TuneError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 <= self.warmup <= 1:
            raise TuneError(f"warmup is a share of the steps, expected 0 to 1, got {self.warmup}")
        if self.schedule not in ("cosine", "constant"):
            raise TuneError(f"unknown schedule {self.schedule!r}; schedules are cosine, constant")

    def num_steps(self, num_examples: int) -> int:
        """Steps of a run over so many examples."""
        return self.steps or self.epochs * math.ceil(num_examples / self.batch_size)

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = math.ceil(self.warmup * num_steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (num_steps - warm)))


def finetune(
    subject: Subject,
    corpus: Corpus,
    neurons: NeuronSet,
    *,
    lr: float = 3e-4,
    steps: int | None = None,
    epochs: int = 3,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    schedule: Schedule = "cosine",
    warmup: float = 0.1,
    seed: int = 0,
    split: str | None = "auto",
    progress: Progress | None = None,
) -> Delta:
    """Train the slice of a set on a corpus; the subject is bit for bit the same afterwards, and so is the global RNG.

    The loss of a batch is the negative log-likelihood in nats of its answers' tokens, meaned over those tokens; prompts
    are not trained on. Dropout is off. `split` names the examples to train on by their tag `split`; "auto" takes those
    tagged "train" where the corpus has that tag at all, and None takes every example. `progress` is called with
    (steps done, steps). The other arguments are those of `Recipe`.

    Raises TuneError for an empty set, an argument out of range or a loss that diverges, SetError for a set of another
    subject, CorpusError when the corpus lacks the split.
    """
    recipe = Recipe(lr, steps, epochs, batch_size, weight_decay, clip, schedule, warmup, seed)
    rows = corpus.part(split, auto="train")
    with trainable_slice(subject, neurons) as trainable:
        history = train(subject, encode_corpus(subject, rows), trainable, recipe, progress=progress)
        return _delta(subject, neurons, trainable, history, _origin("finetune", rows, recipe))


def finetune_full(
    subject: Subject,
    corpus: Corpus,
    *,
    lr: float = 3e-5,
    steps: int | None = None,
    epochs: int = 3,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    schedule: Schedule = "cosine",
    warmup: float = 0.1,
    seed: int = 0,
    split: str | None = "auto",
    progress: Progress | None = None,
) -> Delta:
    """Train every parameter with the loop of `finetune`, for comparison. The delta holds the whole model twice."""
    recipe = Recipe(lr, steps, epochs, batch_size, weight_decay, clip, schedule, warmup, seed)
    rows = corpus.part(split, auto="train")
    with trainable_full(subject) as trainable:
        history = train(subject, encode_corpus(subject, rows), trainable, recipe, progress=progress)
        return _delta(subject, None, trainable, history, _origin("finetune_full", rows, recipe))


def answer_loss(subject: Subject, batch: Batch) -> Float[Tensor, ""]:
    """Negative log-likelihood in nats of a batch's answers, meaned over their tokens."""
    log_probs = answer_log_probs(forward(subject, batch), batch.targets)
    return -log_probs.sum() / (batch.targets != IGNORED).sum().to(log_probs.device)


def train(
    subject: Subject,
    encoded: Sequence[Encoded],
    trainable: Trainable,
    recipe: Recipe,
    *,
    penalty: Penalty | None = None,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Move the masters; returns the answer loss of every step. `penalty` is added to each step's loss before its backward.

    Raises TuneError when a loss or a gradient is not finite.
    """
    num_steps = recipe.num_steps(len(encoded))
    optimizer = torch.optim.AdamW(trainable.masters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    history: list[float] = []
    for step, rows in zip(range(num_steps), _orders(len(encoded), recipe), strict=False):
        batch = collate([encoded[row] for row in rows], rows, pad_id=pad_id(subject))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, num_steps)
        loss = answer_loss(subject, batch)
        history.append(loss.item())
        _finite(history[-1], "loss", step, num_steps, recipe)
        (loss if penalty is None else loss + penalty()).backward()
        norm = nn.utils.clip_grad_norm_(trainable.masters, math.inf if recipe.clip is None else recipe.clip)
        _finite(norm.item(), "gradient", step, num_steps, recipe)
        optimizer.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, num_steps)
    return tuple(history)


def _orders(num_examples: int, recipe: Recipe) -> Iterator[list[int]]:
    """Rows of one batch after another, without end, every example once in an epoch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        order = torch.randperm(num_examples, generator=generator).tolist()
        for first in range(0, num_examples, recipe.batch_size):
            yield order[first : first + recipe.batch_size]


def _finite(value: float, what: str, step: int, num_steps: int, recipe: Recipe) -> None:
    if math.isfinite(value):
        return
    if step == 0:
        raise TuneError(
            f"the {what} is {value} at step 1, before anything was trained; expected a finite number; "
            "the subject is untouched; check its weights and dtype"
        )
    raise TuneError(
        f"training diverged: the {what} is {value} at step {step + 1} of {num_steps} (lr {recipe.lr:g}); "
        "the subject is untouched; try a smaller lr"
    )


def _delta(
    subject: Subject,
    neurons: NeuronSet | None,
    trainable: Trainable,
    history: tuple[float, ...],
    origin: dict[str, Any],
) -> Delta:
    values = trainable.values()
    for key, tensor in values.items():
        if not bool(tensor.isfinite().all()):
            raise TuneError(
                f"training diverged: {key} is not finite after step {len(history)}, the last; "
                "the subject is untouched; try a smaller lr"
            )
    return Delta(subject.fingerprint, neurons, values, trainable.base_values(), history, origin)


def _origin(made: str, corpus: Corpus, recipe: Recipe) -> dict[str, Any]:
    return {
        "made": made, "corpus": corpus.name, "corpus_hash": corpus.hash, "groups": list(corpus.groups),
        "num_examples": len(corpus), "recipe": asdict(recipe), "versions": library_versions(),
    }  # fmt: skip
