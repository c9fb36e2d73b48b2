"""Path methods: gradients averaged along a path of inputs or activations instead of taken at its end.

captum has integrated gradients and conductance as Layer classes. It keeps every step of an example in one batch and takes one
output per example; here a batch of examples walks the path together, several layers and fused projections at once, and every
layer's result is reduced to its neurons before the next batch. captum is the oracle in the tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.sites import Site, Tap
from ..neurons.subject import Subject
from .bounds import check_seed, check_whole, is_number
from .engine import HALF_EXPONENTS, Job, RunBatch, begin, differentiate, evaluate, one_pass
from .methods import Method, register_method
from .readings import Reading, Run, wide
from .sums import Sums

Rule = Literal["gausslegendre", "riemann_middle", "riemann_trapezoid"]
IgPath = Literal["joint", "layer"]
EmbeddingBaseline = Literal["zero", "mean"]
ConductanceRule = Literal["trapezoid", "left"]
SEED_BYTES = 6
TABLE_CHUNK = 2**26  # numbers of the embedding table that are in memory at once


@register_method("ig", reads="job")
def ig(job: Job, site: Site, *, steps: int = 16, rule: Rule = "gausslegendre", path: IgPath = "joint") -> Sums:
    """Integrated gradients of a neuron's activation, from silent to active.

        score(t) = w(t) * integral_0^1 dF/dw(t) at a*w da,     F the objective

    Sundararajan et al. 2017 (arXiv 1703.01365) Eq 1 with the activations of a layer as the input, as captum's
    LayerIntegratedGradients; the baseline is zero, which is what silencing a neuron means. `path="joint"` is captum's for a
    list of layers: every layer's activations are put at a times their own value together, so that a layer's gradient is its
    direct one, past the other layers' neurons, and the scores of all layers sum to F(intact) - F(site silenced in all layers).
    `path="layer"` moves one layer at a time while the layers above react; each layer's scores sum to F(intact) - F(that layer
    silenced). `origin["completeness_gap"]` is the mean over examples (and layers) of how far the sums are from that, beside
    `origin["completeness_change"]`, the mean size of what they should sum to.

    Cost: `steps` forwards and backwards and 2 forwards; with `path="layer"` that for each layer. Memory: twice the site's
    activations of a batch.
    """
    nodes = quadrature(rule, steps)
    if path not in ("joint", "layer"):
        raise ValueError(f"unknown path {path!r}; paths are joint, layer")
    return _scored(job, site, "ig", partial(_ig_batch, nodes=nodes, path=path))


@register_method("conductance", reads="job")
def conductance(
    job: Job,
    site: Site,
    *,
    steps: int = 16,
    rule: ConductanceRule = "trapezoid",
    baseline: EmbeddingBaseline = "mean",
) -> Sums:
    """Conductance: how much of the objective's change along a path of input embeddings flows through a neuron.

        score(t) = integral_0^1 dF/dw(t) * dw(t)/da da,     embeddings e0 + a * (e - e0)

    Dhamdhere et al. 2018 (arXiv 1805.12233) Eq 3. The baseline e0 is the `mean` over the vocabulary of what the embedding module
    gives, or `zero` (captum's default; a model whose first layer is a norm has no usable gradient there, which the gap shows). A
    step adds the gradient times the activation's change over that step: the mean of the gradients at both of its ends
    (`rule="trapezoid"`), or that at its start (`left`, captum's LayerConductance with method riemann_trapezoid).

    A layer's neurons are no cut of the network (the residual stream passes them), so their scores sum to no known change.
    `origin["completeness_gap"]` is therefore that of the path itself: the mean over examples of |sum over the embeddings of
    their own integrated gradients - (F(input) - F(baseline))|, and `completeness_change` the mean of |F(input) - F(baseline)|.

    Cost: `steps` + 1 forwards and backwards down to the embeddings.
    Memory: four times the site's activations of a batch.
    """
    _check_steps(steps)
    if rule not in ("trapezoid", "left"):
        raise ValueError(f"unknown rule {rule!r}; rules of conductance are trapezoid, left")
    place = embedding(job.subject)
    if baseline not in ("zero", "mean"):
        raise ValueError(f"unknown baseline {baseline!r}; baselines of conductance are zero, mean")
    start = mean_embedding(job.subject, place) if baseline == "mean" else torch.zeros(place.width)
    run = partial(_conductance_batch, place=place, start=start, steps=steps, trapezoid=rule == "trapezoid")
    return _scored(job, site, "conductance", run)


@register_method("smoothgrad", reads="job")
def smoothgrad(job: Job, site: Site, *, samples: int = 8, noise: float = 0.1, seed: int = 0) -> Sums:
    """Gradient times activation, averaged over Gaussian noise on the input embeddings.

        score(t) = 1/n sum_n g_n(t) * w_n(t),     embeddings e + noise * std(e) * N(0, 1)

    Smilkov et al. 2017 (arXiv 1706.03825) Eq 1, with `noise` relative to the standard deviation of the example's own embeddings
    (theirs: to the range of an image's values). Where a seed leads does not depend on batch, padding or order: an example's
    noise follows from `seed` and its tokens. Cost: `samples` forwards and backwards and 1 forward of the embeddings.
    """
    check_whole("samples", samples, least=1, of="how many draws of the noise to average")
    check_seed(seed)
    if not is_number(noise) or noise < 0:
        raise ValueError(f"noise is {noise!r}; expected a finite number of 0 or more")
    place = embedding(job.subject)
    return _scored(job, site, "smoothgrad", partial(_noisy_batch, place=place, samples=samples, noise=noise, seed=seed))


def quadrature(rule: str, steps: int) -> list[tuple[float, float]]:
    """(node, weight) of a rule on [0, 1], the weights summing to one. Raises ValueError for an unknown rule.

    captum's rules of the same names, but that the weights of its riemann_trapezoid sum to (steps - 1) / steps.
    """
    _check_steps(steps)
    if rule == "gausslegendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        places, weights = (1 + places) / 2, weights / 2
    elif rule == "riemann_middle":
        places, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    elif rule == "riemann_trapezoid" and steps > 1:
        places, weights = np.linspace(0, 1, steps), np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
    else:
        raise ValueError(
            f"cannot use rule {rule!r} with {steps} steps; rules are gausslegendre, riemann_middle, riemann_trapezoid "
            "(from 2 steps)"
        )
    return [(float(a), float(w)) for a, w in zip(places, weights, strict=True)]


def embedding(subject: Subject) -> Site:
    """The input embeddings as a site of one layer. Raises SiteError where the model has no table of them."""
    get = getattr(subject.model, "get_input_embeddings", None)
    module = get() if get is not None else None
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Module) or not isinstance(weight, Tensor):
        raise SiteError(
            f"{subject.name} ({type(subject.model).__name__}) has no input embeddings to put on a path or under noise; "
            "use a method that needs none (taylor, ig)"
        )
    return Site("embedding", (Tap(module, "embedding", "out", int(weight.shape[-1])),))


@contextmanager
def held(site: Site, put: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[dict[int, Tensor]]:
    """While the block runs, a forward leaves every layer's neurons in the dict; after a backward they have their gradients.

    `put` (layer, neurons) says what stands in their place; what is no part of a graph yet becomes a leaf.
    """
    found: dict[int, Tensor] = {}

    def through(x: Tensor, layer: int, tap: Tap) -> Tensor | None:
        if put is not None:
            x = put(layer, x)
        elif not torch.is_grad_enabled():
            found[layer] = x.detach().clone()
            return None
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
        if x.requires_grad:
            x.retain_grad()
        if layer not in found or not found[layer].requires_grad:  # a block may be computed again in the backward
            found[layer] = x
        return x.clone() if tap.side == "out" else x  # some families (Falcon) add to an output in place

    with ExitStack() as stack:
        for layer, tap in enumerate(site.taps):
            stack.enter_context(tap.attached(partial(through, layer=layer, tap=tap)))
        yield found


def _scored(job: Job, site: Site, name: str, run: RunBatch) -> Sums:
    """Sums of a method whose `run` gives the contribution of every token."""
    reading = Reading(Method(name, "gradient", as_it_is), site, job.tokens, job.keep_rows)
    return one_pass(job, [reading], checkpoint=job.checkpoint, run=run)[0]


def as_it_is(gradient: Tensor, activation: Tensor) -> Tensor:
    return gradient


def take_own(run: Run, layer: int, contribution: Tensor) -> None:
    run.scale = None  # the gradients in it have their own size already
    run.take([0], layer, contribution, contribution)


def backward_of(job: Job, run: Run) -> Float[Tensor, " batch"]:
    """A forward and a backward of the examples that are finite; the objective."""
    values = evaluate(job, run)
    differentiate(run, values, HALF_EXPONENTS[1] if job.subject.dtype == torch.float16 else None)
    return values.detach()


def _per_example(run: Run, part: Tensor) -> Float[Tensor, " batch"]:
    """Sum over an example's tokens and neurons, real tokens only, in float64."""
    part = part.reshape(*run.real.shape, -1)
    return part.masked_fill(~run.real[..., None], 0).sum(dim=(1, 2), dtype=torch.float64)


def _ig_batch(
    job: Job, readings: Sequence[Reading], rows: Sequence[int], *, nodes: list[tuple[float, float]], path: IgPath
) -> Run:
    run, site = begin(job, readings, rows), readings[0].site
    with job.subject.scoring(recompute=job.recompute):
        with torch.no_grad(), held(site) as active:
            intact = evaluate(job, run)
        gaps, changes = [], []
        together = [range(site.num_layers)] if path == "joint" else [[layer] for layer in range(site.num_layers)]
        for layers in together:
            part = Site(site.name, tuple(site.taps[layer] for layer in layers))
            full = [active[layer] for layer in layers]
            total, silent = _along(job, run, part, full, nodes)
            summed = torch.zeros_like(intact, dtype=torch.float64)
            for layer, mean in zip(layers, total, strict=True):
                contribution = active[layer].to(mean.dtype) * mean
                take_own(run, layer, contribution)
                summed += _per_example(run, contribution)
            change = (intact - silent).double()
            gaps.append((summed - change).abs())
            changes.append(change.abs())
    run.extra["completeness_gap"] = torch.stack(gaps).mean(dim=0)
    run.extra["completeness_change"] = torch.stack(changes).mean(dim=0)
    return run


def _along(
    job: Job, run: Run, site: Site, full: Sequence[Tensor], nodes: list[tuple[float, float]]
) -> tuple[list[Tensor], Float[Tensor, " batch"]]:
    """Weighted mean gradient of a site's layers along the straight path from zero, and the objective at its start."""
    total = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in full]
    for place, weight in nodes:
        with torch.enable_grad(), held(site, lambda layer, _x, place=place: full[layer] * place) as found:
            backward_of(job, run)
        for layer, mean in enumerate(total):
            mean.add_(gradient_of(run, found[layer]), alpha=weight)
    with torch.no_grad(), held(site, lambda layer, _x: torch.zeros_like(full[layer])):
        silent = evaluate(job, run)
    return total, silent


def _conductance_batch(
    job: Job,
    readings: Sequence[Reading],
    rows: Sequence[int],
    *,
    place: Site,
    start: Tensor,
    steps: int,
    trapezoid: bool,
) -> Run:
    run, site = begin(job, readings, rows), readings[0].site
    everything = Site("path", (*site.taps, *place.taps))  # the last one holds the embeddings
    embedded, ends = _embedded(job, run, place), []
    total, before = {}, {}
    base = start.to(embedded)
    for step in range(steps + 1):
        point = base + step / steps * (embedded - base)
        with (
            job.subject.scoring(recompute=job.recompute),
            torch.enable_grad(),
            held(place, lambda _layer, _x, point=point: point),
            held(everything) as found,
        ):
            ends.append(backward_of(job, run))
        now = {layer: (x.detach(), gradient_of(run, x)) for layer, x in found.items()}
        for layer, (x, gradient) in now.items():
            if not before:
                total[layer] = torch.zeros_like(gradient)
                continue
            old, old_gradient = before[layer]
            slope = (old_gradient + gradient) / 2 if trapezoid else old_gradient
            total[layer].addcmul_(slope, (x - old).to(slope.dtype))
        before = now
    for layer in range(site.num_layers):
        take_own(run, layer, total[layer])
    change = (ends[-1] - ends[0]).double()
    run.extra["completeness_gap"] = (_per_example(run, total[site.num_layers]) - change).abs()
    run.extra["completeness_change"] = change.abs()
    return run


def mean_embedding(subject: Subject, place: Site) -> Float[Tensor, " width"]:
    """Mean over the vocabulary of what the embedding module gives, which some families (Gemma) scale.

    Rows that are not finite stay out, so that only examples that use them are not finite.
    """
    module: Any = place.taps[0].module
    numbers = torch.arange(len(module.weight), device=subject.device)
    total, count = torch.zeros(place.width, dtype=torch.float64, device=subject.device), 0
    with subject.quiet(), torch.no_grad():
        for part in numbers.split(max(1, TABLE_CHUNK // place.width)):
            rows = module(part)
            sound = torch.isfinite(rows).all(dim=1)
            total += (rows if bool(sound.all()) else rows[sound]).sum(dim=0, dtype=torch.float64)
            count += int(sound.sum())
    return (total / count).to(torch.promote_types(subject.dtype, torch.float32))


def gradient_of(run: Run, x: Tensor) -> Tensor:
    """The gradient that a backward left, at least float32 and of its own size; zero where the objective does not look."""
    if x.grad is None:
        return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    gradient = wide(x.grad)
    if run.scale is None:
        return gradient
    scale = run.scale[:, None, None].to(x.device)
    return (gradient.reshape(len(run.scale), -1, x.shape[-1]) / scale).reshape(x.shape)


def _noisy_batch(
    job: Job, readings: Sequence[Reading], rows: Sequence[int], *, place: Site, samples: int, noise: float, seed: int
) -> Run:
    run, site = begin(job, readings, rows), readings[0].site
    embedded = _embedded(job, run, place)
    generators = [generator_of(job.encoded[row].ids, seed) for row in rows]
    total: dict[int, Tensor] = {}
    for _ in range(samples):
        point = embedded + noise * _drawn(run, embedded, generators)
        with (
            job.subject.scoring(recompute=job.recompute),
            torch.enable_grad(),
            held(place, lambda _layer, _x, point=point: point),
            held(site) as found,
        ):
            backward_of(job, run)
        for layer, x in found.items():
            part = gradient_of(run, x) * x.detach() / samples
            total[layer] = total[layer] + part if layer in total else part
    for layer, contribution in total.items():
        take_own(run, layer, contribution)
    return run


def _embedded(job: Job, run: Run, place: Site) -> Float[Tensor, "batch token width"]:
    """The embeddings of a batch, as their table gives them."""
    with job.subject.scoring(recompute=job.recompute), torch.no_grad():
        return place.taps[0].module(run.batch.input_ids.to(job.subject.device)).detach().clone()


def generator_of(ids: Sequence[int], seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}|{list(ids)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:SEED_BYTES], "big"))


def _drawn(
    run: Run, embedded: Float[Tensor, "batch token width"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "batch token width"]:
    """Noise of each example's own standard deviation on its real tokens, drawn example by example."""
    out = torch.zeros(embedded.shape)
    for row, generator in enumerate(generators):
        real = run.batch.real[row]
        spread = embedded[row][real.to(embedded.device)].float().std().cpu()
        out[row, real] = torch.randn((int(real.sum()), embedded.shape[-1]), generator=generator) * spread
    return out.to(embedded)


def _check_steps(steps: int) -> None:
    check_whole("steps", steps, least=1, of="how many points of the path to evaluate")
