"""The plants of a calibration: which are asked for, which stand in a folder already, and whether they are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..corpora.examples import Corpus
from ..corpora.invented import Form
from ..neurons.subject import Subject
from .errors import TuneError
from .plant_files import load_plant, save_plant
from .planting import PlantRecipe
from .plants import Answers, Plant, plant, recipe_of
from .training import Progress

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"variant": "shared"}, "redundant": {"variant": "redundant"}, "suppressor": {"variant": "suppressor"},
    "layer": {"layout": "layer"}, "strong": {"layout": "strong"}, "weak": {"layout": "weak"},
    "attn": {"site": "attn"}, "few": {"facts": 4},
}  # fmt: skip
_DEFAULTS = {
    "per_group": None, "facts": None, "site": "mlp", "layout": "spread", "variant": "plain", "form": "question",
    "answers": "invented", "seed": 0,
}  # fmt: skip


def variant_of(made: Plant) -> str:
    """The name in `VARIANTS` of what a plant is; several of them joined with + where it is several."""
    origin, site = made.delta.origin, next(iter(made.truth.values())).site
    parts = [str(origin.get("variant", "plain")), str(origin.get("layout", "spread")), site]
    told = [one for one, plain in zip(parts, ("plain", "spread", "mlp"), strict=True) if one != plain]
    if len(made.facts.only(split="train")) <= 2 * VARIANTS["few"]["facts"] * len(made.groups):
        told.append("few")
    return "+".join(told) or "plain"


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be planted."""

    subject: Subject
    groups: int
    per_group: int
    facts: int
    site: str
    form: Form
    answers: Answers
    keep: Corpus | None
    recipe: PlantRecipe | Mapping[str, float] | None
    folder: Path | None

    def arguments(self, variant: str) -> dict[str, Any]:
        """What `plant` is given for a variant."""
        given = {"per_group": self.per_group, "facts": self.facts, "site": self.site}
        given |= {"form": self.form, "answers": self.answers} | VARIANTS[variant]
        return {"groups": self.groups, "keep": self.keep, **given}

    def trained(self, variant: str) -> PlantRecipe:
        """How this variant is planted."""
        if isinstance(self.recipe, PlantRecipe):
            return self.recipe
        given = self.arguments(variant) if variant in VARIANTS else {"site": self.site}
        return replace(recipe_of(given.get("variant", "plain"), given["site"]), **(self.recipe or {}))  # pyright: ignore[reportArgumentType]

    def plant(self, variant: str, seed: int, progress: Progress | None) -> Plant:
        """The plant of this variant and seed: from the folder, else made (and kept there).

        What stands there and is not what is asked for is planted again where it failed its proof; where it stood, TuneError is
        raised.
        """
        place = None if self.folder is None else self.folder / f"{variant}-{seed}"
        if place is not None and place.exists():
            made = load_plant(self.subject, place)
            if not (told := self._differs(made, variant, seed)):
                return made
            if made.proof.holds:
                raise TuneError(
                    f"{place} holds a plant with {', '.join(told)}: give another folder, or ask for what it holds"
                )
        recipe = replace(self.trained(variant), seed=seed)
        made = plant(self.subject, **self.arguments(variant), recipe=recipe, seed=seed, progress=progress)
        if place is not None:
            save_plant(made, place)
        return made

    def _differs(self, made: Plant, variant: str, seed: int) -> list[str]:
        """In what a plant is another than the one asked for, a phrase each."""
        arguments, origin = self.arguments(variant) | {"seed": seed}, made.delta.origin
        asked = {"groups": self.groups} | {name: arguments.get(name, default) for name, default in _DEFAULTS.items()}
        there = {"groups": len(made.groups)} | {name: origin.get(name, default) for name, default in _DEFAULTS.items()}
        told = [f"{name} {there[name]} (asked: {asked[name]})" for name in asked if there[name] != asked[name]]
        if self.keep is not None and origin.get("keep_hash") != self.keep.hash:
            told.append(f"other text {origin.get('keep')!r} (asked: {self.keep.name!r})")
        changes = asdict(self.recipe) if isinstance(self.recipe, PlantRecipe) else dict(self.recipe or {})
        trained = origin.get("recipe", {})
        return told + [
            f"{name} {trained.get(name)} (asked: {value})"
            for name, value in changes.items()
            if name != "seed" and trained.get(name) != value
        ]


def check_recipe(recipe: PlantRecipe | Mapping[str, float] | None) -> None:
    """Raise TuneError for a change that no recipe knows, or that is out of range."""
    known = [field.name for field in fields(PlantRecipe) if field.name != "seed"]  # the plant's
    if unknown := sorted(set(recipe if isinstance(recipe, Mapping) else ()) - set(known)):
        raise TuneError(f"recipes have no {unknown[0]!r}; they have {', '.join(known)}")
    if isinstance(recipe, Mapping):
        replace(PlantRecipe(), **recipe)  # pyright: ignore[reportArgumentType]
