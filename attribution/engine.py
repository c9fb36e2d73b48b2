"""The one-pass engine: per-example readings of neurons for every group and method at once, without parameter gradients.

An identity function stands on every tap. In the forward it sees a layer's activations, in the backward their gradient beside
them; it reduces both to one score per example and neuron. A batch's scores join its groups' sums when the whole batch is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import library_versions
from ..neurons.sites import Site, Tap
from ..neurons.subject import Subject
from .encoding import Batch, Encoded, PaddingSide, collate, forward, pad_id, plan_batches
from .memory import Room
from .methods import Method, TokenReduction
from .objectives import Contrast, Objective
from .processes import Elsewhere, Team, join_team
from .resume import Checkpoint
from .sums import Sums, empty_sums

Progress = Callable[[int, int], None]
NotFiniteRule = Literal["stop", "skip"]
CHUNK = 2**22  # numbers of a contribution that are in memory at once
HALF_EXPONENTS = (8, 2, -4, -10)  # float16: the largest gradient at the logits, as a power of two, tried in turn


@dataclass(frozen=True, eq=False)
class Job:
    """Examples to be scored, whichever method does it.

    `groups` [example] numbers each example's group, below `num_groups`; several groups may share no example. `contrasts` are
    those of an objective that needs choices. `max_tokens` is a batch's budget, padding included. What happens to an example
    whose objective or score is NaN or infinite is said by `on_not_finite`. `recompute` is that of `Subject.quiet`.
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
    recompute: bool | None = None


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


def one_pass(job: Job, readings: Sequence[Reading], *, checkpoint: Checkpoint | None = None) -> list[Sums]:
    """Score every example once, by every reading, and sum by group.

    One forward serves all readings, and one backward those that read gradients. Sums are at least float32, on the subject's
    device. A score does not depend on the example's batch mates. When memory runs out the batch is halved and tried again,
    with a warning, and later ones are no larger. Under `torchrun` or `accelerate launch` each process takes every n-th batch,
    and all of them return the sums over all.

    With a checkpoint, an interrupted pass goes on where it was last written, and ends with the same sums, bit for bit where
    the device sums in a fixed order (the CPU does) with the same number of threads.

    Raises NotFinite for an example whose objective or score is not finite, unless the job says to skip it, TooLarge for one
    that does not fit in memory, CheckpointError for a checkpoint of another run, and in every process what one of them raised.
    """
    dtype = torch.promote_types(job.subject.dtype, torch.float32)
    sums = [
        empty_sums(
            (job.num_groups, r.site.num_layers, r.site.width), len(job.encoded), dtype=dtype, device=job.subject.device,
            keep_rows=r.keep_rows,
        )
        for r in readings
    ]  # fmt: skip
    team = join_team()
    try:
        _own_share(job, readings, sums, team, checkpoint)
    except Exception as error:
        team.failed(error, what=(error.what, error.rows) if isinstance(error, NotFinite) else None)
        raise
    try:
        team.end()
    except Elsewhere as error:
        raise error if error.what is None else NotFinite(*error.what) from error
    for one in sums:
        one.gather(team.add)
    return sums


def _own_share(
    job: Job, readings: Sequence[Reading], sums: Sequence[Sums], team: Team, checkpoint: Checkpoint | None
) -> None:
    """This process's batches into its sums."""
    facts = _facts(job, readings)
    team.same(facts)
    # attention that is masked in float64 and takes its softmax in float32 (Gemma 2, BLOOM) overflows on left padding
    even = job.padding_side == "left" and job.subject.dtype == torch.float64
    plan = list(plan_batches(job.encoded, max_tokens=job.max_tokens, even=even))
    own, room, first = plan[team.rank :: team.size], Room(), 0
    if checkpoint is not None:
        first, room.tokens = checkpoint.start(facts, sums, rank=team.rank, size=team.size)
        _check_skipped(job, sums, own[:first])
    for number in range(first, len(own)):
        if team.another_failed():
            return
        rows = own[number]
        length = len(job.encoded[rows[0]].ids) - 1
        for part in room.fitting(rows, lambda chosen: _run(job, readings, chosen), length=length):
            _commit(job, readings, sums, part)
        if checkpoint is not None:
            checkpoint.step(facts, sums, done=number + 1, limit=room.tokens)
        if job.progress is not None and team.leads:
            job.progress(sum(map(len, plan[: (number + 1) * team.size])), len(job.encoded))
    if checkpoint is not None and checkpoint.keep:
        checkpoint.write(facts, sums, done=len(own), limit=room.tokens)


def _facts(job: Job, readings: Sequence[Reading]) -> dict[str, Any]:
    """What a pass is of: everything that its sums depend on."""
    examples = hashlib.sha256(repr([(e.ids, e.start) for e in job.encoded]).encode())
    examples.update(repr(list(job.contrasts)).encode())
    groups = hashlib.sha256(f"{job.num_groups} {job.groups.tolist()}".encode())
    versions = library_versions()
    return {
        "subject": job.subject.fingerprint, "dtype": str(job.subject.dtype), "device": job.subject.device.type,
        "examples": examples.hexdigest()[:16], "groups": groups.hexdigest()[:16], "objective": job.objective.name,
        "max_tokens": job.max_tokens, "padding_side": job.padding_side,
        "readings": [f"{r.method.name} {r.site.name} {r.method.tokens or r.tokens}{' rows' * r.keep_rows}" for r in readings],
        "versions": {name: versions[name] for name in ("neuropolis", "torch", "transformers")},
    }  # fmt: skip


def _check_skipped(job: Job, sums: Sequence[Sums], done: Sequence[Sequence[int]]) -> None:
    """A run that stops at examples which are not finite cannot go on from one that skipped some."""
    rows = [row for batch in done for row in batch if not sums[0].scored[row]]
    if rows and job.on_not_finite == "stop":
        raise NotFinite("objective or score", rows)


@dataclass(eq=False)
class _Run:
    """One batch under way: what its taps have read so far, by reading and layer."""

    batch: Batch
    readings: Sequence[Reading]
    sign: float
    real: Bool[Tensor, "batch token"]
    found: dict[tuple[int, int], Float[Tensor, "batch neuron"]] = field(default_factory=dict)
    sound: Bool[Tensor, " batch"] | None = None
    scale: Float[Tensor, " batch"] | None = None

    @property
    def overflowed(self) -> bool:
        """Whether an example has an objective that is finite and a score that is not."""
        return any(not bool(torch.isfinite(score[self.sound]).all()) for score in self.found.values())

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
        real, method, x = self.real[rows].to(x.device), reading.method, _wide(x[rows])
        tokens = method.tokens or reading.tokens
        if method.reads == "gradient":
            assert gradient is not None
            slope = _wide(gradient[rows])
            if self.scale is not None:
                slope = slope / self.scale[rows, None, None].to(x.device)
            return self.sign * _reduced(method.function(slope, x), real, tokens, self.sign, masked=False)
        return _reduced(method.function(x), real, tokens, 1.0, masked=True)


def _wide(x: Tensor) -> Tensor:
    """At least float32: a product of half-precision numbers keeps what they have."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _reduced(
    part: Float[Tensor, "batch token neuron"],
    real: Bool[Tensor, "batch token"],
    tokens: TokenReduction,
    sign: float,
    *,
    masked: bool,
) -> Float[Tensor, "batch neuron"]:
    """Over real tokens. A gradient is zero on padding already, so that only an activation needs the mask in a sum."""
    part = _wide(part)  # a method may narrow it again
    if tokens == "max":
        part = part.masked_fill(~real[..., None], -sign * torch.inf)
        return part.amax(dim=1) if sign > 0 else part.amin(dim=1)
    if masked and not bool(real.all()):
        part = part.masked_fill(~real[..., None], 0)
    if tokens == "abs":
        return sign * part.abs().sum(dim=1)
    total = part.sum(dim=1)
    return total / real.sum(dim=1, keepdim=True) if tokens == "mean" else total


def _run(job: Job, readings: Sequence[Reading], rows: Sequence[int]) -> _Run:
    """One batch through the model; where float16 overflows in the backward, again with smaller gradients."""
    batch = collate([job.encoded[row] for row in rows], rows, padding_side=job.padding_side, pad_id=pad_id(job.subject))
    if job.subject.dtype != torch.float16:
        return _attempt(job, readings, batch, None)
    for exponent in HALF_EXPONENTS:
        run = _attempt(job, readings, batch, exponent)
        if run.scale is None or not run.overflowed:
            break
    return run


def _attempt(job: Job, readings: Sequence[Reading], batch: Batch, exponent: int | None) -> _Run:
    subject = job.subject
    sign = -1.0 if job.objective.lower_is_better else 1.0
    run = _Run(batch, readings, sign, batch.real.to(subject.device))
    backward = any(r.method.reads == "gradient" for r in readings)
    with subject.quiet(recompute=job.recompute), torch.set_grad_enabled(backward), _tapped(run):
        logits = _wide(forward(subject, batch))
        values = job.objective.value(logits, batch, job.contrasts)
        run.sound = torch.isfinite(values.detach())
        if job.on_not_finite == "stop":
            _all_sound(run.sound, batch, f"objective {job.objective.name}")
        total = values[run.sound].sum()
        if backward and exponent is not None:
            _scaled_backward(run, total, logits, exponent)
        elif backward:
            total.backward()
    return run


def _scaled_backward(run: _Run, total: Tensor, logits: Tensor, exponent: int) -> None:
    """A backward in which every example's gradient is times a power of two, by which its readings are divided.

    It brings the example's largest gradient at the logits to between 2^(exponent - 1) and 2^exponent: small gradients
    would vanish in float16, whose smallest number is 2^-24. Dividing by it in float32 is exact.
    """
    (slope,) = torch.autograd.grad(total, logits)
    largest = torch.frexp(slope.abs().amax(dim=(1, 2))).exponent
    run.scale = torch.ldexp(torch.ones_like(slope[:, 0, 0]), (exponent - largest).clamp(-60, 60))
    logits.backward(slope * run.scale[:, None, None])


@contextmanager
def _tapped(run: _Run) -> Iterator[None]:
    """Every reading's taps attached; readings of one site share its taps."""
    sites: dict[int, tuple[Site, list[int]]] = {}
    for number, reading in enumerate(run.readings):
        sites.setdefault(id(reading.site), (reading.site, []))[1].append(number)
    with ExitStack() as stack:
        for site, numbers in sites.values():
            for layer, tap in enumerate(site.taps):
                stack.enter_context(tap.attached(partial(_pass_on, run=run, numbers=numbers, layer=layer, tap=tap)))
        yield


def _pass_on(x: Tensor, *, run: _Run, numbers: Sequence[int], layer: int, tap: Tap) -> Tensor | None:
    """Let the activations be read, and put an identity in their way where their gradient is wanted."""
    # a block that is recomputed in the backward passes here again
    forwards = [n for n in numbers if run.readings[n].method.reads == "activation" and (n, layer) not in run.found]
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


def _commit(job: Job, readings: Sequence[Reading], sums: Sequence[Sums], run: _Run) -> None:
    """A finished batch's scores into the sums; examples that are not finite stop the pass or stay out."""
    assert run.sound is not None
    sound = run.sound
    for score in run.found.values():
        sound = sound & torch.isfinite(score).all(dim=1).to(sound.device)
    if job.on_not_finite == "stop":
        _all_sound(sound, run.batch, "score")
    kept = sound.cpu()
    rows = run.batch.rows[kept]
    groups, real = job.groups[rows], run.batch.real.sum(dim=1)[kept]
    everything = bool(kept.all())
    device = job.subject.device
    placed = groups.to(device)
    for (number, layer), score in run.found.items():
        score = score.to(device)  # a subject may be spread over several
        score = score if everything else score[sound]
        sums[number].add(layer, placed, score)
        if readings[number].keep_rows:
            one = sums[number].rows
            assert one is not None
            one[rows, layer] = score.float().cpu()
    for one in sums:
        one.counts.index_add_(0, groups, torch.ones_like(groups))
        one.tokens.index_add_(0, groups, real)
        one.scored[rows] = True


def _all_sound(sound: Bool[Tensor, " batch"], batch: Batch, what: str) -> None:
    if not bool(sound.all()):
        raise NotFinite(what, batch.rows[~sound.cpu()].tolist())
