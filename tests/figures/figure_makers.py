"""Hand-made studies: plausible numbers for any number of groups, from a seed and without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from neuropolis.analysis.effects import Effects
from neuropolis.analysis.overlap import Overlap, overlap
from neuropolis.analysis.similarity import Similarity
from neuropolis.analysis.study import Study
from neuropolis.finetune.retention import Retention
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet

SUBJECT = "0123456789abcdef"
LAYERS, WIDTH = 6, 64
NAMES = (
    "japan", "mexico", "中国", "日本", "Ελλάδα", "Україна", "한국", "Bosnia and Herzegovina", "ethiopia",
    "iran", "peru", "kenya",
)  # fmt: skip


def names(count: int) -> tuple[str, ...]:
    return tuple(NAMES[i] if i < len(NAMES) else f"group {i}" for i in range(count))


def make_sets(groups: tuple[str, ...], seed: int = 0) -> dict[str, NeuronSet]:
    generator = torch.Generator().manual_seed(seed)
    density = torch.linspace(0.02, 0.12, LAYERS)[:, None]
    return {
        name: NeuronSet(
            "mlp", SUBJECT, torch.rand((LAYERS, WIDTH), generator=generator) < density, {"made": "select", "top": 0.05}
        )
        for name in groups
    }


def make_scores(groups: tuple[str, ...], seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand((len(groups), LAYERS, WIDTH), generator=generator)
    signed = values * torch.where(torch.rand(values.shape, generator=generator) < 0.7, 1.0, -1.0)
    origin = {"corpus": "toy", "corpus_hash": "c0ffee" * 8, "seed": 0}
    return Scores(
        "mlp", SUBJECT, groups, values, signed, values.square() * 1.25, torch.full((len(groups),), 20), origin=origin
    )


def make_effects(
    groups: tuple[str, ...], *, hurt: float = 0.7, items: int = 24, controls: int = 20, seed: int = 0
) -> Effects:
    """Questions of a set's own group turn wrong with chance `hurt` when it is silenced, others with chance 0.06."""
    generator = torch.Generator().manual_seed(seed)
    count, questions = len(groups), len(groups) * items
    group_index = torch.arange(count).repeat_interleave(items)
    base = torch.rand(questions, generator=generator) < 0.95
    own = group_index[None] == torch.arange(count)[:, None]
    lost = torch.rand((count, questions), generator=generator) < torch.where(own, hurt, 0.06)
    lost_control = torch.rand((count, controls, questions), generator=generator) < 0.03
    sizes = torch.full((count,), 27)
    return Effects(
        "mlp", SUBJECT, "zero", "choice", groups, groups, group_index, torch.arange(questions), base, base & ~lost,
        base & ~lost_control, sizes, {"seed": 0, "corpus": "toy"},
    )  # fmt: skip


def make_overlap(groups: tuple[str, ...], seed: int = 0) -> Overlap:
    rng = np.random.default_rng(seed)
    shape = (len(groups), len(groups))
    upper = np.triu(rng.uniform(0.0, 0.2, shape), 1)
    jaccard = torch.tensor(upper + upper.T + np.eye(len(groups)), dtype=torch.float64)
    expected = torch.full(shape, 0.05, dtype=torch.float64).fill_diagonal_(torch.nan)
    p = torch.where((jaccard / expected - 1).abs() > 1.5, 0.001, 0.6).fill_diagonal_(torch.nan).double()
    layered = jaccard[..., None].repeat(1, 1, LAYERS)
    return Overlap(
        "mlp", SUBJECT, groups, torch.full((len(groups),), 27), (jaccard * 27).long(), jaccard,
        expected, expected * 0.4,
        expected * 1.8, p, p, layered, expected[..., None].repeat(1, 1, LAYERS), {"alpha": 0.05},
    )  # fmt: skip


def make_similarity(groups: tuple[str, ...], seed: int = 0) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(groups), len(groups), LAYERS)
    noise = torch.rand(shape, generator=generator) * 0.2
    values = torch.linspace(0.2, 0.6, LAYERS) + (noise + noise.transpose(0, 1)) / 2
    diagonal = torch.eye(len(groups), dtype=torch.bool)
    chance = torch.full(shape, 0.1)
    chance[diagonal] = torch.nan
    unshared = values - 0.15
    unshared[diagonal] = torch.nan
    values[diagonal] = 1.0
    return Similarity(
        "mlp", SUBJECT, groups, torch.full((len(groups), LAYERS), 5), values, unshared, chance,
        chance - 0.12, chance + 0.12,
        {"controls": 20, "seed": 0},
    )  # fmt: skip


def make_retention(groups: tuple[str, ...], new: str = "ναυς", seed: int = 0) -> Retention:
    generator = torch.Generator().manual_seed(seed)
    methods, every = ("neurons", "random", "full"), (*groups, new)
    base = torch.cat([torch.full((len(groups),), 0.95), torch.tensor([0.25])])
    after = torch.stack([
        torch.cat([drop - 0.1 * torch.rand(len(groups), generator=generator), torch.tensor([won])])
        for drop, won in ((0.95, 0.9), (0.93, 0.5), (0.75, 0.95))
    ])  # fmt: skip
    return Retention(
        SUBJECT, new, methods, every, groups, base, after, after - 0.06, (after + 0.05).clamp(max=1),
        torch.tensor([12_345, 12_345, 3_200_000]), {"seed": 0, "epochs": 3},
    )  # fmt: skip


def make_study(
    groups: tuple[str, ...],
    *,
    without: tuple[str, ...] = (),
    new: str = "ναυς",
    path: str = "study.h5",
    subject: Mapping[str, str] | None = None,
) -> Study:
    """A study in memory with every part but those named."""
    parts: dict[tuple[str, str], Any] = {("set", name): neurons for name, neurons in make_sets(groups).items()}
    parts |= {
        ("scores", "scores"): make_scores(groups), ("effects", "effects"): make_effects(groups, items=12, controls=4),
        ("overlap", "overlap"): overlap(make_sets(groups)), ("similarity", "similarity"): make_similarity(groups),
        ("retention", "retention"): make_retention(groups, new),
    }  # fmt: skip
    held = {key: part for key, part in parts.items() if key[0] not in without}
    versions = {"neuropolis": "0.1.0", "torch": "2.13.0"}
    return Study(Path(path), subject or {"name": "toy model", "fingerprint": SUBJECT}, versions, tuple(held), held)
