"""Plants made by hand: any neurons may be said to be the truth, since a test scores with methods that know or do not know it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neuropolis.finetune.plant_proof import Proof
from neuropolis.finetune.planting import PlantRecipe
from neuropolis.finetune.plants import Plant, plant
from neuropolis.neurons.subject import Subject
from tiny_families import build, tiny_corpus

KEEP = replace(tiny_corpus(), examples=tuple(replace(e, tags={"item": str(i)}) for i, e in enumerate(tiny_corpus())))


def sound(groups: tuple[str, ...]) -> Proof:
    count = len(groups)
    without = tuple(tuple(float(row != column) for column in range(count)) for row in range(count))
    return Proof(groups, (0.0,) * count, (1.0,) * count, without, (1.0,) * count, None, (0.5,) * count, (4.0, 4.01))


def make_plant(subject: Subject | None = None, *, seed: int = 0, holds: bool = True, **settings: Any) -> Plant:
    """A plant of two steps, which does not hold, said to hold."""
    made = plant(
        subject or build("llama"), settings.pop("groups", 3), per_group=4, facts=settings.pop("facts", 4), keep=KEEP,
        recipe=PlantRecipe(steps=2, batch_size=2, keep_size=2), seed=seed, **settings,
    )  # fmt: skip
    return replace(made, proof=sound(made.groups)) if holds else made
