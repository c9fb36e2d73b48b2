"""Two studies of generalisation: how many neurons are tuned, and how many of them are the tested task's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import reduce
from operator import or_
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import Encoded, encode_corpus
from ..attribution.selection import select
from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .errors import TuneError
from .location import Location
from .sweep import Sweep
from .trainable import trainable_slice
from .training import Progress, Recipe, train

Accuracy = Callable[[Subject, Corpus], Tensor]
SHARES = (0.1, 0.3, 0.5, 0.7, 1.0)
OVERLAPS = (0.1, 0.3, 0.5, 0.7, 1.0)


def proportion(
    subject: Subject,
    corpus: Corpus,
    *,
    train_on: Sequence[str],
    test_on: Sequence[str],
    accuracy: Accuracy,
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = (0, 1, 2),
    location: Location | None = None,
    lr: float = 3e-4,
    steps: int | None = None,
    epochs: int = 3,
    batch_size: int = 16,
    sets: Literal["union", "mean"] = "union",
    stop_diverged: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """Tune the top share of neurons of some groups together, and test on them and on groups that were not trained on.

    Leng & Xiong, section 3.2: in-domain accuracy is specialisation, out-of-domain generalisation. With
    `sets="union"`, as in the paper (Eq 13), the set of a share is the union of the training groups' sets, each that
    group's top share, so that it is larger than the share; `sizes` says how large. With "mean" it is the top share by the
    mean of the groups' scores. Scores are those of the untouched subject; a share of 1 is every neuron of the site (and
    not every parameter). `lr` serves every share. `location` gives the other arguments of scoring and selecting; its
    `top` and `apart` are not used. `stop_diverged` is that of `Recipe`.

    Raises TuneError for a group on both sides or without rows to train on or to ask, for a share outside 0 to 1 and for
    no share or seed, CorpusError for a group that is not there.
    """
    where = replace(location or Location(), apart=False)
    _apart(train_on, test_on)
    _some(seeds=seeds, shares=shares)
    if sets not in ("union", "mean"):
        raise TuneError(f"unknown sets {sets!r}; expected union (of the groups' sets) or mean (of their scores)")
    recipe = Recipe(lr=lr, steps=steps, epochs=epochs, batch_size=batch_size, stop_diverged=stop_diverged)
    scores = where.score(subject, _scored(corpus, train_on, test_on))
    pick = _union if sets == "union" else _pooled
    plans = []
    for share in shares:
        own, tested = (pick(scores, groups, share, where) for groups in (train_on, test_on))
        plans.append(({"share": share}, lambda seed, own=own: own, tested))
    return _sweep(
        "proportion", subject, corpus, train_on, test_on, plans, seeds, recipe, accuracy, where, progress, sets=sets
    )  # fmt: skip


def overlap_ablation(
    subject: Subject,
    corpus: Corpus,
    *,
    train_on: Sequence[str],
    test_on: Sequence[str],
    accuracy: Accuracy,
    shares: Sequence[float] = (0.1, 0.3, 0.5),
    overlaps: Sequence[float] = OVERLAPS,
    seeds: Sequence[int] = (0, 1, 2),
    location: Location | None = None,
    lr: float = 3e-4,
    steps: int | None = None,
    epochs: int = 3,
    batch_size: int = 16,
    stop_diverged: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """Tune sets of one size of which more and more belongs to the tested groups' set.

    Leng & Xiong's ablation of the overlap: a set of n neurons is a share `overlap` of n drawn at random from the tested
    groups' n top neurons and the rest drawn from all others; the seed draws. The setting "natural" is the training
    groups' own set. The set of several groups is the top share by the mean of their scores, since a union of their sets
    would have another size. What is trained on is the training groups, whatever the set. Raises as `proportion` does,
    and for a share above one half, where the others are too few for small overlaps.
    """
    where = replace(location or Location(), apart=False)
    _apart(train_on, test_on)
    _some(seeds=seeds, shares=shares, overlaps=overlaps)
    recipe = Recipe(lr=lr, steps=steps, epochs=epochs, batch_size=batch_size, stop_diverged=stop_diverged)
    scores = where.score(subject, _scored(corpus, train_on, test_on))
    plans = []
    for share in shares:
        own, tested = (_pooled(scores, groups, share, where) for groups in (train_on, test_on))
        plans.append(({"share": share, "overlap": "natural"}, lambda seed, own=own: own, tested))
        for part in overlaps:
            make = lambda seed, part=part, tested=tested: mixed_set(tested, part, seed=seed, layers=where.layers)  # noqa: E731
            make(0)
            plans.append(({"share": share, "overlap": part}, make, tested))
    return _sweep("overlap", subject, corpus, train_on, test_on, plans, seeds, recipe, accuracy, where, progress)


def mixed_set(tested: NeuronSet, overlap: float, *, seed: int, layers: Sequence[int] | None = None) -> NeuronSet:
    """As many neurons as `tested` has: a share `overlap` of them drawn from it and the rest from outside it."""
    if not 0 <= overlap <= 1:
        raise TuneError(f"overlap is a share of the set, expected 0 to 1, got {overlap}")
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.zeros_like(tested.mask)
    allowed[list(range(tested.num_layers) if layers is None else layers)] = True
    inside, outside = tested.mask.flatten().nonzero()[:, 0], (allowed & ~tested.mask).flatten().nonzero()[:, 0]
    own = round(overlap * len(tested))
    if len(tested) - own > len(outside):
        raise TuneError(
            f"an overlap of {overlap:g} needs {len(tested) - own} neurons outside the tested groups' {len(tested)}, there "
            f"are {len(outside)}; take a smaller share or a greater overlap"
        )
    drawn = [
        places[torch.randperm(len(places), generator=generator)[:count]]
        for places, count in ((inside, own), (outside, len(tested) - own))
    ]
    mask = torch.zeros_like(tested.mask).flatten()
    mask[torch.cat(drawn)] = True
    origin = {"made": "mixed", "overlap": overlap, "seed": seed, "of": tested.digest}
    return NeuronSet(tested.site, tested.subject, mask.view_as(tested.mask), origin)


def jaccard_index(one: NeuronSet, other: NeuronSet) -> float:
    """|x & y| / |x | y|."""
    return len(one & other) / max(1, len(one | other))


def chance_jaccard(one: int, other: int, neurons: int) -> float:
    """Expected |x & y| over expected |x | y| of independent random sets of these sizes among so many neurons."""
    shared = one * other / neurons
    return shared / (one + other - shared) if one + other else float("nan")


def chance_by_layer(one: NeuronSet, other: NeuronSet) -> tuple[float, Float[Tensor, " layer"]]:
    """What `chance_jaccard` is for random sets with as many neurons in each layer as these have; and in each layer."""
    sizes = [mask.sum(dim=1).double() for mask in (one.mask, other.mask)]
    shared = sizes[0] * sizes[1] / one.width
    total = float(shared.sum() / (sizes[0] + sizes[1] - shared).sum())
    return total, (shared / (sizes[0] + sizes[1] - shared)).float()


def jaccard_by_layer(one: NeuronSet, other: NeuronSet) -> Float[Tensor, " layer"]:
    """`jaccard_index` in each layer; NaN where both sets are empty."""
    return (one.mask & other.mask).sum(dim=1) / (one.mask | other.mask).sum(dim=1)


def _scored(corpus: Corpus, train_on: Sequence[str], test_on: Sequence[str]) -> Corpus:
    """The training rows of all groups, once it is known that no group lacks rows to train on or to ask."""
    every = corpus.only([*train_on, *test_on])
    train, test = every.part("auto", auto="train"), every.part("auto", auto="test")
    for group in (*train_on, *test_on):
        for part, what in ((train, "train on (split train): they give its neurons"), (test, "ask (split test)")):
            if group not in part.groups:
                raise TuneError(f"group {group!r} has no rows to {what}; add some, or leave the group out")
    return train


def _some(**given: Sequence[Any]) -> None:
    for name, values in given.items():
        if not len(values) or len(set(values)) < len(values):
            raise TuneError(f"give at least one of {name}, and each once, got {list(values)}")


def _union(scores: Scores, groups: Sequence[str], share: float, where: Location) -> NeuronSet:
    """The union of some groups' sets, each the top share by the group's own scores."""
    one, *others = (_pooled(scores, [group], share, where) for group in groups)
    return reduce(or_, others, one)


def _pooled(scores: Scores, groups: Sequence[str], share: float, where: Location) -> NeuronSet:
    """The top share by the mean of some groups' scores."""
    if not 0 < share <= 1:
        raise TuneError(f"a share of the neurons lies above 0 and at most at 1, got {share}")
    values = scores.values if where.by == "values" else scores.signed
    rows = values[[scores.index(group) for group in groups]].mean(dim=0, keepdim=True)
    pooled = replace(scores, groups=("pooled",), values=rows, signed=rows, squares=rows, counts=torch.ones(1))
    room = len(where.layers or range(scores.num_layers)) * scores.width
    top = max(1, round(share * room))
    if where.scope == "layer":
        top = max(1, round(share * scores.width))
    return select(pooled, top=top, scope=where.scope, layers=where.layers)["pooled"]


Plan = tuple[dict[str, Any], Callable[[int], NeuronSet], NeuronSet]


def _sweep(
    kind: str, subject: Subject, corpus: Corpus, train_on: Sequence[str], test_on: Sequence[str],
    plans: Sequence[Plan], seeds: Sequence[int], recipe: Recipe, accuracy: Accuracy, where: Location,
    progress: Progress | None, **further: Any,
) -> Sweep:  # fmt: skip
    """Tune every plan's set on the training groups, each from the untouched subject, and ask every group."""
    lesson = corpus.only(train_on).part("auto", auto="train")
    exam = corpus.only([*train_on, *test_on]).part("auto", auto="test")
    rows = {group: [i for i, e in enumerate(exam) if e.group == group] for group in (*train_on, *test_on)}
    encoded = encode_corpus(subject, lesson)

    def ask() -> list[float]:
        right = accuracy(subject, exam).cpu().double()
        return [float(right[places].mean()) for places in rows.values()]

    untouched, found, sizes, shared, chance, by_layer = ask(), [], [], [], [], []
    count, total = 0, len(plans) * len(seeds)
    for _, make, tested in plans:
        found.append([])
        chosen = [make(seed) for seed in seeds]
        for seed, neurons in zip(seeds, chosen, strict=True):
            with _tuned(subject, encoded, neurons, replace(recipe, seed=seed)).applied(subject):
                found[-1].append(ask())
            count += 1
            if progress is not None:
                progress(count, total)
        sizes.append([len(one) for one in chosen])
        shared.append([jaccard_index(one, tested) for one in chosen])
        expected = [chance_by_layer(one, tested) for one in chosen]
        chance.append(sum(total for total, _ in expected) / len(expected))
        pairs = [(jaccard_by_layer(one, tested), layers) for one, (_, layers) in zip(chosen, expected, strict=True)]
        by_layer.append(torch.stack([torch.stack(pair) for pair in pairs]).mean(dim=0))
    training = {key: value for key, value in recipe.facts().items() if key != "seed"}
    return Sweep(
        subject.fingerprint, kind, tuple(setting for setting, _, _ in plans), tuple(rows), tuple(train_on),
        tuple(test_on), tuple(seeds), torch.tensor(found), torch.tensor(untouched), torch.tensor(sizes),
        torch.tensor(shared), torch.tensor(chance),
        origin={
            "corpus_hash": corpus.hash, **further, "location": asdict(where), "recipe": training,
            "num_questions": {group: len(places) for group, places in rows.items()}, "versions": library_versions(),
        },
        tested_sizes=torch.tensor([len(tested) for _, _, tested in plans]), by_layer=torch.stack(by_layer),
    )  # fmt: skip


def _tuned(subject: Subject, encoded: Sequence[Encoded], neurons: NeuronSet, recipe: Recipe) -> Delta:
    with trainable_slice(subject, neurons) as trainable:
        history = train(subject, encoded, trainable, recipe)
        return Delta(subject.fingerprint, neurons, trainable.values(), trainable.base_values(), history)


def _apart(train_on: Sequence[str], test_on: Sequence[str]) -> None:
    both = sorted(set(train_on) & set(test_on))
    if both or not train_on or not test_on:
        raise TuneError(
            f"group {both[0]!r} is trained on and tested as out of domain; name it once"
            if both
            else "name at least one group to train on and one to test on"
        )
