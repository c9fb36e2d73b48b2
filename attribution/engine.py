"""The one-pass engine: per-example readings of neurons for every group and method at once, without parameter gradients.

What stands on the taps (see `readings`) reduces a batch to scores, which join their groups' sums when the whole batch is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neurons.atlas import library_versions
from ..neurons.subject import Subject
from .encoding import Batch, Encoded, PaddingSide, collate, forward, pad_id, plan_batches
from .memory import Room
from .methods import TokenReduction
from .objectives import Contrast, Objective
from .processes import Elsewhere, Team, join_team
from .readings import Reading, Run, tapped, wide
from .resume import Checkpoint
from .sums import Sums, empty_sums

Progress = Callable[[int, int], None]
NotFiniteRule = Literal["stop", "skip"]
HALF_EXPONENTS = (8, 2, -4, -10)  # float16: the largest gradient at the logits, as a power of two, tried in turn


@dataclass(frozen=True, eq=False)
class Job:
    """Examples to be scored, whichever method does it.

    `groups` [example] numbers each example's group, below `num_groups`; several groups may share no example. Groups from
    `twins_from` on are of control twins. `contrasts` are
    those of an objective that needs choices. `max_tokens` is a batch's budget, padding included. What happens to an example
    whose objective or score is NaN or infinite is said by `on_not_finite`. `recompute` is that of `Subject.quiet`.
    `tokens` and `keep_rows` are what was asked of methods with passes of their own, `options` what they were given, and
    `checkpoint` is where such a pass keeps its state.

    Raises ValueError for a rule or a side that is not there.
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
    twins_from: int | None = None
    tokens: TokenReduction = "sum"
    keep_rows: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        if self.on_not_finite not in get_args(NotFiniteRule):
            raise ValueError(
                f"unknown on_not_finite {self.on_not_finite!r}; it is {' or '.join(get_args(NotFiniteRule))}, what to do with an "
                "example whose objective or score is not finite"
            )
        if self.padding_side not in get_args(PaddingSide):
            raise ValueError(f"unknown padding_side {self.padding_side!r}; it is {' or '.join(get_args(PaddingSide))}")


class NotFinite(ValueError):
    """The objective or the score of some examples is NaN or infinite. `rows` says which, `what` what."""

    def __init__(self, what: str, rows: Sequence[int]) -> None:
        super().__init__(f"the {what} of {len(rows)} examples is not finite")
        self.what = what
        self.rows = tuple(rows)


Within = Callable[[AbstractContextManager[None]], AbstractContextManager[None]]
RunBatch = Callable[[Job, Sequence[Reading], Sequence[int]], Run]


def one_pass(
    job: Job, readings: Sequence[Reading], *, checkpoint: Checkpoint | None = None, run: RunBatch | None = None
) -> list[Sums]:
    """Score every example once, by every reading, and sum by group.

    One forward serves all readings, and one backward those that read gradients; where none does, the objective is not
    computed. Sums are at least float32, on the subject's device. A score does not depend on the example's batch mates. When
    memory runs out the batch is halved and tried again, with a warning, and later ones are no larger. Under `torchrun` or
    `accelerate launch` each process takes every n-th batch, and all of them return the sums over all.

    With a checkpoint, an interrupted pass goes on where it was last written, and ends with the same sums, bit for bit where
    the device sums in a fixed order (the CPU does) with the same number of threads.

    `run` is what scores a batch (`run_batch`), for methods that need other forwards and backwards than one of each.

    Raises NotFinite for an example whose objective or score is not finite, unless the job says to skip it, TooLarge for one
    that does not fit in memory, CheckpointError for a checkpoint of another run, and in every process what one of them raised.
    """
    dtype = torch.promote_types(job.subject.dtype, torch.float32)
    sums = [
        empty_sums(
            (job.num_groups, r.site.num_layers, r.site.width), len(job.encoded), dtype=dtype, device=job.subject.device,
            keep_rows=r.keep_rows, experts=r.site.taps[0].routed,
        )
        for r in readings
    ]  # fmt: skip
    team = join_team()
    try:
        _own_share(job, readings, sums, team, checkpoint, run or run_batch)
    except Exception as error:
        team.failed(error, what=(error.what, error.rows) if isinstance(error, NotFinite) else None)
        raise
    try:
        team.end()
    except Elsewhere as error:
        raise error if error.what is None else NotFinite(*error.what) from error
    for one in sums:
        one.gather(team.add, extra=team.union(one.extra))
    return sums


def _own_share(
    job: Job,
    readings: Sequence[Reading],
    sums: Sequence[Sums],
    team: Team,
    checkpoint: Checkpoint | None,
    run: RunBatch,
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
        for part in room.fitting(rows, lambda chosen: run(job, readings, chosen), length=length):
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
    options = {"options": dict(job.options)} if job.options else {}
    return {
        "subject": job.subject.fingerprint, "dtype": str(job.subject.dtype), "device": job.subject.device.type,
        "examples": examples.hexdigest()[:16], "groups": groups.hexdigest()[:16], "objective": job.objective.name,
        "max_tokens": job.max_tokens, "padding_side": job.padding_side,
        "readings": [f"{r.method.name} {r.site.name} {r.method.tokens or r.tokens}{' rows' * r.keep_rows}" for r in readings],
        "versions": {name: versions[name] for name in ("neuropolis", "torch", "transformers")}, **options,
    }  # fmt: skip


def _check_skipped(job: Job, sums: Sequence[Sums], done: Sequence[Sequence[int]]) -> None:
    """A run that stops at examples which are not finite cannot go on from one that skipped some."""
    rows = [row for batch in done for row in batch if not sums[0].scored[row]]
    if rows and job.on_not_finite == "stop":
        raise NotFinite("objective or score", rows)


def begin(job: Job, readings: Sequence[Reading], rows: Sequence[int]) -> Run:
    """A batch of these examples of which nothing is read yet."""
    batch = collate([job.encoded[row] for row in rows], rows, padding_side=job.padding_side, pad_id=pad_id(job.subject))
    return _begun(job, readings, batch)


def _begun(job: Job, readings: Sequence[Reading], batch: Batch) -> Run:
    sign = -1.0 if job.objective.lower_is_better else 1.0
    recompute = job.subject.offloaded if job.recompute is None else job.recompute
    return Run(batch, readings, sign, batch.real.to(job.subject.device), recompute)


def evaluate(job: Job, run: Run) -> Float[Tensor, " batch"]:
    """The objective of a batch's examples, or where no reading needs it the largest last logit, which has any NaN too.

    Examples that were finite in every forward so far are sound. Where gradients are on, `differentiate` is to follow.
    """
    valued = any(r.method.reads == "gradient" or r.method.example is not None for r in run.readings)
    # activations alone: the logits of one position are the fewest that models can be asked for
    logits = wide(forward(job.subject, run.batch if valued else replace(run.batch, keep=1)))
    # attention carries a NaN of any token to the last one; a comparison of activations would count it as inactive
    values = job.objective.value(logits, run.batch, job.contrasts) if valued else logits[:, -1].amax(dim=-1)
    run.logits = logits if torch.is_grad_enabled() else None
    finite = torch.isfinite(values.detach())
    run.values = values.detach() if run.values is None else run.values
    run.sound = finite if run.sound is None else run.sound & finite
    if job.on_not_finite == "stop":
        _all_sound(run.sound, run.batch, f"objective {job.objective.name}" if valued else "output")
    return values


def differentiate(run: Run, values: Float[Tensor, " batch"], exponent: int | None = None) -> None:
    """The backward of what `evaluate` gave, for the examples that are sound; in float16 with scaled gradients."""
    assert run.logits is not None
    total, logits = values[run.sound].sum(), run.logits
    run.logits = None
    if exponent is not None:
        _scaled_backward(run, total, logits, exponent)
    else:
        total.backward()


def run_batch(job: Job, readings: Sequence[Reading], rows: Sequence[int], *, within: Within | None = None) -> Run:
    """One batch through the model; where float16 overflows in the backward, again with smaller gradients.

    `within` puts the context that reads into another one that changes the backward.
    """
    first, *smaller = HALF_EXPONENTS if job.subject.dtype == torch.float16 else (None,)
    batch = begin(job, readings, rows).batch
    changed = {} if within is None else {"within": within}
    run = _attempt(job, readings, batch, first, **changed)
    for exponent in smaller:
        if not run.overflowed:
            break
        run = _attempt(job, readings, batch, exponent, **changed)
    return run


def _attempt(
    job: Job, readings: Sequence[Reading], batch: Batch, exponent: int | None, *, within: Within = lambda reads: reads
) -> Run:
    run = _begun(job, readings, batch)
    backward = any(r.method.reads == "gradient" for r in run.readings)
    with job.subject.scoring(recompute=job.recompute), torch.set_grad_enabled(backward), within(tapped(run)):
        values = evaluate(job, run)
        if backward:
            differentiate(run, values, exponent)
    return run


def _scaled_backward(run: Run, total: Tensor, logits: Tensor, exponent: int) -> None:
    """A backward in which every example's gradient is times a power of two, by which its readings are divided.

    It brings the example's largest gradient at the logits to between 2^(exponent - 1) and 2^exponent: small gradients
    would vanish in float16, whose smallest number is 2^-24. Dividing by it in float32 is exact.
    """
    (slope,) = torch.autograd.grad(total, logits)
    largest = torch.frexp(slope.abs().amax(dim=(1, 2))).exponent
    run.scale = torch.ldexp(torch.ones_like(slope[:, 0, 0]), (exponent - largest).clamp(-60, 60))
    logits.backward(slope * run.scale[:, None, None])


def _commit(job: Job, readings: Sequence[Reading], sums: Sequence[Sums], run: Run) -> None:
    """A finished batch's scores into the sums; examples that are not finite stop the pass or stay out."""
    assert run.sound is not None
    _weigh(job, readings, run)
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
    for (number, layer), reached in run.reached.items():
        routed = sums[number].routed
        assert routed is not None
        routed[:, layer].index_add_(0, groups, reached.cpu()[kept])
    for name, numbers in run.extra.items():
        for one in sums:
            table = one.extra.setdefault(name, torch.zeros(len(job.encoded), dtype=torch.float64))
            table[rows] = numbers.detach().cpu().double()[kept]
    for one in sums:
        one.counts.index_add_(0, groups, torch.ones_like(groups))
        one.tokens.index_add_(0, groups, real)
        one.scored[rows] = True


def _weigh(job: Job, readings: Sequence[Reading], run: Run) -> None:
    """Every example's score as its method wants it, given the objective's value and whether it is a control twin."""
    if all(reading.method.example is None for reading in readings):
        return
    assert run.values is not None
    first = job.num_groups if job.twins_from is None else job.twins_from
    twin = (job.groups[run.batch.rows] >= first).to(run.values.device)
    for (number, layer), score in run.found.items():
        weigh = readings[number].method.example
        if weigh is not None:
            run.found[number, layer] = weigh(score, run.values, twin)


def _all_sound(sound: Bool[Tensor, " batch"], batch: Batch, what: str) -> None:
    if not bool(sound.all()):
        raise NotFinite(what, batch.rows[~sound.cpu()].tolist())
