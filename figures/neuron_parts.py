"""The part of the report about single neurons: the table of the top ones, the agreement of methods, the neurons' pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.agreement import agreement
from . import words
from .parts import Part, Picture
from .tables import Table, numbers, packed
from .tables import words as column
from .trust import method_agreement

if TYPE_CHECKING:
    from ..analysis.study import Study
    from ..neurons.atlas import Record
    from ..neurons.sets import NeuronSet

PAIRS = 150_000  # (neuron, group) pairs that travel with the page at 8 bytes each
BEST = 10  # of every group by score, whether its set holds them or not


@dataclass(frozen=True, eq=False)
class Chosen:
    """The neurons of one scores record that have a page, in the order of flat index [neuron].

    `values`, `signed` and `rank` are [group, neuron]; `listed` are the (group, flat index) rows of the table.
    """

    site: str
    width: int
    total: int
    label: str
    method: str
    objective: str
    groups: tuple[str, ...]
    flat: np.ndarray
    values: np.ndarray
    signed: np.ndarray
    rank: np.ndarray
    error: np.ndarray
    listed: list[tuple[int, int]] = field(default_factory=list)


def neurons(study: Study) -> Part:
    """Words on the scores, a table of the top neurons for every scores record, and method agreement where there are several."""
    sets = study.sets if study.has("set") else {}
    said, tables, pages, pictures = [], [], [], []
    names = study.names("scores")
    for name in names:
        with study.lazily("scores", name) as record:
            said.append(words.scores_words(record))
            found = chosen(record, sets, share=len(names))
        tables.append(_table(found, sets, several=len(names) > 1))
        pages.append(_packed(found, sets))
    notes = [
        "Scores of different groups have different scales; compare ranks, or sets. A high score says that the "
        "first-order estimate of silencing the neuron is large, not that silencing it alone would change an answer.",
    ]
    for site, same in _by_site(study, names).items():
        if len(same) > 1:
            agreed = agreement(study, same)
            caption = (
                f"Left: Spearman correlation of two methods' scores over {agreed.sampled:,} neurons of site {site}; right: "
                f"Jaccard index of the neurons that each would select at {100 * agreed.top:g} %. Means over "
                f"{len(agreed.groups)} groups."
            )
            pictures.append(Picture(method_agreement(agreed), f"Agreement of methods (site {site})", caption))
            said.append(words.agreement_words(agreed))
    return Part(tuple(said), None, tuple(pictures), tuple(tables), tuple(notes), pages=tuple(pages))


def chosen(record: Record, sets: Mapping[str, NeuronSet], *, share: int = 1) -> Chosen:
    """The neurons that get a page: the best of every group's set by score, and the best of all by score.

    Scores are read group by group, twice, so that no more than one group's is in memory. `share` records divide the room.
    """
    meta, arrays = record.meta, record.arrays
    groups, shape = tuple(meta["groups"]), arrays["values"].shape
    held = {g: sets[g].mask.numpy().ravel() for g in groups if g in sets and _fits(sets[g], meta["site"], shape)}
    room = max(BEST, PAIRS // share // max(1, len(groups) ** 2))
    listed: list[tuple[int, int]] = []
    for place, group in enumerate(groups):
        row = np.asarray(arrays["values"][place]).ravel()
        best = _top(row, BEST)
        if group in held:
            members = np.flatnonzero(held[group])
            best = np.union1d(best, members[_top(row[members], room)])
        else:
            best = _top(row, room)
        listed += [(place, int(flat)) for flat in best[np.argsort(-row[best], kind="stable")]]
    flat = np.unique([flat for _, flat in listed])
    values, signed, error = (np.empty((len(groups), len(flat)), dtype=np.float32) for _ in range(3))
    rank = np.empty((len(groups), len(flat)), dtype=np.int64)
    for place in range(len(groups)):
        row = np.asarray(arrays["values"][place]).ravel()
        values[place], signed[place] = row[flat], np.asarray(arrays["signed"][place]).ravel()[flat]
        rank[place] = len(row) - np.searchsorted(np.sort(row), row[flat], side="right") + 1
        squares, count = np.asarray(arrays["squares"][place]).ravel()[flat], float(arrays["counts"][place])
        spread = np.maximum(squares - np.square(values[place]), 0) / (count - 1) if count > 1 else np.nan
        error[place] = np.sqrt(spread)
    return Chosen(
        meta["site"], shape[2], shape[1] * shape[2], record.name, str(meta["method"]), str(meta["objective"]), groups,
        flat, values, signed, rank, error, listed,
    )  # fmt: skip


def _packed(one: Chosen, sets: Mapping[str, NeuronSet]) -> dict[str, Any]:
    """What the neurons' pages say of their scores and sets, for the page's data."""
    scale = np.abs(one.values).max(axis=1, initial=0.0)
    scale[scale == 0] = 1.0
    holding = {name: s for name, s in sets.items() if s.site == one.site and s.mask.numel() == one.total}
    member = (
        np.stack([s.mask.numpy().ravel()[one.flat] for s in holding.values()]) if holding else np.zeros((0, 0), bool)
    )
    return {
        "site": one.site, "name": one.label, "method": one.method, "objective": one.objective, "total": one.total,
        "groups": list(one.groups), "layer": packed(one.flat // one.width), "index": packed(one.flat % one.width),
        "scale": packed(scale.astype(np.float64)), "values": packed((one.values / scale[:, None]).astype(np.float16)),
        "signed": packed((one.signed / scale[:, None]).astype(np.float16)), "rank": packed(one.rank.ravel()),
        "sets": list(holding), "member": packed(np.packbits(member.ravel())),
    }  # fmt: skip


def _table(one: Chosen, sets: Mapping[str, NeuronSet], *, several: bool) -> Table:
    groups = [place for place, _ in one.listed]
    flat = np.array([number for _, number in one.listed], dtype=np.int64)
    at = np.searchsorted(one.flat, flat)
    holding = [s.mask.numpy().ravel() for s in sets.values() if s.site == one.site and s.mask.numel() == one.total]
    count = np.sum([mask[flat] for mask in holding], axis=0) if holding else np.zeros(len(flat))
    own = {g: sets[g].mask.numpy().ravel() for g in one.groups if g in sets and sets[g].mask.numel() == one.total}
    held = [
        ("yes" if own[one.groups[g]][f] else "no") if one.groups[g] in own else "\u2013"
        for g, f in zip(groups, flat, strict=True)
    ]
    columns = (
        column("neuron", [f"{one.site}/{f // one.width}/{f % one.width}" for f in flat], form="neuron"),
        column("group", [one.groups[g] for g in groups], form="set", filtered=True),
        numbers("rank in group", one.rank[groups, at]), numbers("layer", flat // one.width),
        numbers("score", one.values[groups, at], ".3g"), numbers("signed score", one.signed[groups, at], ".3g"),
        numbers("standard error", one.error[groups, at], ".3g"), column("in the group's set", held, filtered=True),
        numbers("sets that hold it", count),
    )  # fmt: skip
    which = f" by {one.method} ({one.label})" if several else ""
    caption = (
        f"The neurons of each group's set with the highest scores{which}, and each group's {BEST} highest of all (site "
        f"{one.site}, {len(one.flat):,} different neurons of {one.total:,}). A positive signed score says that the neuron "
        "helps the group; the standard error is that of the score over examples"
    )
    return Table("neurons", caption, columns)


def _by_site(study: Study, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of the scores records by site, of the first shape of each."""
    found: dict[tuple, list[str]] = {}
    for name in names:
        with study.lazily("scores", name) as record:
            key = (record.meta["site"], record.arrays["values"].shape[1:], tuple(record.meta["groups"]))
            found.setdefault(key, []).append(name)
    return {key[0]: same for key, same in found.items()}


def _fits(chosen: NeuronSet, site: str, shape: tuple[int, ...]) -> bool:
    return chosen.site == site and tuple(chosen.mask.shape) == tuple(shape[1:])


def _top(row: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest, in no order."""
    return np.argpartition(-row, count - 1)[:count] if len(row) > count else np.arange(len(row))
