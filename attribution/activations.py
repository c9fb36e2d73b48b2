"""Activations of a site over a corpus: the reference that mean, resample and noise interventions draw from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.interventions import Reference
from ..neurons.sites import Site
from ..neurons.subject import Subject
from .encoding import Encoded, batches, encode_corpus, forward, pad_id


def reference(
    subject: Subject,
    corpus: Corpus,
    *,
    site: str = "mlp",
    split: str | None = "auto",
    pool: int = 256,
    seed: int = 0,
    max_tokens: int = 4096,
) -> Reference:
    """Mean, standard deviation and `pool` sampled token rows of a site's activations over the real tokens of a corpus.

    `split="auto"` takes the examples tagged `split: train` where the corpus has splits, None all. The same tokens are
    sampled in every layer. Means are taken in float64.

    At site `expert` all of it is over the tokens routed to a neuron's expert, and `pool` tokens are sampled for each
    expert; the pool takes layers * pool * neurons numbers of four bytes, so lower `pool` for large models.
    """
    place = subject.site(site)
    corpus = corpus.part(split, auto="train")
    encoded = encode_corpus(subject, corpus)
    total = sum(len(one.ids) - 1 for one in encoded)
    if place.taps[0].routed is not None:
        priority = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        sums = _routed_sums(subject, encoded, place, priority=priority, pool=pool, max_tokens=max_tokens)
        return sums.reference(site, subject.fingerprint, corpus.name)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:pool].sort().values
    shape = (place.num_layers, place.width)
    mean, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    rows = torch.zeros((place.num_layers, len(chosen), place.width))
    seen = 0
    with subject.scoring(), torch.no_grad():
        for batch in batches(encoded, max_tokens=max_tokens, pad_id=pad_id(subject)):
            count = int(batch.real.sum())
            inside = (chosen >= seen) & (chosen < seen + count)

            def note(x: Tensor, layer: int) -> None:
                flat = x.reshape(*batch.real.shape, -1)[batch.real.to(x.device)].cpu()  # noqa: B023
                mean[layer] += flat.double().sum(dim=0)
                square[layer] += flat.double().square().sum(dim=0)
                rows[layer, inside] = flat[chosen[inside] - seen].float()  # noqa: B023

            with ExitStack() as stack:
                for layer, tap in enumerate(place.taps):
                    stack.enter_context(tap.attached(lambda x, layer=layer, note=note: note(x, layer)))
                forward(subject, batch)
            seen += count
    mean /= total
    std = (square / total - mean.square()).clamp(min=0).sqrt()
    return Reference(site, subject.fingerprint, corpus.name, mean.float(), std.float(), rows)


class _RoutedSums:
    """Sums, squares, counts and samples of the units of routed experts, over the tokens that each expert took.

    An expert's sample is those of its tokens that come first in `priority` [token], whatever the batches were.
    """

    def __init__(self, place: Site, priority: Int[Tensor, " token"], pool: int) -> None:
        tap = place.taps[0]
        assert tap.routed is not None
        self.shape = (place.num_layers, tap.routed, tap.units)
        self.priority = priority
        self.sums, self.squares = (torch.zeros(self.shape, dtype=torch.float64) for _ in range(2))
        self.counts = torch.zeros(self.shape[:2], dtype=torch.long)
        self.pool = torch.zeros((self.shape[0], pool, *self.shape[1:]))
        self.ranks = torch.full((*self.shape[:2], pool), len(priority))  # as late as an empty place

    def add(self, layer: int, numbers: Int[Tensor, " row"], x: Tensor, expert: int, tokens: Tensor) -> None:
        """One expert's units [routed, unit]; `numbers` counts the corpus's tokens at the rows of a batch, -1 at padding."""
        number = numbers[tokens.cpu()]
        x, number = x[(number >= 0).to(x.device)].cpu(), number[number >= 0]
        self.sums[layer, expert] += x.double().sum(dim=0)
        self.squares[layer, expert] += x.double().square().sum(dim=0)
        self.counts[layer, expert] += len(x)
        ranks = torch.cat([self.ranks[layer, expert], self.priority[number]])
        first = ranks.argsort()[: self.pool.shape[1]]
        self.ranks[layer, expert] = ranks[first]
        self.pool[layer, :, expert] = torch.cat([self.pool[layer, :, expert], x.float()])[first]

    def reference(self, site: str, subject: str, name: str) -> Reference:
        """The reference; NaN for experts that took no token."""
        mean = self.sums / self.counts[..., None]
        std = (self.squares / self.counts[..., None] - mean.square()).clamp(min=0).sqrt()
        sampled = self.counts.clamp(max=self.pool.shape[1])
        flat = (mean.float().flatten(1), std.float().flatten(1), self.pool.flatten(2))
        return Reference(site, subject, name, *flat, sampled)


def _routed_sums(
    subject: Subject, encoded: Sequence[Encoded], place: Site, *, priority: Tensor, pool: int, max_tokens: int
) -> _RoutedSums:
    sums = _RoutedSums(place, priority, pool)
    seen = 0
    with subject.scoring(), torch.no_grad():
        for batch in batches(encoded, max_tokens=max_tokens, pad_id=pad_id(subject)):
            numbers = torch.full(batch.real.shape, -1)
            count = int(batch.real.sum())
            numbers[batch.real.cpu()] = torch.arange(seen, seen + count)
            with ExitStack() as stack:
                for layer, tap in enumerate(place.taps):
                    stack.enter_context(tap.attached_routed(partial(sums.add, layer, numbers.flatten())))
                forward(subject, batch)
            seen += count
    return sums
