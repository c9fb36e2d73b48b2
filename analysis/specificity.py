"""Specificity: whether a set hurts its own group more than the others, and the table of what it does to its own group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .statistics import benjamini_hochberg, cluster_sums, holm, label_test, sign_flip_test

if TYPE_CHECKING:
    from .effects import Effects

LEVEL = 0.05
Correction = Literal["holm", "benjamini_hochberg"]
CORRECTIONS = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}


def against_others(effects: Effects) -> Float[Tensor, " set"]:
    """What `Effects.p_vs_others` gives."""
    change = effects.sign * effects.change
    share = change / effects.num_questions[effects.group_index]  # summed over a group: its mean change
    weight = 1 / effects.num_questions[effects.group_index].double()
    present = int((effects.num_questions > 0).sum())
    p = torch.full((len(effects.sets),), torch.nan, dtype=torch.float64)
    tables = []
    for s, own in enumerate(effects.own_group):
        if own is None or present < 2:
            continue
        mine = effects.group_index == own
        items, here = torch.unique(effects.item_index, return_inverse=True)
        inside = torch.zeros(len(items), dtype=torch.bool).index_fill_(0, here[mine], True)
        outside = torch.zeros(len(items), dtype=torch.bool).index_fill_(0, here[~mine], True)
        if torch.equal(inside, outside):
            sign = torch.where(mine, 1.0, -1.0 / (present - 1)).double()
            p[s] = sign_flip_test(cluster_sums((share[s] * sign)[None], here)[0])[0]
            continue
        piece = 2 * here + mine  # an item on both sides counts as two, which errs towards no difference
        _, first = torch.unique(piece, return_inverse=True)
        labels = torch.zeros(int(first.max()) + 1, dtype=torch.bool).index_fill_(0, first[mine], True)
        sums = cluster_sums(torch.stack([share[s], weight]), piece)[0]
        tables.append((s, sums[:, 0], sums[:, 1], labels))
    for length in {len(labels) for *_, labels in tables}:
        same = [table for table in tables if len(table[3]) == length]
        columns = [torch.stack([table[i] for table in same], dim=1) for i in (1, 2, 3)]
        p[[table[0] for table in same]] = label_test(*columns)
    return p


def summary_rows(effects: Effects, *, correction: Correction, seed: int) -> list[dict[str, Any]]:
    """What `Effects.summary` gives."""
    correct = CORRECTIONS[correction]
    low, high = (effects.own(end) for end in effects.interval(seed=seed))
    p_controls, p_others = effects.corrected(correction=correction)
    everywhere = effects.mean_base.expand_as(effects.effect)
    columns = {
        "base": effects.own(everywhere), "ablated": effects.own(effects.mean_ablated),
        "controls": effects.own(effects.mean_controls.mean(dim=1)), "others": effects.others(effects.mean_ablated),
        "others_base": effects.others(everywhere),
        "effect": effects.own(effects.effect), "low": low, "high": high, "dominance": effects.own(effects.dominance),
        "p_controls": p_controls, "p_others": p_others,
        "p": correct(torch.maximum(effects.own(effects.p_vs_controls), effects.p_vs_others)),
        "p_among_controls": effects.own(effects.p_among_controls), "smallest_detectable": effects.smallest_detectable,
        "items": effects.own(effects.num_items.double().expand_as(effects.effect)),
        "questions": effects.own(effects.num_questions.double().expand_as(effects.effect)),
    }  # fmt: skip
    if effects.twins is not None:
        twins = effects.twins
        columns |= {
            "twin_base": effects.own(twins.mean_base.expand_as(effects.effect)),
            "twin_ablated": effects.own(twins.mean_ablated), "twin_effect": effects.own(twins.effect),
            "p_twins": correct(effects.own(effects.p_vs_twins)),
        }  # fmt: skip
    rows = []
    for s, name in enumerate(effects.sets):
        own = effects.own_group[s]
        row: dict[str, Any] = {
            "set": name,
            "group": None if own is None else effects.groups[own],
            "size": int(effects.sizes[s]),
        }
        row |= {key: float(column[s]) for key, column in columns.items()}
        row["specific"] = row["p"] < LEVEL
        rows.append(row)
    return rows
