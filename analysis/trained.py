"""Trained: the similarity of every task's neurons with the others', in the model that was trained on that task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..neurons.errors import SetError
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .similarity import Similarity, similarity


def similarity_in_each(
    models: Mapping[str, Callable[[], Subject]],
    sets: Mapping[str, NeuronSet],
    *,
    base: Subject,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Similarity:
    """Similarity of parameters in M_1 ... M_n, the model trained on each task: row i of every table is from M_i.

    Leng & Xiong (arXiv 2407.06488, section 5 and table 4): P_i and P_j are the parameters of task i's and of task j's
    neurons in M_i, and their cosine is held against the performance of M_i on task j (`transfer`). Tables are not
    symmetric: [i, j] is in M_i, [j, i] in M_j. `models` holds, for the group of every set, what loads its model; one is
    held at a time. `base` is the subject before training, to which the sets belong; `options` are those of `similarity`.

    Raises SetError when a group has no model or a model no group, and what `similarity` raises.
    """
    missing, unknown = [g for g in sets if g not in models], [g for g in models if g not in sets]
    if missing or unknown:
        said = (
            f"no model for {', '.join(missing)}" if missing else f"models for {', '.join(unknown)}, which have no set"
        )
        raise SetError(f"{said}; expected one for each of {', '.join(sets)}")
    rows, found = [], None
    for place, group in enumerate(sets):
        trained = models[group]()
        found = similarity(trained, sets, base=base, **options)
        rows.append((found, place))
        if progress is not None:
            progress(place + 1, len(sets))
    if found is None:
        raise SetError("no sets to compare; give {group: NeuronSet}, for example from npl.select")
    tables = {
        name: torch.stack([getattr(one, name)[place] for one, place in rows])
        for name in ("values", "values_unshared", "chance", "chance_low", "chance_high")
    }
    each = {group: one.origin["model"] for group, (one, _) in zip(sets, rows, strict=True)}
    return replace(found, **tables, origin={**found.origin, "model": "one a row", "each": each})
