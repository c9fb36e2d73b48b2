"""Along an axis: layer sweeps, which ablate one layer's share of a set at a time, and dose-response curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..attribution.encoding import Batch, forward
from ..attribution.reuse import noting, of_rows, reusable_blocks, reusing, same
from ..attribution.selection import select
from ..corpora.examples import Corpus
from ..neurons.errors import SetError
from ..neurons.interventions import Kind, References, intervene
from ..neurons.positions import On
from ..neurons.scores import Scores
from ..neurons.subject import Subject
from .ablate import Bench, Progress, Sets, parts_of, sizes_to_match, split_of
from .controls import Drawing, Match, Parts
from .curves import Axis, Curve
from .metrics import Asking, Losses, Metric, metric_named

DOSES = (0.001, 0.003, 0.01, 0.03, 0.1)


def layer_sweep(
    subject: Subject,
    corpus: Corpus,
    sets: Sets,
    *,
    kind: Kind = "zero",
    metric: str | Metric = "accuracy",
    on: On = "both",
    controls: int = 5,
    match: Match = "layer",
    scores: Scores | Sequence[Scores] | None = None,
    twins: bool = False,
    seed: int = 0,
    reference: References | None = None,
    factor: float = 2.0,
    split: str | None = "auto",
    max_tokens: int = 4096,
    reuse: bool = True,
    owners: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Curve:
    """What each layer's share of a set does when it alone is ablated, beside the same layer of the set's controls.

    The other arguments are those of `ablate`. With `reuse`, metrics of the answer's loss (`loss`, `loss_all`, `perplexity`,
    `probability`) run the layers below the ablated one once a batch and use their output again, where a trial shows that
    this gives the same losses. A layer without neurons of the set is not run.

    Raises SetError for `keep`, which silences every layer, and what `ablate` raises.
    """
    if kind == "keep":
        raise SetError("kind 'keep' silences every layer; a layer sweep takes zero, mean, scale, resample or noise")
    chosen, asked = parts_of(subject, sets), corpus.part(split, auto="test")
    measured, steps = metric_named(metric), tuple(range(subject.num_layers))
    drawing = Drawing(_unshared(match), seed, sizes_to_match(subject, corpus, chosen, match=match, scores=scores))
    whole = {
        name: [parts, *(drawing.control(chosen, name=name, repeat=r) for r in range(controls))]
        for name, parts in chosen.items()
    }
    jobs = [
        tuple(part.layers([layer]) for part in parts) for each in whole.values() for layer in steps for parts in each
    ]
    bench = Bench(
        subject, asked, measured, Asking(max_tokens, on=on), twins=twins, kind=kind, factor=factor,
        reference=reference, on=on, seed=seed,
    )  # fmt: skip
    base = bench.values(None)
    found = None
    if reuse and isinstance(bench.measure, Losses):
        found = _reused(bench, bench.measure, jobs, [layer for _ in chosen for layer in steps for _ in range(1 + controls)],
                        progress)  # fmt: skip
    reused = found is not None
    if found is None:
        found = _one_by_one(bench, base, jobs, progress)
    sized = {name: [tuple(p.layers([layer]) for p in parts) for layer in steps] for name, parts in chosen.items()}
    origin = {"controls": controls, "match": match, "split": split_of(corpus, split), "reused": reused}
    return _curve(bench, "layer", steps, sized, base, found, controls, origin, owners)


def dose_response(
    subject: Subject,
    corpus: Corpus,
    scores: Scores,
    *,
    doses: Sequence[float] = DOSES,
    groups: Sequence[str] | None = None,
    contrast: str | None = "others",
    by: str = "values",
    kind: Kind = "zero",
    metric: str | Metric = "accuracy",
    on: On = "both",
    controls: int = 5,
    match: Match = "layer",
    twins: bool = False,
    seed: int = 0,
    reference: References | None = None,
    factor: float = 2.0,
    split: str | None = "auto",
    max_tokens: int = 4096,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
) -> Curve:
    """What the top share of a group's neurons does when it is ablated, for growing shares, beside matched controls.

    `doses` are shares of the site's neurons; `contrast` and `by` are those of `select`; `groups` are those whose sets are
    ablated, by default all. The other arguments are those of `ablate`.

    Raises SetError when doses do not ascend or do not lie between 0 and 1, and what `ablate` raises.
    """
    if not doses or list(doses) != sorted(set(doses)) or not 0 < doses[0] <= doses[-1] <= 1:
        raise SetError(
            f"doses are {list(doses)}; expected ascending shares above 0 and at most 1, such as 0.001, 0.01, 0.1"
        )
    names = list(groups or scores.groups)
    for name in names:
        scores.index(name)
    sized: dict[str, list[Parts]] = {name: [] for name in names}
    for dose in doses:
        picked = select(scores, top=float(dose), contrast=contrast, by=by)  # pyright: ignore[reportArgumentType]
        for name, parts in parts_of(subject, {name: picked[name] for name in names}).items():
            sized[name].append(parts)
    asked = corpus.part(split, auto="test")
    sizes = sizes_to_match(subject, corpus, {name: each[0] for name, each in sized.items()}, match=match, scores=scores)
    drawing = Drawing(_unshared(match), seed, sizes)
    bench = Bench(
        subject, asked, metric_named(metric), Asking(max_tokens, max_new_tokens, on=on), twins=twins, kind=kind,
        factor=factor, reference=reference, on=on, seed=seed,
    )  # fmt: skip
    jobs = [
        job
        for name, each in sized.items()
        for parts in each
        for job in (parts, *(drawing.control({name: parts}, name=name, repeat=r) for r in range(controls)))
    ]
    base = bench.values(None)
    found = _one_by_one(bench, base, jobs, progress)
    origin = {
        "controls": controls, "match": match, "split": split_of(corpus, split), "contrast": contrast, "by": by,
        "method": scores.method, "objective": scores.objective, "expect": "better" if kind == "keep" else "worse",
    }  # fmt: skip
    return _curve(bench, "dose", [float(dose) for dose in doses], sized, base, found, controls, origin, None)


def _unshared(match: str) -> str:
    if match == "groups":
        raise SetError("match='groups' does not go along an axis; match by layer, activation or score")
    return match


def _one_by_one(bench: Bench, base: Tensor, jobs: Sequence[Parts], progress: Progress | None) -> Tensor:
    """The metric under every job [job, question]; an empty set changes nothing and is not run (unless it is kept)."""
    found = []
    for done, neurons in enumerate(jobs, start=1):
        idle = bench.how["kind"] != "keep" and not any(map(bool, neurons))
        found.append(base if idle else bench.values(neurons))
        if progress is not None:
            progress(done, len(jobs))
    return torch.stack(found)


def _reused(
    bench: Bench, losses: Losses, jobs: Sequence[Parts], layers: Sequence[int], progress: Progress | None
) -> Tensor | None:
    """The same, running of every job only the layers from its own on; None where that is not to be had."""
    subject = bench.subject
    blocks = reusable_blocks(subject)
    sums = torch.zeros((len(jobs), len(losses.lengths)), dtype=torch.float64)
    with subject.scoring(), torch.no_grad():
        for number, batch in enumerate(losses.batches, start=1):
            outputs: list[Any] = []
            with noting(blocks, outputs):
                intact = losses.of_batch(batch, forward(subject, batch))
            if not len(outputs) == len(blocks) > 0 or not all(of_rows(one, len(batch.rows)) for one in outputs):
                return None
            if not same(_again(losses, batch, blocks[:-1], outputs), intact, subject.dtype):
                return None
            for job, (neurons, layer) in enumerate(zip(jobs, layers, strict=True)):
                if any(map(bool, neurons)):
                    found = _again(losses, batch, blocks[:layer], outputs, bench=bench, neurons=neurons)
                else:
                    found = intact
                sums[job, batch.rows] = found
            if progress is not None:
                progress(number, len(losses.batches))
    return torch.stack([losses.finished(one) for one in sums]).float()


def _again(
    losses: Losses,
    batch: Batch,
    blocks: Sequence[Any],
    outputs: Sequence[Any],
    *,
    bench: Bench | None = None,
    neurons: Parts = (),
) -> Tensor:
    """A batch's losses, these layers left out, under an intervention where a bench is given."""
    with ExitStack() as stack:
        if blocks:
            stack.enter_context(reusing(blocks, outputs, 1))
        if bench is not None:
            stack.enter_context(intervene(bench.subject, neurons, **bench.how))
        return losses.of_batch(batch, forward(losses.subject, batch))


def _curve(
    bench: Bench,
    axis: Axis,
    steps: Sequence[float],
    sized: Mapping[str, Sequence[Parts]],
    base: Tensor,
    found: Tensor,
    controls: int,
    origin: Mapping[str, Any],
    owners: Mapping[str, str] | None,
) -> Curve:
    """A curve from the values of every set, step and (first the set itself, then) control [job, question]."""
    table = found.reshape(len(sized) * len(steps), 1 + controls, len(base))
    flat = {
        f"{name} {axis} {step:g}": parts
        for name, each in sized.items()
        for step, parts in zip(steps, each, strict=True)
    }
    whose = {key: (owners or {}).get(name, name) for name in sized for key in (f"{name} {axis} {s:g}" for s in steps)}
    effects = bench.effects(flat, base, table[:, 0], table[:, 1:], {"axis": axis, **origin}, whose)
    return Curve(axis, tuple(sized), tuple(steps), effects)
