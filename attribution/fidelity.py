"""Fidelity of scores: against exact ones on a sample of neurons, and by silencing in the order that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import library_versions
from ..neurons.scores import Scores
from ..neurons.sites import Site
from ..neurons.subject import Subject
from .attribute import attribute
from .encoding import encode_corpus, forward, plan_batches
from .engine import Job, begin
from .exact import evaluated, looped
from .fidelity_result import Fidelity
from .methods import method_named
from .objectives import ObjectiveName, objective_named, prepare
from .readings import Run

METHODS = ("taylor", "ig", "relp")
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def fidelity(
    subject: Subject,
    corpus: Corpus,
    *,
    methods: Sequence[str] = METHODS,
    site: str = "mlp",
    objective: ObjectiveName = "loss",
    sample: int = 128,
    shares: Sequence[float] = SHARES,
    controls: int = 3,
    held_out: Corpus | None = None,
    seed: int = 0,
    min_examples: int = 2,
    max_tokens: int = 4096,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fidelity:
    """How far methods' scores can be trusted on this subject, side by side.

    Two questions are asked of each method. Does it rank `sample` random neurons as their exact scores do (Spearman, signed, on the
    examples that were scored)? And does the order it gives all neurons hold on examples that it has not seen: how much worse do
    they become when the first neurons are silenced, and when all but the first are (deletion and insertion curves, Petsiuk et
    al. 2018, arXiv 1806.07421), beside `controls` random orders?

    Scored are the examples tagged `split: train`, held out those tagged `split: test`; another corpus can be held out by
    `held_out`. Without either, the scored ones are used again, which `origin["held_out"]` says. `shares` are the shares of the
    site's neurons at which the curves are measured, ascending. `options` are those of `attribute`. `progress(done, total)` counts
    passes over the held-out examples. Cost: the methods', `sample` forwards of each scored example, and
    2 * shares * (methods + controls) forwards of each held-out one.

    Raises CorpusError for a group too small or without held-out examples, ValueError for what is out of range.
    """
    _check(methods, shares, controls)
    if not isinstance(site, str):
        raise ValueError(f"site is {site!r}; fidelity measures one site, expected its name")
    scored = corpus.part("auto", auto="train")
    held, apart = _held_out(corpus, held_out, scored)
    common: Any = {
        "site": site, "objective": objective, "split": None, "min_examples": min_examples, "max_tokens": max_tokens
    }  # fmt: skip
    found = attribute(subject, scored, methods=list(methods), options=options, **common)
    truth = attribute(subject, scored, method="exact", options={"sample": sample, "seed": seed}, **common)
    neurons = evaluated(truth).mask.nonzero()
    place = neurons.unbind(dim=1)
    bench = _Bench.of(subject, held, truth.groups, subject.site(site), objective, max_tokens)
    shape = truth.values.shape
    orders = [_order(one.signed) for one in found.values()]
    orders += [_random_order(tuple(shape), seed + 1 + number) for number in range(controls)]
    total, done = len(orders) * len(shares) * 2, 0
    base = bench.values(None)
    curves = torch.zeros((2, len(orders), len(shares), len(held)))
    for o, order in enumerate(orders):
        for s, share in enumerate(shares):
            first = order < max(1, round(share * order[0].numel()))
            for kind, silenced in enumerate((first, ~first)):
                curves[kind, o, s] = bench.sign * (base - bench.values(silenced))
                done += 1
                if progress is not None:
                    progress(done, total)
    count, items = len(methods), {item: i for i, item in enumerate(dict.fromkeys(e.item for e in held))}
    return Fidelity(
        site, subject.fingerprint, objective, tuple(methods), truth.groups, torch.tensor(shares), neurons,
        exact=truth.signed[:, place[0], place[1]],
        scored=torch.stack([one.signed[:, place[0], place[1]] for one in found.values()]),
        group_index=bench.groups, item_index=torch.tensor([items[e.item] for e in held]), base=base.float(),
        deletion=curves[0, :count], insertion=curves[1, :count],
        control_deletion=curves[0, count:], control_insertion=curves[1, count:],
        origin={
            "corpus": corpus.name, "corpus_hash": scored.hash, "num_scored": len(scored), "held_out_hash": held.hash,
            "num_held_out": len(held), "held_out": apart, "sample": sample, "seed": seed, "controls": controls,
            "options": truth.origin["options"] | dict(options or {}), "gaps": _gaps(found), "versions": library_versions(),
        },
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Bench:
    """Held-out examples, ready to be evaluated with neurons silenced group by group."""

    job: Job
    site: Site
    groups: Int[Tensor, " example"]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, subject: Subject, held: Corpus, groups: tuple[str, ...], site: Site, objective: str, max_tokens: int
    ) -> _Bench:
        goal = objective_named(objective)
        encoded, contrasts = prepare(subject, held, encode_corpus(subject, held), goal)
        index = torch.tensor([groups.index(e.group) for e in held])
        job = Job(subject, encoded, index, len(groups), goal, contrasts, max_tokens=max_tokens)
        return cls(job, site, index, tuple(e.id for e in held))

    @property
    def sign(self) -> float:
        return -1.0 if self.job.objective.lower_is_better else 1.0

    def values(self, silenced: Bool[Tensor, "group layer neuron"] | None) -> Float[Tensor, " example"]:
        """The objective of every example with its group's neurons silenced."""
        out = torch.zeros(len(self.groups), dtype=torch.float64)
        with self.job.subject.scoring(), torch.no_grad(), looped(self.site):
            for run in self._runs():
                with ExitStack() as stack:
                    for layer, tap in enumerate(self.site.taps) if silenced is not None else ():
                        assert silenced is not None
                        mask = silenced[self.groups[run.batch.rows], layer]
                        if bool(mask.any()):
                            stack.enter_context(tap.attached(partial(_silence, mask=mask, run=run)))
                    logits = forward(self.job.subject, run.batch)
                values = self.job.objective.value(logits, run.batch, self.job.contrasts)
                out[run.batch.rows] = values.double().cpu()
        if not bool(torch.isfinite(out).all()):
            bad = [self.names[row] for row in (~torch.isfinite(out)).nonzero().flatten().tolist()]
            raise CorpusError(
                f"the objective {self.job.objective.name} of {len(bad)} held-out example(s) is not finite (NaN or Inf): "
                f"{', '.join(map(repr, bad[:5]))}; check the model's weights and dtype, or leave them out"
            )
        return out

    def _runs(self) -> Iterator[Run]:
        for rows in plan_batches(self.job.encoded, max_tokens=self.job.max_tokens):
            yield begin(self.job, (), rows)


def _silence(x: Tensor, *, mask: Bool[Tensor, "batch neuron"], run: Run) -> Tensor:
    wide = x.reshape(*run.real.shape, -1)
    return wide.masked_fill(mask.to(x.device)[:, None, :], 0).reshape(x.shape)


def _order(scores: Float[Tensor, "group layer neuron"]) -> Int[Tensor, "group layer neuron"]:
    """Each neuron's place in its group's order, the highest score first; ties fall to the lower layer and index."""
    flat = scores.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(flat).scatter_(1, flat, torch.arange(flat.shape[1]).expand_as(flat)).reshape(scores.shape)


def _random_order(shape: tuple[int, ...], seed: int) -> Int[Tensor, "group layer neuron"]:
    return _order(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))


def _gaps(found: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Completeness gap and change of the methods that have them."""
    told = ("completeness_gap", "completeness_change")
    return {name: {key: one.origin[key] for key in told} for name, one in found.items() if told[0] in one.origin}


def _held_out(corpus: Corpus, held_out: Corpus | None, scored: Corpus) -> tuple[Corpus, bool]:
    """The examples for the curves, and whether they are others than those scored."""
    if held_out is None and "test" not in corpus.splits:
        return scored, False
    held = corpus.only(split="test") if held_out is None else held_out
    for group in scored.groups:
        if group not in held.groups:
            raise CorpusError(
                f"group {group!r} has no held-out example; hold out examples of every group that is scored"
            )
    return held.only(scored.groups), True


def _check(methods: Sequence[str], shares: Sequence[float], controls: int) -> None:
    if not methods or len(set(methods)) < len(methods) or isinstance(methods, str):
        raise ValueError(f"methods is {methods!r}; expected the names of one method or more, each once")
    for name in methods:
        if method_named(name).name == "exact":
            raise ValueError("'exact' is what methods are held against; leave it out of methods")
    rising = all(a < b for a, b in pairwise(shares))
    if not shares or not rising or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(f"shares is {list(shares)}; expected shares of the neurons above 0 and up to 1, ascending")
    if controls < 1:
        raise ValueError(f"controls is {controls}; expected how many random orders to compare with, 1 or more")
