"""Recipe: everything about a training run that decides its numbers, beside the subject and the examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

import torch

from .errors import TuneError

Schedule = Literal["cosine", "constant"]
Precision = Literal["model", "bf16"]
MOST = {"lr": 1e30, "weight_decay": 1e6}


class Settings(TypedDict, total=False):
    """The fields of `Recipe` as keyword arguments."""

    lr: float
    steps: int | None
    epochs: int
    batch_size: int
    weight_decay: float
    clip: float | None
    schedule: Schedule
    warmup: float
    seed: int
    accumulate: int
    precision: Precision
    eval_every: int | None
    patience: int | None
    stop_diverged: bool


@dataclass(frozen=True)
class Recipe:
    """How a run trains: AdamW over batches of examples in an order drawn from `seed` alone.

    `steps` overrules `epochs`. `clip` is the largest norm of the whole gradient; None does not clip. The learning rate
    rises linearly over the share `warmup` of the steps, then stays (`constant`) or falls to zero (`cosine`).

    A step is `batch_size` examples whatever `accumulate` is, which says in how many parts one after another their
    gradient is computed: less memory, the same gradient up to rounding. `precision` "bf16" multiplies in bfloat16 while
    weights, gradients of the masters and optimizer stay float32; "model" computes in the model's own dtype.

    With held-out examples their loss is taken before the first step, every `eval_every` steps (None: once an epoch) and
    after the last. `patience` stops the run after so many of these without a new lowest one, and keeps the lowest.

    `stop_diverged` stops a run whose finite loss says that it has diverged: every five steps, when the median of the last five
    losses is above the loss of an even guess over the vocabulary and more than twice what the subject as it was before
    the run has on the same batches; and by the same rule after the last step. It changes no number of a run.
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
    accumulate: int = 1
    precision: Precision = "model"
    eval_every: int | None = None
    patience: int | None = None
    stop_diverged: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size", "steps", "clip", "accumulate", "eval_every", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TuneError(f"{name} must be above 0, got {value}")
        for name, most in MOST.items():  # the optimizer's own numbers are float32
            if not 0 <= getattr(self, name) <= most:
                raise TuneError(f"{name} must lie between 0 and {most:g}, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise TuneError(f"warmup is a share of the steps, expected 0 to 1, got {self.warmup}")
        if self.schedule not in ("cosine", "constant"):
            raise TuneError(f"unknown schedule {self.schedule!r}; schedules are cosine, constant")
        if self.precision not in ("model", "bf16"):
            raise TuneError(f"unknown precision {self.precision!r}; expected model (the model's own dtype) or bf16")

    def facts(self) -> dict[str, Any]:
        """Everything that decides a run's numbers, by name."""
        return {name: value for name, value in asdict(self).items() if name != "stop_diverged"}

    def steps_per_epoch(self, num_examples: int) -> int:
        """Steps in which every example is seen once."""
        return math.ceil(num_examples / self.batch_size)

    def num_steps(self, num_examples: int) -> int:
        """Steps of a run over so many examples."""
        return self.steps or self.epochs * self.steps_per_epoch(num_examples)

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = math.ceil(self.warmup * num_steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (num_steps - warm)))

    def orders(self, num_examples: int) -> Iterator[list[int]]:
        """Rows of one batch after another, without end, every example once in an epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(num_examples, generator=generator).tolist()
            for first in range(0, num_examples, self.batch_size):
                yield order[first : first + self.batch_size]
