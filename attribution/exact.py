"""Exact scores: what silencing a neuron truly does to the objective, for as many neurons as can be paid for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.sites import Site
from ..neurons.subject import Subject
from .bounds import check_seed
from .encoding import Batch
from .engine import Job, begin, evaluate, one_pass
from .methods import Method, register_method
from .readings import Reading, Run
from .reuse import noting, of_rows, reusable_blocks, reusing, same
from .sums import Sums

Within = Literal["layer", "site"]
NOBODY = torch.tensor([-1])  # in the place of a neuron: nothing is silenced


@register_method("exact", reads="job", tokens="sum")
def exact(
    job: Job,
    site: Site,
    *,
    neurons: NeuronSet | None = None,
    sample: int = 256,
    within: Within = "site",
    seed: int = 0,
    reuse: bool = True,
) -> Sums:
    """F(intact) - F(the neuron silenced at every token), signed as everywhere: positive where silencing makes F worse.

    The definition that first-order scores approximate (Leng & Xiong, arXiv 2407.06488, Eq 4; FuxiTranyu Eq 1). Scored are
    `neurons`, or a sample of them without replacement: `sample` of the site, or of each layer with `within="layer"`. The other
    neurons' scores are zero and mean nothing; `origin["evaluated"]` lists those that count, `evaluated(scores)` is their set.

    A forward takes many neurons at once: its rows are examples times neurons, each with its own neuron silenced. With `reuse`,
    layers below the neuron's are run once a batch and their output is used again; every such forward has rows with nothing
    silenced to check that, and where they differ from the whole model's the whole model is run.

    Where the effect is smaller than the rounding of the objective (about 1e-5 nats at logits of 100 in float32), the score is
    zero or noise; a float64 subject resolves it.

    Cost: one row of a forward, from the neuron's layer up, for each example and neuron.
    """
    chosen = _chosen(job.subject, site, neurons, sample=sample, within=within, seed=seed)
    reading = Reading(Method("exact", "gradient", _unused), site, "sum", job.keep_rows)
    run = partial(_exact_batch, chosen=chosen, reuse=reuse)
    sums = one_pass(job, [reading], checkpoint=job.checkpoint, run=run)[0]
    sums.extra["evaluated"] = {str(layer): indices for layer, indices in chosen.items()}
    return sums


def evaluated(scores: Scores) -> NeuronSet:
    """The neurons that exact scores say something about. Raises SetError for scores of another method."""
    if "evaluated" not in scores.origin:
        raise SetError(f"scores of method {scores.method!r} are of every neuron; only 'exact' evaluates some")
    mask = torch.zeros(scores.values.shape[1:], dtype=torch.bool)
    for layer, indices in scores.origin["evaluated"].items():
        mask[int(layer), indices] = True
    return NeuronSet(scores.site, scores.subject, mask, {"made": "evaluated", "sample": len(mask.nonzero())})


def _chosen(
    subject: Subject, site: Site, neurons: NeuronSet | None, *, sample: int, within: str, seed: int
) -> dict[int, list[int]]:
    """Neuron indices by layer."""
    check_seed(seed)
    if neurons is not None:
        if not isinstance(neurons, NeuronSet):
            raise SetError(f"neurons is a {type(neurons).__name__}; expected a NeuronSet of site {site.name!r}")
        if neurons.site != site.name:
            raise SetError(f"neurons are of site {neurons.site!r}, scored is {site.name!r}; score the set's own site")
        neurons.check(subject)
        if not neurons:
            raise SetError("neurons is an empty set; expected the neurons to score")
        return neurons.to_indices()
    if within not in ("layer", "site"):
        raise ValueError(f"unknown within {within!r}; a sample is taken within 'layer' or 'site'")
    shape = (site.num_layers, site.width)
    room = site.width if within == "layer" else site.num_layers * site.width
    if isinstance(sample, bool) or not isinstance(sample, int) or not 1 <= sample <= room:
        raise ValueError(f"sample is {sample!r}; expected 1 to {room}, the neurons of a {within}")
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(shape, dtype=torch.bool)
    if within == "site":
        mask.view(-1)[torch.randperm(room, generator=generator)[:sample]] = True
    else:
        for layer in range(site.num_layers):
            mask[layer, torch.randperm(room, generator=generator)[:sample]] = True
    return NeuronSet(site.name, subject.fingerprint, mask).to_indices()


def _exact_batch(
    job: Job, readings: Sequence[Reading], rows: Sequence[int], *, chosen: dict[int, list[int]], reuse: bool
) -> Run:
    run, site = begin(job, readings, rows), readings[0].site
    count, length = run.batch.input_ids.shape
    together = max(1, job.max_tokens // (count * length))  # neurons in one forward
    with job.subject.scoring(), torch.no_grad(), looped(site):
        blocks = reusable_blocks(job.subject) if reuse else []
        outputs: list[Any] = []
        with noting(blocks, outputs):
            intact = evaluate(job, run)
        usable = len(outputs) == len(blocks) > 0 and all(of_rows(output, count) for output in outputs)
        for layer in range(site.num_layers):
            found = intact.new_zeros((count, site.width))
            indices = torch.tensor(chosen.get(layer, []), dtype=torch.long)
            for part in indices.split(together) if len(indices) else ():
                values = None
                if usable and layer > 0:
                    with reusing(blocks[:layer], outputs, 1 + len(part)):
                        values = _values(job, run, site, layer, torch.cat([NOBODY, part]))
                    usable = same(values[:, 0], intact, job.subject.dtype)
                    values = values[:, 1:] if usable else None
                if values is None:
                    values = _values(job, run, site, layer, part)
                found[:, part.to(found.device)] = run.sign * (intact[:, None] - values)
            run.found[0, layer] = found
    return run


@contextmanager
def looped(site: Site) -> Iterator[None]:
    """While the block runs, experts compute by the loop that edits need, so that what is intact differs by nothing else."""
    with ExitStack() as stack:
        for tap in site.taps:
            if tap.routed is not None:
                stack.enter_context(tap.attached_routed(lambda _x, _expert, _tokens: None))
        yield


def _values(
    job: Job, run: Run, site: Site, layer: int, neurons: Int[Tensor, " neuron"]
) -> Float[Tensor, "batch neuron"]:
    """The objective of every example with each of these neurons of a layer silenced (-1: with none)."""
    count = len(run.batch.rows)
    wide = replace(run, batch=_repeated(run.batch, len(neurons)), sound=None)
    silence = partial(_silence, batch=wide.batch, neurons=neurons.repeat(count))
    with site.taps[layer].attached(silence):
        values = evaluate(job, wide).reshape(count, len(neurons))
    assert run.sound is not None
    run.sound = run.sound & torch.isfinite(values).all(dim=1)
    return values


def _silence(x: Tensor, *, batch: Batch, neurons: Int[Tensor, " row"]) -> Tensor:
    """Each row of a batch with its own neuron at zero (-1: with none)."""
    rows = (neurons >= 0).nonzero().flatten()
    flat = x.reshape(*batch.input_ids.shape, -1).clone()
    flat[rows.to(x.device), :, neurons[rows].to(x.device)] = 0
    return flat.reshape(x.shape)


def _repeated(batch: Batch, times: int) -> Batch:
    """Every row of a batch so many times, one beside the other."""
    names = ["rows", "input_ids", "real", "targets"] + ([] if isinstance(batch.keep, int) else ["keep"])
    return replace(batch, **{name: getattr(batch, name).repeat_interleave(times, dim=0) for name in names})


def _unused(gradient: Tensor, activation: Tensor) -> Tensor:
    raise AssertionError("exact scores are not read from a backward")
