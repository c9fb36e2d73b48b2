"""Drives: at which tokens of which examples chosen neurons are farthest from 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.encoding import Encoded, batches, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.errors import SetError, SiteError
from ..neurons.sites import Site
from ..neurons.subject import Subject

_BROKEN = "\ufffd"  # what a decoder puts for bytes that are no letter by themselves


@dataclass(frozen=True, eq=False)
class Drives:
    """What drives neurons in each group; the fields are those of `cards.Cards`."""

    mean: Float[Tensor, "card group"]
    active: Float[Tensor, "card group"]
    highest: Float[Tensor, "card group"]
    lowest: Float[Tensor, "card group"]
    shown: Int[Tensor, "card group place"]
    activations: Float[Tensor, "card group place token"]
    texts: tuple[Mapping[str, Any], ...]


def whole(encoded: Sequence[Encoded]) -> list[Encoded]:
    """The same examples so that a forward reads their last token too; the token put behind it is not read."""
    return [replace(one, ids=(*one.ids, one.ids[-1])) for one in encoded]


def driving(
    subject: Subject,
    corpus: Corpus,
    site: str,
    layers: Sequence[int],
    indices: Sequence[int],
    *,
    examples: int = 3,
    max_tokens: int = 4096,
) -> Drives:
    """Statistics of neurons over every group's tokens, and the `examples` texts of each where |activation| peaks.

    One pass; only these neurons' activations are kept. Raises SiteError for routed experts.
    """
    if examples < 1:
        raise SetError(f"examples is {examples}; expected how many texts to show for each group, 1 or more")
    place = subject.site(site)
    if place.taps[0].routed is not None:
        raise SiteError("cards read activations at every token; neurons of routed experts (site 'expert') have none where "
                        "their expert was not chosen")  # fmt: skip
    encoded = encode_corpus(subject, corpus)
    read = _activations(subject, encoded, place, layers, indices, max_tokens)
    groups = torch.tensor([corpus.groups.index(example.group) for example in corpus])
    peaks = torch.stack([values.abs().amax(dim=1) for values in read])  # [example, card]
    count = min(examples, int(torch.bincount(groups).max()))
    shown = torch.full((len(layers), len(corpus.groups), count), -1)
    stats = torch.zeros((4, len(layers), len(corpus.groups)))
    for group in range(len(corpus.groups)):
        rows = (groups == group).nonzero().flatten()
        tokens = torch.cat([read[row] for row in rows.tolist()], dim=1)
        stats[:, :, group] = torch.stack(
            [tokens.mean(dim=1), (tokens > 0).float().mean(dim=1), tokens.amax(dim=1), tokens.amin(dim=1)]
        )
        best = peaks[rows].topk(min(count, len(rows)), dim=0).indices.T
        shown[:, group, : best.shape[1]] = rows[best]
    used = shown[shown >= 0].unique().tolist()
    longest = max(read[row].shape[1] for row in used)
    activations = torch.full((*shown.shape, longest), torch.nan)
    for card, group, at in (shown >= 0).nonzero().tolist():
        values = read[int(shown[card, group, at])][card]
        activations[card, group, at, : len(values)] = values
    row_of = torch.full((len(corpus),), -1).index_copy(0, torch.tensor(used), torch.arange(len(used)))
    texts = tuple(_text(subject, corpus, encoded, row) for row in used)
    return Drives(*stats, torch.where(shown >= 0, row_of[shown.clamp(min=0)], -1), activations, texts)  # pyright: ignore[reportCallIssue]


def _activations(
    subject: Subject,
    encoded: Sequence[Encoded],
    place: Site,
    layers: Sequence[int],
    indices: Sequence[int],
    max_tokens: int,
) -> list[Float[Tensor, "card token"]]:
    """The chosen neurons' activations at every token of every example."""
    cards = {layer: [card for card, at in enumerate(layers) if at == layer] for layer in sorted(set(layers))}
    found: list[Tensor] = [torch.zeros(0)] * len(encoded)
    seen: dict[int, Tensor] = {}

    def note(x: Tensor, layer: int, shape: torch.Size) -> None:
        chosen = torch.tensor([indices[card] for card in cards[layer]], device=x.device)
        seen[layer] = x.detach().reshape(*shape, -1).index_select(-1, chosen).float().cpu()

    with subject.scoring(), torch.no_grad():
        for batch in batches(whole(encoded), max_tokens=max_tokens, pad_id=pad_id(subject)):
            with ExitStack() as stack:
                for layer in cards:
                    stack.enter_context(place.taps[layer].attached(partial(note, layer=layer, shape=batch.real.shape)))
                forward(subject, batch)
            for row, example in enumerate(batch.rows.tolist()):
                values = torch.zeros((len(layers), int(batch.real[row].sum())))
                for layer, members in cards.items():
                    values[members] = seen[layer][row][batch.real[row]].T
                found[example] = values
    return found


def _text(subject: Subject, corpus: Corpus, encoded: Sequence[Encoded], row: int) -> dict[str, Any]:
    one = encoded[row]
    return {
        "id": corpus[row].id, "group": corpus[row].group, "answer_start": one.start,
        "tokens": pieces(subject.tokenizer, one.ids),
    }  # fmt: skip


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of every token; a letter that several tokens spell by its bytes stands at the last of them."""
    found, run = [], []
    for token in ids:
        alone = str(tokenizer.decode([token]))
        if _BROKEN not in alone:
            found.append(alone)
            run = []
            continue
        run.append(token)
        spelt = str(tokenizer.decode(run))
        found.append("" if _BROKEN in spelt else spelt)
        run = run if _BROKEN in spelt else []
    return found
