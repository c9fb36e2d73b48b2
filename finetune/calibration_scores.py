"""What one plant says of one method: how well its rankings find the planted neurons, and how often it finds what is not there."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.attribute import attribute
from ..attribution.fidelity import fidelity
from ..attribution.methods import method_named
from ..attribution.permutation import permutation
from ..attribution.rankings import RANKINGS, rankings
from ..attribution.retrieval import chosen_share, found_among, retrieval
from ..corpora.examples import Corpus, Example
from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.subject import Subject, load_model
from .errors import TuneError

METRICS = ("recall", "precision", "auroc")
LEVEL = 0.05
CORRECTIONS = ("family", "none")
NATURAL = 24  # rows of each natural group and split that deletion curves are measured on
Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of one method on one plant; NaN for rankings that its scores do not allow.

    `values` and `by_layer` are recall at K, average precision and AUROC: over all layers for each group, and with the ranking
    of one layer alone, meaned over the groups that have true neurons there. `found` is the number of true neurons among the
    first k and `false_finds` that of others among the first K by layer, both meaned over groups.
    """

    values: Float[Tensor, "metric ranking group"]
    by_layer: Float[Tensor, "metric ranking layer"]
    found: Float[Tensor, "ranking k"]
    false_finds: Float[Tensor, "ranking layer"]


def measured(scores: Scores, truth: Bool[Tensor, "group layer neuron"], counts: Int[Tensor, " k"]) -> Measured:
    """Hold every ranking of the scores against the truth. Counts above the number of neurons find all of them."""
    groups, layers = truth.shape[:2]
    counts = counts.clamp(max=truth[0].numel())
    made = Measured(
        *(
            torch.full(shape, torch.nan, dtype=torch.float64)
            for shape in (
                (len(METRICS), len(RANKINGS), groups), (len(METRICS), len(RANKINGS), layers),
                (len(RANKINGS), len(counts)), (len(RANKINGS), layers),
            )
        )
    )  # fmt: skip
    for name, ranking in rankings(scores).items():
        row = RANKINGS.index(name)
        made.values[:, row] = _figures(ranking, truth)
        for layer in range(layers):
            part = slice(layer, layer + 1)
            made.by_layer[:, row, layer] = _figures(ranking[:, part], truth[:, part]).nanmean(dim=1)
        pairs = [(one.flatten(), true.flatten()) for one, true in zip(ranking, truth, strict=True) if bool(true.any())]
        made.found[row] = torch.stack([found_among(*pair, counts) for pair in pairs]).mean(dim=0)
        false = [chosen_share(one, int(true.sum())) * ~true for one, true in pairs]
        made.false_finds[row] = torch.stack(false).mean(dim=0).reshape(layers, -1).sum(dim=1)
    return made


def _figures(
    ranking: Float[Tensor, "group layer neuron"], truth: Bool[Tensor, "group layer neuron"]
) -> Float[Tensor, "metric group"]:
    found = retrieval(ranking, truth)
    return torch.stack([getattr(found, metric) for metric in METRICS])


def scored(
    subject: Subject, corpus: Corpus, method: str, *, site: str, options: Options, keep_rows: bool = False
) -> Scores:
    """Scores of one method, with its own objective and, where it can and the corpus has them, control twins.

    `exact` evaluates every neuron unless `options` say otherwise.
    """
    known = method_named(method)
    twins = known.reads != "subject" and method != "exact" and all(e.control is not None for e in corpus)
    given = dict(options.get(method, {}))
    if method == "exact":
        place = subject.site(site)
        given = {"sample": place.num_layers * place.width} | given
    how: dict[str, Any] = {"objective": known.objective or "loss", "controls": twins, "keep_rows": keep_rows}
    return attribute(subject, corpus, method=method, site=site, split=None, options=given, min_examples=1, **how)


def called_specific(scores: Scores, *, draws: int, seed: int) -> Float[Tensor, " correction"]:
    """The share of a site's neurons that `permutation` calls specific at the 5 % level, mean over groups, for each of CORRECTIONS.

    NaN for scores without rows, which cannot be tested.
    """
    if scores.rows is None:
        return torch.full((len(CORRECTIONS),), torch.nan, dtype=torch.float64)
    found = permutation(scores, draws=draws, seed=seed)
    levels = {"family": found.p_family, "none": found.p}
    return torch.stack([(levels[name] <= LEVEL).double().mean() for name in CORRECTIONS])


def false_positives(
    subject: Subject, corpus: Corpus, method: str, *, site: str, options: Options, draws: int, seed: int
) -> Float[Tensor, " correction"]:
    """`called_specific` of a method's scores on this corpus; NaN for `exact`, which is not scored twice, and without rows."""
    nothing = torch.full((len(CORRECTIONS),), torch.nan, dtype=torch.float64)
    if method == "exact" or method_named(method).reads == "subject":
        return nothing
    try:
        return called_specific(
            scored(subject, corpus, method, site=site, options=options, keep_rows=True), draws=draws, seed=seed
        )
    except SetError:  # too few items in a group to test anything
        return nothing


def shuffled_groups(corpus: Corpus, seed: int) -> Corpus:
    """The same examples with their group labels shuffled among items: nothing belongs to any label.

    Each label keeps its number of items, and all rows of an item get the same label.
    """
    labels = {example.item: example.group for example in corpus}
    mixed = list(labels.values())
    random.Random(seed).shuffle(mixed)
    given = dict(zip(labels, mixed, strict=True))
    order = {group: place for place, group in enumerate(corpus.groups)}
    relabelled = [replace(example, group=given[example.item]) for example in corpus]
    relabelled.sort(key=lambda example: order[example.group])
    return Corpus(tuple(relabelled), name=f"{corpus.name}, labels shuffled")


def random_subject(subject: Subject, *, seed: int) -> Subject:
    """A subject of the same configuration and tokenizer with fresh random weights, which knows nothing.

    Raises TuneError where transformers cannot build the class from its configuration.
    """
    import copy

    from transformers import AutoModelForCausalLM

    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(subject.config)).to(subject.dtype).eval()
    except (ValueError, TypeError, AttributeError) as error:
        raise TuneError(
            f"no {type(subject.model).__name__} can be built with random weights: {error}; leave the false positives out "
            "(false_positives=False, --no-false-positives)"
        ) from error
    return load_model((model.to(subject.device), subject.tokenizer))


def deletion_advantage(
    subject: Subject, corpus: Corpus, methods: Sequence[str], *, site: str = "mlp", options: Options | None = None
) -> Float[Tensor, " method"]:
    """By how much each method's deletion curve on natural groups lies above that of random orders (`Fidelity.advantage`).

    On at most NATURAL rows of each group and split, evenly over them. NaN for `exact`, and for methods with an objective of their
    own, whose curves would be in other units; 0 for `random` by definition. Options of several methods are given to all that
    know them.
    """
    found = torch.full((len(methods),), torch.nan, dtype=torch.float64)
    drawn = [name for name in methods if name not in ("random", "exact")]
    drawn = [name for name in drawn if method_named(name).objective in (None, "loss")]
    given = {key: value for name in drawn for key, value in (options or {}).get(name, {}).items()}
    if drawn:
        curves = fidelity(subject, _thinned(corpus), methods=drawn, site=site, sample=2, options=given)
        found[[methods.index(name) for name in drawn]] = curves.advantage("deletion")[0]
    if "random" in methods:
        found[methods.index("random")] = 0.0
    return found


def _thinned(corpus: Corpus) -> Corpus:
    """At most NATURAL rows of each group and split, evenly over them."""
    parts: dict[tuple[str, str], list[Example]] = {}
    for example in corpus:
        parts.setdefault((example.group, example.tags.get("split", "")), []).append(example)
    kept = [example for part in parts.values() for example in part[:: -(-len(part) // NATURAL)]]
    return Corpus(tuple(kept), name=corpus.name)
