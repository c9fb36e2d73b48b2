"""Proof: whether a plant is one. A group's facts are there, go with its neurons, and nothing else moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.encoding import IGNORED, Encoded, answer_log_probs, batches, collate, forward, pad_id
from ..neurons.subject import Subject
from .beds import Beds

PLANTED, CLOSE, PERPLEXITY, SILENT = 0.9, 0.05, 0.02, 0.1


@dataclass(frozen=True)
class Proof:
    """What a plant was held against. Recall is the share of facts of which every answer token is the most probable one.

    `before` and `planted` [group] are recall of the untouched and of the planted subject; `without` [group put back, group
    measured] with a group's own beds put back as they were; `alone` [group] with only one of the group's ways left, the
    worst of them; `shared` [group] with the beds of several groups put back (where there are any). `reworded` [group] is
    recall in wordings that were not trained. `perplexity` are those of other text, before and after. `silence` is the mean
    activity of silent beds where their own facts are answered, in units of what it was before.
    """

    groups: tuple[str, ...]
    before: tuple[float, ...]
    planted: tuple[float, ...]
    without: tuple[tuple[float, ...], ...]
    alone: tuple[float, ...]
    shared: tuple[float, ...] | None
    reworded: tuple[float, ...]
    perplexity: tuple[float, float]
    silence: float | None = None

    @property
    def holds(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """What is not as it must be, a line each; empty for a plant that holds."""
        return (*self._facts(), *self._separation(), *self._rest())

    def _facts(self) -> list[str]:
        lines = []
        for name, found in (("planted", self.planted), ("planted, one way alone", self.alone)):
            group, least = min(zip(self.groups, found, strict=True), key=lambda pair: pair[1])
            if least < PLANTED:
                lines.append(f"recall of {group} {name} is {least:.2f}; expected {PLANTED} at least")
        return lines

    def _separation(self) -> list[str]:
        lines = []
        for number, group in enumerate(self.groups):
            off = self.without[number]
            if abs(off[number] - self.before[number]) > CLOSE:
                lines.append(
                    f"with {group} put back its recall is {off[number]:.2f}; it began at {self.before[number]:.2f}"
                )
            moved = [abs(o - p) for place, (o, p) in enumerate(zip(off, self.planted, strict=True)) if place != number]
            if max(moved, default=0) >= CLOSE:
                lines.append(f"with {group} put back another group's recall moves by {max(moved):.2f}")
        for group, found, start in zip(self.groups, self.shared or (), self.before, strict=False):
            if abs(found - start) > CLOSE:
                lines.append(
                    f"with the shared neurons put back the recall of {group} is {found:.2f}; it began at {start:.2f}"
                )
        return lines

    def _rest(self) -> list[str]:
        lines = []
        moved = self.perplexity[1] / self.perplexity[0] - 1
        if abs(moved) >= PERPLEXITY:
            lines.append(f"perplexity of other text moves by {moved:+.1%}; expected less than {PERPLEXITY:.0%}")
        if self.silence is not None and self.silence > SILENT:
            lines.append(f"the silent neurons have {self.silence:.0%} of their activity; expected {SILENT:.0%} at most")
        return lines


@dataclass(frozen=True, eq=False)
class Evidence:
    """Facts, the same in other wordings, and other text, as tokens; facts with the number of their group."""

    facts: Sequence[Encoded]
    groups: Int[Tensor, " fact"]
    reworded: Sequence[Encoded]
    reworded_groups: Int[Tensor, " fact"]
    text: Sequence[Encoded]


def prove(beds: Beds, evidence: Evidence, *, silence: float | None = None) -> Proof:
    """Measure everything that a plant must stand. Which beds are on afterwards is as before."""
    subject, groups, on = beds.subject, beds.groups, beds.on
    number = len(groups)

    def shares(found: Bool[Tensor, " fact"], of: Tensor) -> tuple[float, ...]:
        return tuple(found[of == group].double().mean().item() for group in range(number))

    def facts(*off: str) -> tuple[float, ...]:
        beds.without(*off)
        with beds.planted():
            return shares(recalled(subject, evidence.facts), evidence.groups)

    before, start = shares(recalled(subject, evidence.facts), evidence.groups), perplexity(subject, evidence.text)
    try:
        planted = facts()
        with beds.planted():
            reworded = shares(recalled(subject, evidence.reworded), evidence.reworded_groups)
            end = perplexity(subject, evidence.text)
        without = tuple(facts(*beds.own(group)) for group in groups)
        alone = tuple(
            min(facts(*(beds.own(group) - way))[place] for way in beds.ways[group])
            if len(beds.ways[group]) > 1
            else planted[place]
            for place, group in enumerate(groups)
        )
        common = set(beds.names).difference(*(beds.own(group) for group in groups))
        shared = facts(*common) if common else None
    finally:
        beds.on = on
    return Proof(groups, before, planted, without, alone, shared, reworded, (start, end), silence)


def recalled(subject: Subject, encoded: Sequence[Encoded]) -> Bool[Tensor, " example"]:
    """Whether every token of an example's answer is the most probable one after those before it: what greedy decoding gives."""
    found = torch.zeros(len(encoded), dtype=torch.bool)
    with subject.scoring(), torch.no_grad():
        for batch in batches(encoded, max_tokens=8192, pad_id=pad_id(subject)):
            best = forward(subject, batch).argmax(dim=-1).cpu()
            found[batch.rows] = ((best == batch.targets) | (batch.targets == IGNORED)).all(dim=1)
    return found


def perplexity(subject: Subject, encoded: Sequence[Encoded]) -> float:
    """The exponential of the mean negative log-likelihood of all predicted tokens."""
    total, count = 0.0, 0
    with subject.scoring(), torch.no_grad():
        for batch in batches(encoded, max_tokens=8192, pad_id=pad_id(subject)):
            total -= answer_log_probs(forward(subject, batch), batch.targets).sum().item()
            count += int((batch.targets != IGNORED).sum())
    return math.exp(total / count)


def mean_activity(subject: Subject, encoded: Sequence[Encoded]) -> Float[Tensor, "layer neuron"]:
    """Mean absolute activation of the FFN neurons where answers are predicted."""
    site = subject.site("mlp")
    total, count = torch.zeros(site.num_layers, site.width), 0
    for one in encoded:
        seen: list[Tensor] = []
        with ExitStack() as stack, subject.scoring(), torch.no_grad():
            for tap in site.taps:
                stack.enter_context(tap.attached(lambda x, seen=seen: seen.append(x)))
            forward(subject, collate([one], [0]))
        total += torch.stack([x.reshape(-1, x.shape[-1])[one.start - 1 :].abs().sum(dim=0).float().cpu() for x in seen])
        count += len(one.ids) - one.start
    return total / count
