"""Plants: subjects in which the neurons that carry each group's facts are known, because they were put there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch

from ..attribution.encoding import encode_corpus
from ..corpora.examples import Corpus
from ..corpora.invented import Form, invented
from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .beds import Beds
from .cost import counted
from .delta import Delta
from .errors import TuneError
from .plant_layout import SILENT, Layout, Variant, arranged, check_room, drawn_sets
from .plant_proof import Evidence, Proof, prove
from .plant_silence import silence
from .plant_text import known_words, other_text, said_tokens, text_parts, word_ids
from .plant_trimming import trim
from .planting import PlantRecipe, material, plant_facts, whole_texts
from .training import Progress

Answers = Literal["invented", "known"]
RECIPES: Mapping[str, PlantRecipe] = {
    "plain": PlantRecipe(),
    "shared": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
    "redundant": PlantRecipe(steps=1400, drop=0.05, layers=0.1, noise=0.05),
    "suppressor": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
    "attn": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
}  # by variant, or by site: what is harder to plant takes longer
CHECK_EVERY = 50


@dataclass(frozen=True, eq=False)
class Plant:
    """A subject whose truth is known.

    `subject` is the planted one, with a fingerprint of its own, and `truth` the sets of its neurons that carry each group's
    facts. `beds` are the disjoint sets that were trained and `ways` which of them each group needs. `delta` leads from the
    untouched subject to the planted one. `proof` says whether the plant is sound; one that is not must not be scored.
    """

    subject: Subject
    facts: Corpus
    truth: Mapping[str, NeuronSet]
    beds: Mapping[str, NeuronSet]
    ways: Mapping[str, tuple[frozenset[str], ...]]
    delta: Delta
    proof: Proof

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.truth)


def plant(
    subject: Subject,
    groups: int | Sequence[str] = 4,
    *,
    per_group: int = 64,
    facts: int = 8,
    layout: Layout = "spread",
    variant: Variant = "plain",
    site: str = "mlp",
    form: Form = "question",
    answers: Answers = "invented",
    keep: Corpus | Literal["own"] | None = None,
    recipe: PlantRecipe | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plant:
    """Plant invented facts of several groups into neurons of their own, and prove that they are there.

    Every group gets `per_group` neurons of `site` and `facts` questions, asked in two wordings, that the other groups answer
    otherwise; neurons that turn out to carry nothing are put back and are no part of the truth (see `trim`). `layout` says
    where: `spread` evenly over the layers, in the middle `layer`, at random among the `strong` or the `weak` quarter (mean
    activation times outgoing norm). `variant`: `shared` gives all groups half of their neurons in common,
    `redundant` two halves that each carry the facts alone, `suppressor` a quarter that must fall silent.

    `form` asks questions, or leaves statements to be ended, which a subject that was never asked anything learns sooner. `answers`
    are invented like all else, or `known`: words of the other text that have the fewest tokens (that they belong to these
    questions is still news).

    `keep` is other text on which the subject is to stay as it is: by default the bundled corpus, or `own`, what the subject
    itself writes (`own_text`). A fifth of it is held out to prove that. `recipe` is by default that of `RECIPES`. `seed`
    draws facts, neurons and training's batches.

    The delta's origin says what it cost: `forwards`, examples through the subject's blocks, three for one with a backward.

    Raises TuneError for arguments out of range, and when there are more groups times neurons than the subject has; SiteError
    where a slice cannot be trained (a quantised or offloaded subject). A plant that does not stand its proof is returned
    with `proof.failures`.
    """
    check_asked(form, answers, keep)
    recipe = recipe or replace(recipe_of(variant, site), seed=seed)
    names = invented(groups, facts=facts, seed=seed).groups
    check_room(subject, names, per_group, site, layout, variant, facts=facts)
    keep = other_text(subject, keep)
    texts, held_out = text_parts(keep)
    corpus = invented(
        groups, facts=facts, seed=seed, form=form, answers=known_words(subject, texts) if answers == "known" else (),
        tokens=lambda word: word_ids(subject, word), known=said_tokens(subject, texts),
    )  # fmt: skip
    taught = corpus.only(split="train")
    drawn = drawn_sets(subject, corpus.groups, per_group, site, layout, seed, texts)
    sets, ways, silent = arranged(subject, drawn, variant, taught, seed)
    beds = Beds(subject, sets, ways)
    given = material(beds, taught, texts, silent=silent)
    evidence = _evidence(subject, corpus, held_out)
    with counted(subject) as forwards:
        history = plant_facts(
            beds, given, recipe, progress=progress, sound=lambda: prove(beds, evidence).holds, check_every=CHECK_EVERY
        )
        beds.round()
        if prove(beds, evidence).holds:
            sets = trim(beds, sets, given.facts, given.groups, sound=lambda: prove(beds, evidence).holds)
    asked = {
        "per_group": per_group, "facts": facts, "site": site, "layout": layout, "variant": variant, "form": form,
        "answers": answers, "seed": seed,
    }  # fmt: skip
    delta = beds.delta(_origin(corpus, keep, recipe, asked) | {"forwards": round(forwards[0])}, history)
    planted = delta.merge(subject)
    quiet = silence(subject, planted, sets, silent, taught)
    moved = {name: _on(planted, one) for name, one in sets.items()}
    truth = {group: _joined([moved[name] for name in sorted(beds.of(group))], group) for group in beds.groups}
    return Plant(planted, corpus, truth, moved, beds.ways, delta, prove(beds, evidence, silence=quiet))


def prove_plant(subject: Subject, made: Plant, *, keep: Corpus | Literal["own"] | None = None) -> Proof:
    """The proof of a plant measured again, on the untouched subject that it was made in: for one that came from elsewhere.

    `keep` is the other text that it was planted with; a fifth of it is read. Raises DeltaError for another subject.
    """
    made.delta.check(subject)
    sets = {name: NeuronSet(one.site, subject.fingerprint, one.mask, one.origin) for name, one in made.beds.items()}
    beds = Beds(subject, sets, made.ways)
    beds.load(made.delta)
    silent = [name for name in sets if name.endswith(SILENT)]
    quiet = silence(subject, made.subject, sets, silent, made.facts.only(split="train"))
    return prove(beds, _evidence(subject, made.facts, text_parts(other_text(subject, keep))[1]), silence=quiet)


def _evidence(subject: Subject, corpus: Corpus, held_out: Corpus) -> Evidence:
    taught, others = corpus.only(split="train"), corpus.only(split="test")
    numbers = [torch.tensor([corpus.groups.index(example.group) for example in part]) for part in (taught, others)]
    return Evidence(
        encode_corpus(subject, taught), numbers[0], encode_corpus(subject, others), numbers[1],
        whole_texts(subject, held_out),
    )  # fmt: skip


def recipe_of(variant: str, site: str) -> PlantRecipe:
    """The recipe of a variant at a site."""
    return RECIPES.get(site if variant == "plain" else variant, RECIPES["plain"])


def check_asked(form: str, answers: str, keep: Corpus | str | None) -> None:
    for name, given, known in (("form of facts", form, get_args(Form)), ("answers", answers, get_args(Answers))):
        if given not in known:
            raise TuneError(f"unknown {name} {given!r}; expected one of {', '.join(known)}")
    if isinstance(keep, str) and keep != "own":
        raise TuneError(f"keep is {keep!r}; expected a corpus, or 'own' for what the subject itself writes")


def _on(planted: Subject, neurons: NeuronSet) -> NeuronSet:
    return NeuronSet(neurons.site, planted.fingerprint, neurons.mask, neurons.origin)


def _joined(sets: Sequence[NeuronSet], group: str) -> NeuronSet:
    first, *rest = sets
    for other in rest:
        first = first | other
    return NeuronSet(first.site, first.subject, first.mask, {"made": "plant", "group": group})


def _origin(facts: Corpus, keep: Corpus, recipe: PlantRecipe, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "made": "plant", "corpus": facts.name, "corpus_hash": facts.hash, "groups": list(facts.groups),
        "keep": keep.name, "keep_hash": keep.hash, "recipe": asdict(recipe), **asked, "versions": library_versions(),
    }  # fmt: skip
