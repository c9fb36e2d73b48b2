"""The figures of a calibration as they come in, plant by plant."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.rankings import RANKINGS
from ..neurons.subject import Subject
from .calibration_result import PLACES, Calibration
from .calibration_scores import (
    CORRECTIONS,
    METRICS,
    Options,
    false_positives,
    measured,
    scored,
    shuffled_groups,
)
from .cost import counted
from .plants import Plant
from .training import Progress

SCORING = 25  # steps of the progress that scoring one method counts for


class Bar:
    """Progress over plants, each of which is a number of steps."""

    def __init__(self, progress: Progress | None, steps: Sequence[int]) -> None:
        self.progress, self.steps, self.plant, self.done = progress, steps, 0, 0

    def to(self, done: int, _total: int = 0) -> None:
        """So many steps of this plant are done."""
        self.done = min(done, self.steps[self.plant])
        if self.progress is not None:
            self.progress(sum(self.steps[: self.plant]) + self.done, sum(self.steps))

    def add(self, steps: int) -> None:
        self.to(self.done + steps)

    def next(self) -> None:
        """This plant is done."""
        self.to(self.steps[self.plant])
        self.plant, self.done = min(self.plant + 1, len(self.steps) - 1), 0


class Table:
    """Figures as they come in, plant by plant."""

    def __init__(
        self, methods: Sequence[str], variants: Sequence[str], seeds: Sequence[int], layers: int, groups: int,
        counts: Int[Tensor, " k"],
    ) -> None:  # fmt: skip
        self.methods, self.variants, self.seeds, self.counts = tuple(methods), tuple(variants), tuple(seeds), counts
        v, s, m, r = len(variants), len(seeds), len(methods), len(RANKINGS)
        self.values = _nan(len(METRICS), v, s, m, r, groups)
        self.by_layer = _nan(len(METRICS), v, s, m, r, layers)
        self.found, self.false_finds = _nan(v, s, m, r, len(counts)), _nan(v, s, m, r, layers)
        self.planted = torch.zeros(v, s, groups, dtype=torch.long)
        self.false_positives = _nan(len(PLACES), len(CORRECTIONS), s, m)
        self.seconds, self.forwards = _nan(v, s, m), _nan(v, s, m)
        self.plants: list[dict[str, Any]] = []

    def note(self, v: int, s: int, made: Plant) -> None:
        """What a plant is, whether it holds, and how many neurons are its truth."""
        self.planted[v, s, : len(made.groups)] = torch.tensor([len(one) for one in made.truth.values()])
        self.plants.append(
            {
                "variant": self.variants[v], "seed": self.seeds[s], "holds": made.proof.holds,
                "failures": list(made.proof.failures), "proof": asdict(made.proof), "steps": len(made.delta.history),
                "forwards": made.delta.origin.get("forwards"), "planted": made.subject.fingerprint,
            }
        )  # fmt: skip

    def score(self, v: int, s: int, made: Plant, options: Options, bar: Bar) -> None:
        """Hold every method against the truth."""
        corpus, truth = made.facts.only(split="train"), torch.stack([one.mask for one in made.truth.values()])
        site = next(iter(made.truth.values())).site
        made.subject.site(site)  # resolved and checked once, which is no part of a method's cost
        for m, method in enumerate(self.methods):
            start = time.perf_counter()
            with counted(made.subject) as forwards:
                scores = scored(made.subject, corpus, method, site=site, options=options)
            self.seconds[v, s, m], self.forwards[v, s, m] = time.perf_counter() - start, forwards[0]
            found = measured(scores, truth[[made.groups.index(group) for group in scores.groups]], self.counts)
            rows = slice(0, len(made.groups))
            self.values[:, v, s, m, :, rows] = found.values
            self.by_layer[:, v, s, m], self.found[v, s, m] = found.by_layer, found.found
            self.false_finds[v, s, m] = found.false_finds
            bar.add(SCORING)

    def check(self, s: int, made: Plant, blank: Subject, options: Options, draws: int, bar: Bar) -> None:
        """Look for what is not there: with labels shuffled, and with random weights."""
        corpus, site = made.facts.only(split="train"), next(iter(made.truth.values())).site
        places = ((made.subject, shuffled_groups(corpus, self.seeds[s])), (blank, corpus))
        for m, method in enumerate(self.methods):
            for place, (subject, rows) in enumerate(places):
                self.false_positives[place, :, s, m] = false_positives(
                    subject, rows, method, site=site, options=options, draws=draws, seed=self.seeds[s]
                )
                bar.add(SCORING)

    def result(
        self, subject: Subject, site: str, deletion: Float[Tensor, " method"], origin: Mapping[str, Any]
    ) -> Calibration:
        return Calibration(
            subject.fingerprint, site, self.methods, RANKINGS, self.variants, self.seeds, self.values, self.by_layer,
            self.counts, self.found, self.false_finds, self.planted, self.false_positives, self.seconds,
            self.forwards.reshape(-1, len(self.methods)).nanmean(dim=0), deletion, tuple(self.plants), origin,
        )  # fmt: skip


def _nan(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=torch.float64)
