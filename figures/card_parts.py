"""The part of the report about neuron cards: most of it stands on the neurons' own pages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .parts import Block, Neuron, Part
from .tables import Table, numbers, written
from .tables import words as column
from .words import _listed, _many

if TYPE_CHECKING:
    from ..analysis.cards import Cards

_TEXTS = 6  # of a neuron, those that drive it farthest, no more than one a group
_ALL_TEXTS = 1500  # of all cards, so that many cards do not make a page of many megabytes
_NOTE = (
    "A card describes, and proves nothing: tokens are read off the neuron's weights alone, as if nothing came after its "
    "layer, and a text that drives it may be answered as well without it. What silencing does stands under the effects."
)


def cards(found: Cards) -> Part:
    """Pieces for the pages of the neurons that have a card, and a table that leads to them."""
    texts = max(1, min(_TEXTS, _ALL_TEXTS // max(1, len(found))))
    blocks: dict[Neuron, list[Block]] = {}
    for card, (layer, index) in enumerate(zip(found.layers.tolist(), found.indices.tolist(), strict=True)):
        blocks[(found.site, layer, index)] = [
            *_written(found, card),
            *_driven(found, card, texts),
            *_around(found, card),
        ]
    have = "has a card" if len(found) == 1 else "have cards"
    said = (
        f"{_many(len(found), 'neuron')} of site {found.site} {have}, over the texts of {_many(len(found.groups), 'group')} "
        f"({_listed(found.groups)}): the tokens that each writes, the texts that drive it, the neurons whose weights resemble its "
        "own, and its scores. They stand on the neurons' pages; a click on a row opens one.",
    )
    return Part(said, None, (), (_table(found),), (_NOTE,), blocks)


def _written(found: Cards, card: int) -> list[Block]:
    up, down = found.tokens(card), found.tokens(card, suppressed=True)
    if not up and not down:
        return [Block("Tokens", f"Neurons of site {found.site} write nothing directly.")]
    scale = max((abs(value) for _, value in (*up, *down)), default=0.0) or 1.0

    def ends(pairs: list[tuple[str, float]]) -> str:
        return f"logits {written(pairs[0][1], '+.2f')} to {written(pairs[-1][1], '+.2f')}"

    return [
        Block(
            title, f"Read off its weights, where its activation is positive; {ends(pairs)}.",
            tokens=[(token, value / scale) for token, value in pairs],
        )
        for title, pairs in (("Tokens that it promotes", up), ("Tokens that it suppresses", down))
        if pairs
    ]  # fmt: skip


def _driven(found: Cards, card: int, most: int) -> list[Block]:
    """Its activation in every group, and the texts that drive it farthest, shaded token by token."""
    pairs = [
        (
            group,
            f"mean {written(float(found.mean[card, g]), '+.3f')}, positive at {100 * float(found.active[card, g]):.0f}\u00a0% of "
            f"tokens, {written(float(found.lowest[card, g]), '+.2f')} to {written(float(found.highest[card, g]), '+.2f')}",
        )
        for g, group in enumerate(found.groups)
        if math.isfinite(float(found.mean[card, g]))
    ]
    first = [texts[0] for group in found.groups if (texts := found.examples(card, group))]
    first.sort(key=lambda pair: -max(map(abs, pair[1]), default=0.0))
    peak = max((abs(value) for _, values in first for value in values), default=0.0) or 1.0
    drawn = [
        Block(
            f"A text that drives it: {text['group']}",
            f"{text['id']}: {written(max(values, key=abs), '+.2f')} at its farthest; shades are shares of the farthest of all.",
            tokens=[(str(token), value / peak) for token, value in zip(text["tokens"], values, strict=True)],
        )
        for text, values in first[:most]
        if values
    ]
    return [Block("Activation by group", "Over every token of the texts.", pairs=pairs), *drawn]


def _around(found: Cards, card: int) -> list[Block]:
    near = zip(
        found.neighbour_layers[card].tolist(), found.neighbour_indices[card].tolist(),
        found.neighbour_cosines[card].tolist(), strict=True,
    )  # fmt: skip
    neighbours = [(found.site, l, i, f"cosine {written(c, '.3f')}") for l, i, c in near if l >= 0]  # noqa: E741
    pairs = []
    for g, group in enumerate(found.groups):
        both = zip(found.methods, found.scores[card, :, g].tolist(), found.ranks[card, :, g].tolist(), strict=True)
        text = "; ".join(f"{method} {written(value, '.3g')} (rank {rank:,})" for method, value, rank in both if rank)
        pairs += [(group, text)] if text else []
    made = (
        [Block("Nearest by weights", "Cosine of their parameters, in all layers.", neurons=neighbours)]
        if neighbours
        else []
    )
    return made + ([Block("Scores on its card", "Rank 1 is the site's highest.", pairs=pairs)] if pairs else [])


def _table(found: Cards) -> Table:
    farthest = torch.maximum(found.highest.abs(), found.lowest.abs()).nan_to_num(-1.0)
    groups = farthest.argmax(dim=1) if found.groups else torch.zeros(len(found), dtype=torch.long)
    rows = torch.arange(len(found))
    nearest = (
        found.neighbour_cosines[:, 0] if found.neighbour_cosines.shape[1] else torch.full((len(found),), torch.nan)
    )
    columns = [
        column("neuron", [f"{found.site}/{n.split(':', 1)[1].replace(':', '/')}" for n in found.neurons], form="neuron"),
        numbers("layer", found.layers),
        column("promotes", [_tokens(found, card) for card in range(len(found))]),
        column("suppresses", [_tokens(found, card, suppressed=True) for card in range(len(found))]),
    ]  # fmt: skip
    if found.groups:
        high, low = found.highest[rows, groups], found.lowest[rows, groups]
        columns += [
            column("driven farthest by", [found.groups[g] for g in groups], form="set", filtered=True),
            numbers("to", torch.where(high >= -low, high, low), "+.1f"),
            numbers("positive there (% of tokens)", 100 * found.active[rows, groups], ".1f"),
        ]  # fmt: skip
    columns.append(numbers("nearest neighbour's cosine", nearest, ".3f"))
    return Table("cards", "The neurons that have a card", tuple(columns))


def _tokens(found: Cards, card: int, *, suppressed: bool = False, most: int = 5) -> str:
    """The first tokens, with what would not be seen written out, as on the neurons' pages."""
    listed = [repr(token)[1:-1].replace(" ", "\u2423") for token, _ in found.tokens(card, suppressed=suppressed)[:most]]
    return " \u00b7 ".join(listed) or "\u2013"
