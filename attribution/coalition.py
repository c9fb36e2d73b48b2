"""Coalition: a neuron's effect while many of the neurons that do the same are silent, so that none hides behind another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons.sites import Site
from .bounds import check_seed, check_whole, is_number
from .engine import Job, begin, one_pass
from .methods import Method, register_method
from .paths import as_it_is, backward_of, generator_of, gradient_of, held, take_own
from .readings import Reading, Run
from .selection import specificity
from .sums import Sums

STRIDE = 7919  # between the seeds of draws


@register_method("coalition", reads="job")
def coalition(
    job: Job,
    site: Site,
    *,
    draws: int = 12,
    candidates: float = 0.015,
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
    mean absolute score of the other groups (`specificity`), in the intact model and in the coalitions so far. An example's
    coalitions follow from `seed` and its tokens. Control twins are scored beside the candidates of their own group.

    Cost: 1 + `draws` forwards and backwards. Memory: twice the site's activations of a batch.
    """
    check_whole("draws", draws, least=1, of="how many coalitions to average")
    check_seed(seed)
    for name, value in (("candidates", candidates), ("off", off)):
        if not is_number(value) or not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}; expected a share above 0, up to 1")
    reading = Reading(Method("coalition", "gradient", as_it_is), site, job.tokens, job.keep_rows)
    count = max(1, round(candidates * site.num_layers * site.width))

    def scored(silent: Bool[Tensor, "group layer neuron"] | None, draw: int) -> Sums:
        state = job.checkpoint.part(f"draw{draw}") if job.checkpoint is not None else None
        run = partial(_batch, chosen=silent, off=off, seed=seed + STRIDE * draw)
        return one_pass(job, [reading], checkpoint=state, run=run)[0]

    intact, total = scored(None, 0), None
    for draw in range(1, draws + 1):
        sums = scored(_candidates(job, intact, total, count), draw)
        total = sums if total is None else _added(total, sums)
    assert total is not None
    for tensor in (total.absolute, total.signed, total.squares, total.rows):
        if tensor is not None:
            tensor /= draws
    return total


def _added(total: Sums, more: Sums) -> Sums:
    for name in ("absolute", "signed", "squares", "rows"):
        if getattr(total, name) is not None:
            getattr(total, name).add_(getattr(more, name))
    total.scored.logical_and_(more.scored)
    return total


def _candidates(job: Job, intact: Sums, total: Sums | None, count: int) -> Bool[Tensor, "group layer neuron"]:
    """The most specific neurons of each group so far; of a twin's group those of its question's."""
    real = job.num_groups if job.twins_from is None else job.twins_from
    values, signed, _ = intact.means()
    if total is not None:
        more, also, _ = total.means()
        values, signed = values + more, signed + also
    share = specificity((values[:real] + signed[:real]) / 2, values[:real]).flatten(1)
    chosen = torch.zeros_like(share, dtype=torch.bool).scatter_(1, share.topk(count).indices, True)
    chosen = chosen.reshape(real, *values.shape[1:])
    return chosen[torch.arange(job.num_groups) % real]


def _batch(
    job: Job, readings: Sequence[Reading], rows: Sequence[int], *, chosen: Bool[Tensor, "group layer neuron"] | None,
    off: float, seed: int,
) -> Run:  # fmt: skip
    run, site = begin(job, readings, rows), readings[0].site
    silent = None if chosen is None else _silent(job, run, chosen, off=off, seed=seed)
    for layer, part in _contributions(job, run, site, silent).items():
        take_own(run, layer, part)
    return run


def _silent(
    job: Job, run: Run, chosen: Bool[Tensor, "group layer neuron"], *, off: float, seed: int
) -> Bool[Tensor, "batch layer neuron"]:
    """Which candidates each example of a batch goes without; the same whatever batch it stands in."""
    masks = []
    for row in run.batch.rows.tolist():
        own = chosen[job.groups[row]]
        masks.append(own & (torch.rand(own.shape, generator=generator_of(job.encoded[row].ids, seed)) < off))
    return torch.stack(masks)


def _contributions(
    job: Job, run: Run, site: Site, silent: Bool[Tensor, "batch layer neuron"] | None
) -> dict[int, Float[Tensor, "*token neuron"]]:
    """Gradient at what is left after silencing, times what the neuron would have done."""
    full: dict[int, Tensor] = {}

    def put(layer: int, x: Tensor) -> Tensor:
        if layer not in full:
            full[layer] = x.detach()
        if silent is None:
            return x
        wide = x.reshape(*run.real.shape, -1)
        return wide.masked_fill(silent[:, layer].to(x.device)[:, None], 0).reshape(x.shape)

    with job.subject.scoring(recompute=job.recompute), torch.enable_grad(), held(site, put) as left:
        backward_of(job, run)
    return {layer: gradient_of(run, x) * full[layer] for layer, x in left.items()}
