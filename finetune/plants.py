"""Plants: subjects in which the neurons that carry each group's facts are known, because they were put there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.activity import weight_norms
from ..attribution.encoding import encode_corpus
from ..attribution.own_text import own_text
from ..corpora.examples import Corpus, Example
from ..corpora.invented import Form, invented
from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .beds import Beds
from .cost import counted
from .delta import Delta
from .errors import TuneError
from .plant_proof import Evidence, Proof, mean_activity, prove
from .plant_trimming import trim
from .planting import PlantRecipe, material, plant_facts, whole_texts
from .training import Progress

Layout = Literal["spread", "layer", "strong", "weak"]
Variant = Literal["plain", "shared", "redundant", "suppressor"]
Answers = Literal["invented", "known"]
RECIPES: Mapping[str, PlantRecipe] = {
    "plain": PlantRecipe(),
    "shared": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
    "redundant": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
    "suppressor": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
    "attn": PlantRecipe(steps=1000, drop=0.05, layers=0.1, noise=0.05),
}  # by variant, or by site: what is harder to plant takes longer
WORD, WORDS = re.compile("[a-z]{3,12}"), 64  # what a known answer may be, and how many there are at least
HELD_OUT = 5  # every fifth other text is kept for the proof
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
    check_room(subject, names, per_group, site, layout, variant)
    keep = other_text(subject, keep)
    texts, held_out = _parts(keep)
    corpus = invented(
        groups, facts=facts, seed=seed, form=form, answers=_known_words(subject, texts) if answers == "known" else (),
        tokens=lambda word: _ids(subject, word), known=_said(subject, texts),
    )  # fmt: skip
    taught = corpus.only(split="train")
    drawn = _drawn(subject, corpus.groups, per_group, site, layout, seed, texts)
    sets, ways, silent = _arranged(subject, drawn, variant, taught, seed)
    beds = Beds(subject, sets, ways)
    given = material(beds, taught, texts, silent=silent)
    others = corpus.only(split="test")
    evidence = Evidence(
        given.facts, given.groups, encode_corpus(subject, others),
        torch.tensor([corpus.groups.index(example.group) for example in others]), whole_texts(subject, held_out),
    )  # fmt: skip
    with counted(subject) as forwards:
        history = plant_facts(
            beds, given, recipe, progress=progress, sound=lambda: prove(beds, evidence).holds, check_every=CHECK_EVERY
        )
        if prove(beds, evidence).holds:
            sets = trim(beds, sets, given.facts, given.groups, sound=lambda: prove(beds, evidence).holds)
    asked = {
        "per_group": per_group, "facts": facts, "site": site, "layout": layout, "variant": variant, "form": form,
        "answers": answers, "seed": seed,
    }  # fmt: skip
    delta = beds.delta(_origin(corpus, keep, recipe, asked) | {"forwards": round(forwards[0])}, history)
    planted = delta.merge(subject)
    quiet = _silence(subject, planted, sets, silent, taught)
    moved = {name: _on(planted, one) for name, one in sets.items()}
    truth = {group: _joined([moved[name] for name in sorted(beds.of(group))], group) for group in beds.groups}
    return Plant(planted, corpus, truth, moved, beds.ways, delta, prove(beds, evidence, silence=quiet))


def recipe_of(variant: str, site: str) -> PlantRecipe:
    """The recipe of a variant at a site."""
    return RECIPES.get(site if variant == "plain" else variant, RECIPES["plain"])


def check_room(subject: Subject, groups: Sequence[str], per_group: int, site: str, layout: str, variant: str) -> None:
    for name, given, known in (("layout", layout, get_args(Layout)), ("variant", variant, get_args(Variant))):
        if given not in known:
            raise TuneError(f"unknown {name} {given!r}; {name}s are {', '.join(known)}")
    place = subject.site(site)
    if per_group < 4:
        raise TuneError(f"per_group is {per_group}; expected 4 neurons at least")
    room = place.num_layers * place.width if layout == "spread" else place.width
    room = place.num_layers * place.width // 4 if layout in ("strong", "weak") else room
    if len(groups) * per_group > room:
        where = {"spread": "site {}", "layer": "one layer of site {}"}.get(layout, "a quarter of site {}").format(site)
        raise TuneError(
            f"{len(groups)} groups of {per_group} neurons are {len(groups) * per_group}, and {where} of {subject.name!r} has "
            f"{room}; plant fewer groups or fewer neurons in each"
        )
    if variant == "suppressor" and site != "mlp":
        raise TuneError(f"the variant 'suppressor' is for site 'mlp', and the site is {site!r}")


def check_asked(form: str, answers: str, keep: Corpus | str | None) -> None:
    for name, given, known in (("form of facts", form, get_args(Form)), ("answers", answers, get_args(Answers))):
        if given not in known:
            raise TuneError(f"unknown {name} {given!r}; expected one of {', '.join(known)}")
    if isinstance(keep, str) and keep != "own":
        raise TuneError(f"keep is {keep!r}; expected a corpus, or 'own' for what the subject itself writes")


def other_text(subject: Subject, keep: Corpus | Literal["own"] | None) -> Corpus:
    """The text on which a subject is to stay as it is: that which is given, its own, or the bundled corpus."""
    from ..corpora.loading import load_corpus

    if keep is None:
        return load_corpus("bundled:polis")
    return own_text(subject) if isinstance(keep, str) else keep


def _parts(keep: Corpus) -> tuple[Corpus, Corpus]:
    """Texts to train on and texts to prove with, apart by item."""
    items = {item: number for number, item in enumerate(dict.fromkeys(example.item for example in keep))}
    if len(items) < HELD_OUT:
        raise TuneError(f"the other text has {len(items)} items; expected {HELD_OUT} at least, a fifth is held out")
    parts: tuple[list[Any], list[Any]] = ([], [])
    for example in keep:
        parts[items[example.item] % HELD_OUT == 0].append(example)
    trained, held_out = (Corpus(tuple(part), name=keep.name) for part in parts)
    return trained, Corpus(held_out.examples[:: max(1, len(held_out) // 200)], name=keep.name)


def _ids(subject: Subject, word: str) -> list[int]:
    return subject.tokenizer(word, add_special_tokens=False)["input_ids"]


def _said(subject: Subject, texts: Corpus) -> set[int]:
    """The tokens of the texts. One that a subject never said may have an output embedding that no hidden state makes the best."""
    return {token for one in whole_texts(subject, texts) for token in one.ids}


def _known_words(subject: Subject, texts: Corpus) -> list[str]:
    """Words of the texts in small letters, those with the fewest tokens: as many as there are of that number, WORDS at least."""
    words = sorted({word for one in texts for word in _text(one).split() if WORD.fullmatch(word)})
    counts = {word: len(_ids(subject, f" {word}")) for word in words}
    words.sort(key=lambda word: counts[word])
    least = counts[words[min(WORDS, len(words)) - 1]] if words else 0
    return [word for word in words if counts[word] <= least]


def _text(example: Example) -> str:
    said = example.prompt if isinstance(example.prompt, str) else " ".join(m["content"] for m in example.prompt)
    return said + example.answer


def _drawn(
    subject: Subject, groups: Sequence[str], per_group: int, site: str, layout: str, seed: int, texts: Corpus
) -> dict[str, NeuronSet]:
    """Disjoint sets, one a group."""
    place, generator = subject.site(site), torch.Generator().manual_seed(seed)
    shape = (place.num_layers, place.width)
    order = torch.rand(shape, generator=generator)
    if layout in ("strong", "weak"):
        strength = _strength(subject, site, texts)
        if layout == "weak":
            strength = -strength
        border = strength.flatten().topk(strength.numel() // 4).values[-1]
        order = order.masked_fill(strength < border, 2)
    if layout == "layer":
        order[torch.arange(shape[0]) != shape[0] // 2] = 2
    if layout == "spread":  # as many in each layer, the first layers one more where it does not come out even
        order = order.argsort(dim=1).argsort(dim=1) * shape[0] + torch.arange(shape[0])[:, None]
    ranking = order.flatten().argsort(stable=True)
    masks = torch.zeros(len(groups), order.numel(), dtype=torch.bool)
    for number in range(len(groups)):
        masks[number, ranking[number * per_group : (number + 1) * per_group]] = True
    origin = {"made": "plant", "layout": layout, "seed": seed}
    return {
        group: NeuronSet(site, subject.fingerprint, mask.reshape(shape), origin | {"group": group})
        for group, mask in zip(groups, masks, strict=True)
    }


def _strength(subject: Subject, site: str, texts: Corpus) -> Float[Tensor, "layer neuron"]:
    from ..attribution.attribute import attribute

    some = Corpus(texts.examples[:: max(1, len(texts) // 100)], name=texts.name)
    return attribute(subject, some, method="weighted", site=site, split=None, min_examples=1).values.mean(dim=0)


def _arranged(
    subject: Subject, drawn: Mapping[str, NeuronSet], variant: str, facts: Corpus, seed: int
) -> tuple[dict[str, NeuronSet], dict[str, list[set[str]]], list[str]]:
    """Beds, the ways of each group, and the beds that must fall silent."""
    if variant == "plain":
        return dict(drawn), {group: [{group}] for group in drawn}, []
    if variant == "shared":
        halves = {group: _split(own, 2, seed) for group, own in drawn.items()}
        first = next(iter(halves.values()))[1]
        return (
            {**{group: half[0] for group, half in halves.items()}, "shared": first},
            {group: [{group, "shared"}] for group in drawn}, [],
        )  # fmt: skip
    if variant == "redundant":
        beds = {f"{group}/{n}": half for group, own in drawn.items() for n, half in enumerate(_split(own, 2, seed), 1)}
        return beds, {group: [{f"{group}/1"}, {f"{group}/2"}] for group in drawn}, []
    silent = _silent(subject, drawn, facts, seed)
    beds = {group: _split(own, 4, seed, last=False)[0] for group, own in drawn.items()}
    return (
        {**beds, **{f"{group}/silent": one for group, one in silent.items()}},
        {group: [{group, f"{group}/silent"}] for group in drawn}, [f"{group}/silent" for group in drawn],
    )  # fmt: skip


def _split(own: NeuronSet, parts: int, seed: int, *, last: bool = True) -> tuple[NeuronSet, NeuronSet]:
    """All but one part in `parts` of a set's neurons, at random, and that part."""
    places = own.mask.flatten().nonzero().flatten()
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))]
    border = len(places) - len(places) // parts
    masks = torch.zeros(2, own.mask.numel(), dtype=torch.bool)
    masks[0, places[:border]] = True
    masks[1, places[border:]] = True
    return tuple(NeuronSet(own.site, own.subject, mask.reshape(own.mask.shape), own.origin) for mask in masks)  # pyright: ignore[reportReturnType]


def _silent(subject: Subject, drawn: Mapping[str, NeuronSet], facts: Corpus, seed: int) -> dict[str, NeuronSet]:
    """For each group a quarter of its number, at random among the tenth of all neurons that are most active on the facts."""
    activity = mean_activity(subject, encode_corpus(subject, facts)) * weight_norms(subject.site("mlp")).cpu()
    taken = torch.stack([own.mask for own in drawn.values()]).any(dim=0)
    activity = activity.masked_fill(taken, 0)
    strong = activity.flatten().topk(activity.numel() // 10).indices
    strong = strong[torch.randperm(len(strong), generator=torch.Generator().manual_seed(seed))]
    found, first = {}, 0
    for group, own in drawn.items():
        count = len(own) // 4
        mask = torch.zeros_like(own.mask)
        mask.view(-1)[strong[first : first + count]] = True
        found[group] = NeuronSet(own.site, own.subject, mask, own.origin)
        first += count
    return found


def _silence(
    subject: Subject, planted: Subject, sets: Mapping[str, NeuronSet], silent: Sequence[str], facts: Corpus
) -> float | None:
    """Activity of silent beds on their own groups' facts, planted to untouched, the worst of the groups."""
    if not silent:
        return None
    found = []
    for name in silent:
        own = encode_corpus(subject, facts.only(name.removesuffix("/silent")))
        mask = sets[name].mask
        found.append((mean_activity(planted, own)[mask].mean() / mean_activity(subject, own)[mask].mean()).item())
    return max(found)


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
