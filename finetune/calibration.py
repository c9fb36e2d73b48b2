"""`calibrate`: plant neurons whose role is known in a subject, and see which methods and selections find them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..attribution.methods import METHODS as REGISTERED
from ..corpora.examples import Corpus
from ..corpora.invented import Form, invented
from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .calibration_plants import VARIANTS, Asked, check_recipe, variant_of
from .calibration_result import Calibration
from .calibration_scores import Options, deletion_advantage, random_subject, scored
from .calibration_table import SCORING, Bar, Table
from .errors import TuneError
from .plant_layout import check_room
from .plant_text import other_text
from .planting import PlantRecipe
from .plants import Answers, Plant, check_asked
from .quantised import QuantisedEntry
from .slices import linear_parts, slice_entries
from .training import Progress

METHODS = ("taylor", "ig", "relp", "lape", "culnig", "coalition", "random")
POINTS = 40  # of the curves over k


def calibrate(
    subject: Subject,
    *,
    methods: Sequence[str] = METHODS,
    groups: int = 4,
    per_group: int = 64,
    facts: int = 8,
    seeds: int | Sequence[int] = 3,
    variants: Sequence[str] = ("plain",),
    site: str = "mlp",
    form: Form = "question",
    answers: Answers = "invented",
    keep: Corpus | Literal["own"] | None = None,
    recipe: PlantRecipe | Mapping[str, float] | None = None,
    options: Options | None = None,
    plants: Iterable[Plant] | None = None,
    folder: str | Path | None = None,
    checks: bool = True,
    draws: int = 200,
    deletion: Corpus | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Plant invented facts into neurons of their own, and measure how well methods find these neurons.

    For each of `seeds` and `variants` (see `VARIANTS`; `plain` spreads `per_group` neurons a group over all layers) a plant is
    made and proved; one that does not stand its proof is told and not scored. Methods see the planted subject and the facts'
    training rows, nothing else. Any registered method can be named. Each is ranked in all ways that `select` can
    (`attribution.rankings`). `options` are further arguments by method: {"ig": {"steps": 32}}.

    `plants` takes ready plants instead, such as `load_plant` gives, so that a benchmark can be shared. `folder` is where plants are
    kept, one folder each: those that stand there are taken, others are made and saved. `form`, `answers`, `keep` and `recipe` are
    `plant`'s; a mapping changes fields of each variant's own recipe.

    `checks` measures false positives on the plants of the first variant: the share of neurons that `permutation` (`draws`
    relabellings) calls specific at the 5 % level with group labels shuffled among items, and on a subject of the same
    configuration with random weights. `deletion` is a corpus of natural groups: then the methods' deletion curves on it are
    measured in the untouched subject, to see whether both agree on which method is better.

    `progress(done, total)` counts steps of planting; whatever else is done with a plant counts as some.

    Raises TuneError, ValueError or SiteError, before anything is planted, for unknown methods and variants, for more groups times
    neurons than there are, and for a method that cannot score this subject.
    """
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    check_asked(form, answers, keep)
    check_recipe(recipe)
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise TuneError(f"{folder} is a file; give a folder for the plants, or a new name")
    keep = other_text(subject, keep) if plants is None else None
    asked = Asked(
        subject, groups, per_group, facts, site, form, answers, keep, recipe, None if folder is None else Path(folder)
    )
    ready = None if plants is None else _by_name(plants)
    if ready is not None:
        variants, numbers = tuple(dict.fromkeys(v for v, _ in ready)), tuple(dict.fromkeys(s for _, s in ready))
    _check_asked(asked, methods, variants, numbers, options or {}, ready)
    blank = random_subject(subject, seed=0) if checks else None
    place = subject.site(site)
    counts = _grid(place.num_layers * place.width)
    table = Table(methods, variants, numbers, place.num_layers, groups if ready is None else _groups_of(ready), counts)
    advantage = torch.full((len(methods),), torch.nan, dtype=torch.float64)
    if deletion is not None:
        advantage = deletion_advantage(subject, deletion, methods, site=site, options=options or {})
    bar = Bar(progress, [asked.trained(variant).steps + SCORING * len(methods) * (3 if checks and v == 0 else 1)
                          for v, variant in enumerate(variants) for _ in numbers])  # fmt: skip
    for v, s, made in _plants(asked, variants, numbers, ready, bar):
        table.note(v, s, made)
        bar.to(asked.trained(variants[v]).steps)
        if made.proof.holds:
            table.score(v, s, made, options or {}, bar)
            if blank is not None and v == 0:
                table.check(s, made, blank, options or {}, draws, bar)
        bar.next()
    origin = {
        "groups": groups, "per_group": per_group, "facts": facts, "form": form, "answers": answers, "draws": draws,
        "recipe": asdict(recipe) if isinstance(recipe, PlantRecipe) else dict(recipe or {}),
        "options": {name: dict(given) for name, given in (options or {}).items()}, "ready": ready is not None,
        "natural": None if deletion is None else deletion.name, "checks": checks, "versions": library_versions(),
    }  # fmt: skip
    return table.result(subject, site, advantage, origin)


def _by_name(plants: Iterable[Plant]) -> dict[tuple[str, int], Plant]:
    """Ready plants by variant and seed."""
    found: dict[tuple[str, int], Plant] = {}
    for one in plants:
        key = (variant_of(one), int(one.delta.origin.get("seed", 0)))
        if key in found:
            raise TuneError(f"two plants are of variant {key[0]} and seed {key[1]}; give each once")
        found[key] = one
    return found


def _plants(
    asked: Asked, variants: Sequence[str], seeds: Sequence[int], ready: Mapping[tuple[str, int], Plant] | None, bar: Bar
) -> Iterator[tuple[int, int, Plant]]:  # fmt: skip
    """Every plant with the numbers of its variant and seed, one at a time: each is as large as the subject."""
    if asked.folder is not None:
        asked.folder.mkdir(exist_ok=True)
    for v, variant in enumerate(variants):
        for s, seed in enumerate(seeds):
            if ready is not None:
                if (variant, seed) in ready:
                    yield v, s, ready[variant, seed]
                continue
            yield v, s, asked.plant(variant, seed, bar.to)


def _grid(neurons: int) -> Int[Tensor, " k"]:
    """Whole numbers from 1 to the number of neurons, evenly on a log scale."""
    return (
        torch.logspace(0, torch.tensor(float(neurons)).log10().item(), POINTS, dtype=torch.float64)
        .round()
        .long()
        .unique()
    )


def _groups_of(ready: Mapping[tuple[str, int], Plant]) -> int:
    return max(len(one.groups) for one in ready.values())


def _check_asked(
    asked: Asked, methods: Sequence[str], variants: Sequence[str], seeds: Sequence[int], options: Options,
    ready: Mapping[tuple[str, int], Plant] | None,
) -> None:  # fmt: skip
    """Whatever can be known to be wrong before anything is planted."""
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise TuneError(f"methods is {methods!r}; expected the names of one method or more, each once")
    for name in (*methods, *options):
        if name not in REGISTERED:
            raise TuneError(f"unknown method {name!r}; methods are {', '.join(sorted(REGISTERED))}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise TuneError(f"seeds is {list(seeds)}; expected one or more, each once")
    if ready is not None:
        for one in ready.values():
            one.delta.check(asked.subject)
    elif isinstance(variants, str) or not variants or len(set(variants)) < len(variants):
        raise TuneError(f"variants is {variants!r}; expected one or more of {', '.join(VARIANTS)}, each once")
    for variant in variants if ready is None else ():
        if variant not in VARIANTS:
            raise TuneError(f"unknown variant {variant!r}; variants are {', '.join(VARIANTS)}")
        given = asked.arguments(variant)
        names = [str(number) for number in range(asked.groups)]
        check_room(
            asked.subject, names, given["per_group"], given["site"], given.get("layout", "spread"),
            given.get("variant", "plain"), facts=given["facts"],
        )  # fmt: skip
    sites = dict.fromkeys(asked.arguments(variant)["site"] for variant in variants) if ready is None else ()
    trial = invented(asked.groups, facts=1, form=asked.form).only(split="train") if ready is None else None
    for site in sites:
        _check_trainable(asked.subject, site)
        for name in methods:
            if name not in ("exact", "random") and trial is not None:
                scored(asked.subject, trial, name, site=site, options=options)


def _check_trainable(subject: Subject, site: str) -> None:
    """Whether weights of the site can hold what is planted."""
    one = NeuronSet.from_indices(subject, site=site, indices={0: [0]})
    entries = slice_entries(linear_parts(subject, one, what="planting"))
    if any(isinstance(entry, QuantisedEntry) for entry in entries):
        raise TuneError(
            f"{subject.name!r} is quantised, and site {site} cannot hold a plant in its weights; load it in float32 or bfloat16"
        )
