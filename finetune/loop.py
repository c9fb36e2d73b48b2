"""The training loop: masters moved by AdamW over batches, with held-out loss, checkpoints and several processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NoReturn

import torch
from torch import Tensor, nn

from ..attribution.encoding import Encoded
from ..neurons.subject import Subject
from .checkpoints import Checkpointing, Run, read_checkpoint, rng_state, set_rng, write_checkpoint
from .divergence import WINDOW, Watch
from .errors import TuneError
from .losses import Penalty, batch_gradient
from .processes import Team, join_team
from .recipe import Recipe
from .trainable import Trainable

Progress = Callable[[int, int], None]


def train(
    subject: Subject,
    encoded: Sequence[Encoded],
    trainable: Trainable,
    recipe: Recipe,
    *,
    penalty: Penalty | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Move the masters; returns the answer loss of every step. See `fit`, which also keeps checkpoints."""
    run = fit(subject, encoded, trainable, recipe, penalty=penalty, after_step=after_step, progress=progress)
    return tuple(run.history)


def fit(
    subject: Subject,
    encoded: Sequence[Encoded],
    trainable: Trainable,
    recipe: Recipe,
    *,
    held_out: Sequence[Encoded] = (),
    penalty: Penalty | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpointing | None = None,
) -> Run:
    """Move the masters by the recipe; afterwards they are those of the last step, or of the best one with `patience`.

    `penalty` is added to each step's loss before its backward; `after_step` is called when the optimizer has moved the
    masters, and may put them where they are allowed to be. Under `torchrun` or `accelerate launch` every process
    calls this with the same arguments and computes its share of each batch and of `held_out`.

    Raises TuneError when there is nothing to train on, when a loss or a gradient is not finite or the losses are far
    off (see `Recipe.stop_diverged`), and what `read_checkpoint` and `write_checkpoint` raise.
    """
    _check(subject, encoded, recipe, held_out)
    team = join_team(subject)
    if checkpoint is not None:
        about = _about(subject, trainable, encoded, held_out)
        checkpoint = replace(checkpoint, about={**checkpoint.about, **about})
        team.same(f"{checkpoint.about} {recipe} resume={checkpoint.resume}")
    elif team.size > 1:
        team.same(f"{_about(subject, trainable, encoded, held_out)} {recipe}")
    loop = _Loop(subject, trainable, recipe, recipe.num_steps(len(encoded)), team, checkpoint, after_step)
    with loop.resumed():
        loop.run_through(encoded, held_out, penalty, progress)
    return loop.run


@dataclass
class _Loop:
    """One run: what it moves, how far it is, and the lowest held-out loss's masters."""

    subject: Subject
    trainable: Trainable
    recipe: Recipe
    num_steps: int
    team: Team
    checkpoint: Checkpointing | None
    after_step: Callable[[], None] | None = None
    run: Run = field(default_factory=Run)
    best: tuple[Tensor, ...] = ()
    kept: int | None = None  # the step that the checkpoint holds

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.optimizer = torch.optim.AdamW(self.trainable.masters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.keys = [entry.key for entry in self.trainable.entries]
        self.watch = Watch(self.subject, self.trainable, recipe, self.team)

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss has not fallen for as long as the recipe waits."""
        return self.recipe.patience is not None and self.run.waited >= self.recipe.patience

    @property
    def due(self) -> bool:
        """Whether a checkpoint should have been kept since the one that was; one that is put off stays due."""
        if self.checkpoint is None:
            return False
        return self.run.step // self.checkpoint.every > (self.kept or 0) // self.checkpoint.every

    def run_through(
        self,
        encoded: Sequence[Encoded],
        held_out: Sequence[Encoded],
        penalty: Penalty | None,
        progress: Progress | None,
    ) -> None:
        """All steps that are left, and the masters that are to stay."""
        recipe, run = self.recipe, self.run
        every = recipe.eval_every or recipe.steps_per_epoch(len(encoded))
        if held_out and not run.evals:
            self.evaluate(held_out)
        for rows in islice(recipe.orders(len(encoded)), run.step, self.num_steps):
            if self.stopped:
                break
            rng = rng_state() if self.due else {}
            batch = [encoded[row] for row in rows]
            self.backward(batch, rows, penalty)
            self.check_course(encoded)
            # the next loss and gradient are finite now, so that what stands before this step is known to be sound
            if rng and not (recipe.stop_diverged and self.watch.far_off(run.history[-1:], [batch])):
                self.write(rng)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.after_step is not None:
                self.after_step()
            run.step += 1
            if held_out and (run.step % every == 0 or run.step == self.num_steps):
                self.evaluate(held_out)
            if progress is not None:
                progress(run.step, self.num_steps)
        self.check_masters()
        if run.step != self.kept:
            if not self.best:
                self.check_last(encoded)
            self.write(rng_state())
        if recipe.patience is not None and self.best:
            self.put_back(self.best)

    def backward(self, encoded: Sequence[Encoded], rows: Sequence[int], penalty: Penalty | None) -> None:
        """The gradient of a step's loss in the masters, clipped, and its loss in the history."""
        recipe, run = self.recipe, self.run
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(run.step, self.num_steps)
        loss = self.team.sum(batch_gradient(self.subject, encoded, rows, recipe, self.team, penalty)).item()
        self.check_finite(loss, "loss")
        self.team.sum_gradients(self.trainable.masters)
        norm = nn.utils.clip_grad_norm_(self.trainable.masters, math.inf if recipe.clip is None else recipe.clip)
        self.check_finite(norm.item(), "gradient")
        run.history.append(loss)

    def evaluate(self, held_out: Sequence[Encoded]) -> None:
        """Take the held-out loss, and keep the masters when it is the lowest."""
        loss = self.watch.loss(held_out)
        self.check_finite(loss, "held-out loss", after=True)
        self.run.evals.append((self.run.step, loss))
        if self.recipe.patience is not None and self.run.best_step == self.run.step:
            self.best = tuple(master.detach().clone() for master in self.trainable.masters)

    def write(self, rng: Mapping[str, Tensor]) -> None:
        """Keep the run as it stands between two steps. The history may hold the coming step's loss, which is left out."""
        if self.checkpoint is None:
            return
        error = None
        if self.team.leads:
            run = replace(self.run, history=self.run.history[: self.run.step])
            try:
                write_checkpoint(self.checkpoint, run, self.recipe, self.num_steps, self.tensors() | dict(rng))
            except TuneError as caught:
                error = caught
        self.team.all_told(error)
        self.kept = self.run.step

    def tensors(self) -> dict[str, Tensor]:
        """Masters, optimizer state and the best masters, by key."""
        masters = self.trainable.masters
        found = {f"masters/{key}": master for key, master in zip(self.keys, masters, strict=True)}
        for key, master in zip(self.keys, masters, strict=True):
            found |= {f"optimizer/{key}/{name}": state for name, state in self.optimizer.state.get(master, {}).items()}
        return found | {f"best/{key}": tensor for key, tensor in zip(self.keys, self.best, strict=False)}

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """The run as the checkpoint has it, with the random state that it had; the program's own comes back."""
        found = None if self.checkpoint is None else read_checkpoint(
            self.checkpoint, self.recipe, self.num_steps, self.keys
        )  # fmt: skip
        self.team.same(f"from step {0 if found is None else found[0].step}")
        if found is None:
            yield
            return
        before = rng_state()
        self.restore(*found)
        found = None  # its tensors lie in the file, which takes room on the disk for as long as they are held
        try:
            yield
        finally:
            set_rng(before)

    def restore(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        """Everything as a checkpoint has it, in memory of its own."""
        self.run, self.kept = run, run.step
        self.put_back([tensors[f"masters/{key}"] for key in self.keys])
        if f"best/{self.keys[0]}" in tensors:
            places = zip(self.trainable.masters, self.keys, strict=True)
            self.best = tuple(tensors[f"best/{key}"].to(master.device, copy=True) for master, key in places)
        state = {}
        for number, key in enumerate(self.keys):
            start = f"optimizer/{key}/"
            if names := [name.removeprefix(start) for name in tensors if name.startswith(start)]:
                state[number] = {name: tensors[start + name].clone() for name in names}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        set_rng(tensors)

    @torch.no_grad()
    def put_back(self, values: Sequence[Tensor]) -> None:
        for master, tensor in zip(self.trainable.masters, values, strict=True):
            master.copy_(tensor)

    def check_finite(self, value: float, what: str, *, after: bool = False) -> None:
        if math.isfinite(value):
            return
        if self.run.step == 0:
            raise TuneError(
                f"the {what} is {value} at step 1, before anything was trained here; expected a finite number; "
                "the subject is untouched; check the weights that this run began with, and their dtype"
            )
        when = f"after step {self.run.step}" if after else f"at step {self.run.step + 1}"
        raise TuneError(
            f"training diverged: the {what} is {value} {when} of {self.num_steps} (lr {self.recipe.lr:g}); "
            f"the subject is untouched; {self.advice()}"
        )

    def check_course(self, encoded: Sequence[Encoded]) -> None:
        """Every few steps, raise when the losses since are far off."""
        history, steps = self.run.history, len(self.run.history)
        if not self.recipe.stop_diverged or steps % WINDOW:
            return
        if why := self.watch.far_off(history[-WINDOW:], self.batches(encoded, steps)):
            self.astray(f"{why}, in steps {steps - WINDOW + 1} to {steps} of {self.num_steps}")

    def check_last(self, encoded: Sequence[Encoded]) -> None:
        """Raise when what the last step left, which no step's loss has seen, is far off."""
        if not self.recipe.stop_diverged:
            return
        step = self.run.step
        batches = self.batches(encoded, step)
        losses = [self.watch.loss(batches[-1])]
        self.check_finite(losses[0], "loss", after=True)
        if losses[0] > self.watch.even_guess:
            losses = [self.watch.loss(batch) for batch in batches]
            if why := self.watch.far_off(losses, batches):
                self.astray(f"{why}, after step {step} of {self.num_steps}, the last")

    def batches(self, encoded: Sequence[Encoded], steps: int) -> list[list[Encoded]]:
        """The last few batches of so many steps."""
        orders = islice(self.recipe.orders(len(encoded)), max(0, steps - WINDOW), steps)
        return [[encoded[row] for row in rows] for rows in orders]

    def astray(self, why: str) -> NoReturn:
        raise TuneError(
            f"training diverged: {why} (lr {self.recipe.lr:g}); the subject is untouched; {self.advice()}; stop_diverged=False "
            "(--no-stop-diverged) trains on whatever the loss"
        )

    def check_masters(self) -> None:
        for entry, master in zip(self.trainable.entries, self.trainable.masters, strict=True):
            if not bool(master.detach().to(entry.tensor.dtype).isfinite().all()):
                raise TuneError(
                    f"training diverged: {entry.key} is not finite after step {self.run.step}, the last; "
                    f"the subject is untouched; {self.advice()}"
                )

    def advice(self) -> str:
        """What to do about a run that diverged."""
        if self.checkpoint is None or self.kept is None:
            return "try a smaller lr"
        return (
            f"{self.checkpoint.path} holds step {self.kept}, the last good one that was kept: go on from it with a "
            "smaller lr and resume='changed' (--resume changed), or start over with resume='never'"
        )


def _check(subject: Subject, encoded: Sequence[Encoded], recipe: Recipe, held_out: Sequence[Encoded]) -> None:
    if not encoded:
        raise TuneError("there are no examples to train on; expected one at least")
    if recipe.patience is not None and not held_out:
        raise TuneError("patience needs held-out examples; name them with eval_split, or leave patience out")
    if recipe.precision == "bf16" and subject.dtype != torch.float32:
        raise TuneError(
            f"precision 'bf16' is for a model in float32, {subject.name} is in {subject.dtype}; "
            "leave precision out, or load the model in float32"
        )


def _about(
    subject: Subject, trainable: Trainable, encoded: Sequence[Encoded], held_out: Sequence[Encoded]
) -> dict[str, str]:
    """What is trained on what: fingerprint, dtype, and digests of the entries before training and of all tokens."""
    entries = hashlib.sha256()
    for entry, base in zip(trainable.entries, trainable.base, strict=True):
        entries.update(f"{entry.key} {list(base.shape)}\n".encode())
        entries.update(base.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    digests = {"entries": entries.hexdigest()}
    for name, examples in (("examples", encoded), ("held_out", held_out)):
        text = "\n".join(f"{example.start} {example.ids}" for example in examples)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    return {"subject": subject.fingerprint, "dtype": str(subject.dtype), **digests}
