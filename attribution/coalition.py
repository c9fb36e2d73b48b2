"""Coalition: a neuron's effect while many of the neurons that do the same are silent, so that none hides behind another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons.sites import Site
from .bounds import check_seed, check_whole, is_number
from .engine import Job, RunBatch, begin, one_pass
from .methods import Method, register_method
from .paths import _as_it_is, _backward, _generator, _gradient, _take, held
from .readings import Reading, Run
from .selection import specificity
from .sums import Sums


@register_method("coalition", reads="job")
def coalition(
    job: Job,
    site: Site,
    *,
    draws: int = 8,
    warm: int = 4,
    candidates: float = 0.03,
    off: float = 0.8,
    seed: int = 0,
) -> Sums:
    """Gradient times activation, averaged over random coalitions in which most of the group's likely neurons are silent.

        score = 1/n sum_m sum_t dF/dw'(t) at w' = m * w(t), times w(t),     F the objective

    w is what the neuron would do in that run; m silences, for each example, each of its group's candidates with probability
    `off` and no other neuron. The first-order effect of a neuron in the intact model vanishes where others say the same (the
    loss is saturated, or they are redundant); beside silent ones it shows. It is a first-order estimate of a Banzhaf value
    over coalitions of the candidates (Banzhaf 1965; semivalues). This project's own; docs/calibration.md says what it finds.

    The candidates are the `candidates` share of the site's neurons of a group whose mean positive part is largest beside the
    mean absolute score of the other groups. They are found in the intact model and anew in `warm` passes of one coalition
    each. An example's coalitions follow from `seed` and its tokens. Control twins are scored beside the candidates
    of their own group. Cost: 1 + `warm` + `draws` forwards and backwards. Memory: twice the site's activations of a batch.
    """
    check_whole("draws", draws, least=1, of="how many coalitions to average")
    check_whole("warm", warm, least=0, of="how many passes to look for candidates")
    check_seed(seed)
    for name, value in (("candidates", candidates), ("off", off)):
        if not is_number(value) or not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}; expected a share above 0, up to 1")
    reading = Reading(Method("coalition", "gradient", _as_it_is), site, job.tokens, keep_rows=False)
    count = max(1, round(candidates * site.num_layers * site.width))
    alone = replace(job, keep_rows=False, progress=None)
    none = torch.zeros((job.num_groups, site.num_layers, site.width), dtype=torch.bool)
    sums = one_pass(alone, [reading], run=_run(none, off=off, draws=(0,), seed=seed))[0]
    for number in range(warm):
        chosen = _candidates(job, sums, count)
        found = one_pass(alone, [reading], run=_run(chosen, off=off, draws=(number,), seed=seed))[0]
        for mine, more in zip((sums.absolute, sums.signed), (found.absolute, found.signed), strict=True):
            mine += more
    chosen = _candidates(job, sums, count)
    draw = tuple(range(warm, warm + draws))
    last = replace(reading, keep_rows=job.keep_rows)
    return one_pass(job, [last], checkpoint=job.checkpoint, run=_run(chosen, off=off, draws=draw, seed=seed))[0]


def _candidates(job: Job, sums: Sums, count: int) -> Bool[Tensor, "group layer neuron"]:
    """The neurons of each group that matter most to it beside the other groups; of a twin's group those of its question's."""
    real = job.num_groups if job.twins_from is None else job.twins_from
    values, signed, _ = sums.means()
    found = torch.zeros(values.shape, dtype=torch.bool)
    share = specificity((values[:real] + signed[:real]) / 2, values[:real]).flatten(1)
    found[:real] = torch.zeros_like(share, dtype=torch.bool).scatter_(1, share.topk(count).indices, True).reshape(
        real, *values.shape[1:]
    )  # fmt: skip
    for twin in range(real, job.num_groups):
        found[twin] = found[twin - real]
    return found


def _run(chosen: Bool[Tensor, "group layer neuron"], *, off: float, draws: Sequence[int], seed: int) -> RunBatch:
    return partial(_batch, chosen=chosen, off=off, draws=draws, seed=seed)


def _batch(
    job: Job, readings: Sequence[Reading], rows: Sequence[int], *, chosen: Bool[Tensor, "group layer neuron"],
    off: float, draws: Sequence[int], seed: int,
) -> Run:  # fmt: skip
    run, site = begin(job, readings, rows), readings[0].site
    total: dict[int, Tensor] = {}
    for draw in draws:
        silent = _silent(job, run, chosen, off=off, seed=seed + 7919 * draw)
        for layer, part in _contributions(job, run, site, silent).items():
            total[layer] = total[layer] + part if layer in total else part
    for layer in sorted(total):
        _take(run, layer, total[layer] / len(draws))
    return run


def _silent(
    job: Job, run: Run, chosen: Bool[Tensor, "group layer neuron"], *, off: float, seed: int
) -> Bool[Tensor, "batch layer neuron"]:
    """Which candidates each example of a batch goes without; the same whatever batch it stands in."""
    masks = []
    for row in run.batch.rows.tolist():
        own = chosen[job.groups[row]]
        masks.append(own & (torch.rand(own.shape, generator=_generator(job.encoded[row].ids, seed)) < off))
    return torch.stack(masks)


def _contributions(
    job: Job, run: Run, site: Site, silent: Bool[Tensor, "batch layer neuron"]
) -> dict[int, Float[Tensor, "*token neuron"]]:
    """Gradient at what is left after silencing, times what the neuron would have done."""
    full: dict[int, Tensor] = {}

    def put(layer: int, x: Tensor) -> Tensor:
        if layer not in full:
            full[layer] = x.detach()
        wide = x.reshape(*run.real.shape, -1)
        return wide.masked_fill(silent[:, layer].to(x.device)[:, None], 0).reshape(x.shape)

    with job.subject.scoring(recompute=job.recompute), torch.enable_grad(), held(site, put) as left:
        _backward(job, run)
    return {layer: _gradient(run, x) * full[layer] for layer, x in left.items()}
