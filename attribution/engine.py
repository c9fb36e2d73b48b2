"""The one-pass engine: per-example readings of neurons for every group and method at once, without parameter gradients.

An identity function stands on every tap. In the forward it sees a layer's activations, in the backward their gradient beside
them; it reduces both to one score per example and neuron. A batch's scores join its groups' sums when the whole batch is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.sites import Site, Tap
from ..neurons.subject import Subject
from .encoding import Batch, Encoded, PaddingSide, collate, forward, pad_id, plan_batches
from .methods import Method, TokenReduction
from .objectives import Contrast, Objective
from .sums import Sums, empty_sums

Progress = Callable[[int, int], None]
NotFiniteRule = Literal["stop", "skip"]
CHUNK = 2**22  # numbers of a contribution that are in memory at once


@dataclass(frozen=True, eq=False)
class Job:
    """Examples to be scored, whichever method does it.

    `groups` [example] numbers each example's group, below `num_groups`; several groups may share no example. `contrasts` are
    those of an objective that needs choices. `max_tokens` is a batch's budget, padding included. What happens to an example
    whose objective or score is NaN or infinite is said by `on_not_finite`. `tokens` and `keep_rows` are what was asked of methods
    with passes of their own.
    """

    subject: Subject
    encoded: Sequence[Encoded]
    groups: Int[Tensor, " example"]
    num_groups: int
    objective: Objective
    contrasts: Sequence[Sequence[Contrast]] = ()
    max_tokens: int = 4096
    padding_side: PaddingSide = "right"
    on_not_finite: NotFiniteRule = "stop"
    progress: Progress | None = None
    tokens: TokenReduction = "sum"
    keep_rows: bool = False


@dataclass(frozen=True, eq=False)
class Reading:
    """One method that reads one site during a pass."""

    method: Method
    site: Site
    tokens: TokenReduction = "sum"
    keep_rows: bool = False


class NotFinite(ValueError):
    """The objective or the score of some examples is NaN or infinite. `rows` says which, `what` what."""

    def __init__(self, what: str, rows: Sequence[int]) -> None:
        super().__init__(f"the {what} of {len(rows)} examples is not finite")
        self.what = what
        self.rows = tuple(rows)


def one_pass(job: Job, readings: Sequence[Reading], *, run: RunBatch | None = None) -> list[Sums]:
    """Score every example once, by every reading, and sum by group.

    One forward serves all readings, and one backward those that read gradients. Sums are at least float32, on the subject's
    device. A score does not depend on the example's batch mates. When memory runs out the batch is halved and tried again.
    `run` is what scores a batch, for methods that need more than one forward and backward.

    Raises NotFinite for an example whose objective or score is not finite, unless the job says to skip it.
    """
    dtype = torch.promote_types(job.subject.dtype, torch.float32)
    sums = [
        empty_sums(
            (job.num_groups, r.site.num_layers, r.site.width), len(job.encoded), dtype=dtype, device=job.subject.device,
            keep_rows=r.keep_rows,
        )
        for r in readings
    ]  # fmt: skip
    done, run = 0, run or _run
    for rows in plan_batches(job.encoded, max_tokens=job.max_tokens):
        for part in _fitting(rows, lambda chosen: run(job, readings, chosen)):
            _commit(job, readings, sums, part)
        done += len(rows)
        if job.progress is not None:
            job.progress(done, len(job.encoded))
    return sums


@dataclass(eq=False)
class Run:
    """One batch under way: what its taps have read so far, by reading and layer.

    `extra` holds further numbers of each example, by name.
    """

    batch: Batch
    readings: Sequence[Reading]
    sign: float
    real: Bool[Tensor, "batch token"]
    found: dict[tuple[int, int], Float[Tensor, "batch neuron"]] = field(default_factory=dict)
    sound: Bool[Tensor, " batch"] | None = None
    extra: dict[str, Float[Tensor, " batch"]] = field(default_factory=dict)

    def take(self, which: Sequence[int], layer: int, x: Tensor, gradient: Tensor | None = None) -> None:
        """Reduce a layer's activations, and their gradient, to scores of the readings `which`."""
        shape = (*self.real.shape, x.shape[-1])  # some families fold batch and token into one before their FFN
        x = x.reshape(shape)
        if gradient is not None:
            gradient = gradient.reshape(shape)
        size = max(1, CHUNK // max(1, shape[1] * shape[2]))
        for number in which:
            parts = []
            for first in range(0, shape[0], size):
                rows = slice(first, first + size)
                parts.append(self._scores(self.readings[number], rows, x, gradient))
            self.found[number, layer] = parts[0] if len(parts) == 1 else torch.cat(parts)

    def _scores(
        self, reading: Reading, rows: slice, x: Tensor, gradient: Tensor | None
    ) -> Float[Tensor, "rows neuron"]:
        real, method = self.real[rows], reading.method
        tokens = method.tokens or reading.tokens
        if method.reads == "gradient":
            assert gradient is not None
            return self.sign * _reduced(method.function(gradient[rows], x[rows]), real, tokens, self.sign, masked=False)
        return _reduced(method.function(x[rows]), real, tokens, 1.0, masked=True)


RunBatch = Callable[[Job, Sequence[Reading], Sequence[int]], Run]


def _reduced(
    part: Float[Tensor, "batch token neuron"],
    real: Bool[Tensor, "batch token"],
    tokens: TokenReduction,
    sign: float,
    *,
    masked: bool,
) -> Float[Tensor, "batch neuron"]:
    """Over real tokens. A gradient is zero on padding already, so that only an activation needs the mask in a sum."""
    if part.dtype not in (torch.float32, torch.float64):
        part = part.float()
    if tokens == "max":
        part = part.masked_fill(~real[..., None], -sign * torch.inf)
        return part.amax(dim=1) if sign > 0 else part.amin(dim=1)
    if masked and not bool(real.all()):
        part = part.masked_fill(~real[..., None], 0)
    if tokens == "abs":
        return sign * part.abs().sum(dim=1)
    total = part.sum(dim=1)
    return total / real.sum(dim=1, keepdim=True) if tokens == "mean" else total


def _run(job: Job, readings: Sequence[Reading], rows: Sequence[int]) -> Run:
    """One batch through the model."""
    run = begin(job, readings, rows)
    backward = any(r.method.reads == "gradient" for r in readings)
    with job.subject.quiet(), torch.set_grad_enabled(backward), tapped(run):
        values = evaluate(job, run)
        if backward:
            values[run.sound].sum().backward()
    return run


def begin(job: Job, readings: Sequence[Reading], rows: Sequence[int]) -> Run:
    """A batch of these examples of which nothing is read yet."""
    encoded = [job.encoded[row] for row in rows]
    batch = collate(encoded, rows, padding_side=job.padding_side, pad_id=pad_id(job.subject))
    sign = -1.0 if job.objective.lower_is_better else 1.0
    return Run(batch, readings, sign, batch.real.to(job.subject.device))


def evaluate(job: Job, run: Run) -> Float[Tensor, " batch"]:
    """The objective of a batch's examples; those that were finite in every forward so far are sound."""
    values = job.objective.value(forward(job.subject, run.batch), run.batch, job.contrasts)
    finite = torch.isfinite(values.detach())
    run.sound = finite if run.sound is None else run.sound & finite
    if job.on_not_finite == "stop":
        _all_sound(run.sound, run.batch, f"objective {job.objective.name}")
    return values


@contextmanager
def tapped(run: Run) -> Iterator[None]:
    """Every reading's taps attached; readings of one site share its taps."""
    sites: dict[int, tuple[Site, list[int]]] = {}
    for number, reading in enumerate(run.readings):
        sites.setdefault(id(reading.site), (reading.site, []))[1].append(number)
    with ExitStack() as stack:
        for site, numbers in sites.values():
            for layer, tap in enumerate(site.taps):
                stack.enter_context(tap.attached(partial(_pass_on, run=run, numbers=numbers, layer=layer, tap=tap)))
        yield


def _pass_on(x: Tensor, *, run: Run, numbers: Sequence[int], layer: int, tap: Tap) -> Tensor | None:
    """Let the activations be read, and put an identity in their way where their gradient is wanted."""
    forwards = [n for n in numbers if run.readings[n].method.reads == "activation"]
    backwards = [n for n in numbers if run.readings[n].method.reads == "gradient"]
    if forwards:
        with torch.no_grad():
            run.take(forwards, layer, x.detach())
    if not backwards or not torch.is_grad_enabled():
        return None
    if not x.requires_grad:  # the lowest scored layer: nothing below it enters the backward
        x = x.detach().requires_grad_()
    out: Tensor = _Identity.apply(x, partial(run.take, backwards, layer))  # pyright: ignore[reportAssignmentType]
    # some families (Falcon) add to an output in place, which autograd forbids on a view
    return out.clone() if tap.side == "out" else out


class _Identity(torch.autograd.Function):
    """Its backward hands activation and gradient on. It saves the tensor that the projection saves anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.take = take
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.take(ctx.saved_tensors[0], grads[0])
        return grads[0], None


def _commit(job: Job, readings: Sequence[Reading], sums: Sequence[Sums], run: Run) -> None:
    """A finished batch's scores into the sums; examples that are not finite stop the pass or stay out."""
    assert run.sound is not None
    sound = run.sound
    for score in run.found.values():
        sound = sound & torch.isfinite(score).all(dim=1)
    if job.on_not_finite == "stop":
        _all_sound(sound, run.batch, "score")
    kept = sound.cpu()
    rows = run.batch.rows[kept]
    groups, real = job.groups[rows], run.batch.real.sum(dim=1)[kept]
    everything = bool(kept.all())
    placed = groups.to(job.subject.device)
    for (number, layer), score in run.found.items():
        score = score if everything else score[sound]
        sums[number].add(layer, placed, score)
        if readings[number].keep_rows:
            one = sums[number].rows
            assert one is not None
            one[rows, layer] = score.float().cpu()
    for name, numbers in run.extra.items():
        for one in sums:
            table = one.extra.setdefault(name, torch.full((len(job.encoded),), torch.nan, dtype=torch.float64))
            table[rows] = numbers.detach().cpu().double()[kept]
    for one in sums:
        one.counts.index_add_(0, groups, torch.ones_like(groups))
        one.tokens.index_add_(0, groups, real)
        one.scored[rows] = True


def _fitting(rows: list[int], run: Callable[[list[int]], Run]) -> Iterator[Run]:
    """The batch, or where memory does not hold it its halves, and theirs."""
    try:
        done = run(rows)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(rows) == 1:
            raise MemoryError(
                f"one example (row {rows[0]}) does not fit in memory; load the subject in a narrower dtype, offload it, "
                "turn on checkpointing, or shorten the example"
            ) from error
        done = None
    if done is not None:
        yield done
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    yield from _fitting(rows[:half], run)
    yield from _fitting(rows[half:], run)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _all_sound(sound: Bool[Tensor, " batch"], batch: Batch, what: str) -> None:
    if not bool(sound.all()):
        raise NotFinite(what, batch.rows[~sound.cpu()].tolist())
