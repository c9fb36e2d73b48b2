"""Activations of a site over a corpus: the reference that mean, resample and noise interventions draw from."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.interventions import Reference
from ..neurons.subject import Subject
from .encoding import batches, encode_corpus, forward, pad_id


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
    """
    place = subject.site(site)
    corpus = corpus.part(split, auto="train")
    encoded = encode_corpus(subject, corpus)
    total = sum(len(one.ids) - 1 for one in encoded)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:pool].sort().values
    shape = (place.num_layers, place.width)
    mean, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    rows = torch.zeros((place.num_layers, len(chosen), place.width))
    seen = 0
    with subject.quiet(), torch.no_grad():
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
