"""How far methods agree: rank correlation of their scores, and overlap of what each would select, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..attribution.fidelity_result import spearman
from ..neurons.errors import SetError

if TYPE_CHECKING:
    from .study import Study

SAMPLE = 20_000  # neurons for the rank correlation; its standard error is then below 0.01
TOP = 0.01


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of every pair of methods on one site.

    `correlation` and `jaccard` [group, method, method]: Spearman's correlation of the scores (over all neurons, or over
    `sampled` random ones where there are more), and the Jaccard index of the `top` share of the neurons.
    """

    site: str
    methods: tuple[str, ...]
    groups: tuple[str, ...]
    correlation: np.ndarray
    jaccard: np.ndarray
    top: float
    sampled: int


def agreement(
    first: Study, names: Sequence[str], *, second: Study | None = None, others: Sequence[str] = ()
) -> Agreement:
    """Agreement of scores of one site, read group by group; with `second`, also of that study's scores `others`.

    Groups are those that all have. Raises SetError when sites or shapes differ, or no group is in common.
    """
    from contextlib import ExitStack

    with ExitStack() as stack:
        found = [stack.enter_context(first.lazily("scores", name)) for name in names]
        labels = [_label(record, names) for record in found]
        if second is not None:
            found += [stack.enter_context(second.lazily("scores", name)) for name in others]
            labels = [*labels, *(_label(record, others) for record in found[len(labels) :])]
        groups = _common(found)
        shape = found[0].arrays["values"].shape[1:]
        count = int(np.prod(shape))
        drawn = np.random.default_rng(0).choice(count, SAMPLE, replace=False) if count > SAMPLE else slice(None)
        kept = max(1, round(TOP * count))
        correlation, jaccard = (np.full((len(groups), len(found), len(found)), np.nan) for _ in range(2))
        for g, group in enumerate(groups):
            rows = [record.arrays["values"][list(record.meta["groups"]).index(group)].ravel() for record in found]
            sample = torch.from_numpy(np.stack([row[drawn] for row in rows])).double()
            correlation[g] = spearman(sample[:, None].expand(-1, len(rows), -1), sample[None].expand(len(rows), -1, -1))
            tops = np.zeros((len(rows), count), dtype=bool)
            for place, row in enumerate(rows):
                tops[place, np.argpartition(-row, kept - 1)[:kept]] = True
            shared = tops.astype(np.float32) @ tops.T.astype(np.float32)
            jaccard[g] = shared / (2 * kept - shared)
    sampled = min(count, SAMPLE)
    return Agreement(found[0].meta["site"], tuple(labels), groups, correlation, jaccard, TOP, sampled)


def _common(found: Sequence[Any]) -> tuple[str, ...]:
    sites = {(record.meta["site"], tuple(record.arrays["values"].shape[1:])) for record in found}
    if len(sites) > 1:
        listed = "; ".join(f"{site} {list(shape)}" for site, shape in sorted(sites))
        raise SetError(f"expected scores of one site and shape [layer, neuron], found {listed}")
    groups = tuple(g for g in found[0].meta["groups"] if all(g in record.meta["groups"] for record in found))
    if not groups:
        listed = "; ".join(", ".join(record.meta["groups"][:4]) for record in found)
        raise SetError(f"expected scores with groups in common, found {listed}")
    return groups


def _label(record: Any, names: Sequence[str]) -> str:
    """The method, with the record's name where it says more."""
    method = str(record.meta["method"])
    return method if len(names) == 1 or record.name in ("scores", method) else f"{method} ({record.name})"
