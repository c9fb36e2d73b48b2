"""Ablation: score a corpus with nothing ablated, with every set ablated, and with each of their controls ablated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..attribution.activations import reference as gather
from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.errors import SetError
from ..neurons.interventions import Kind, References, check_words, intervene, united
from ..neurons.positions import On
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .controls import Drawing, Match, Parts, Sizes, activation_sizes, score_norms
from .controls import control as control
from .effects import Effects
from .metrics import Asking, Metric, metric_named

Expect = Literal["worse", "better"]
Sets = Mapping[str, NeuronSet | Sequence[NeuronSet]]
Progress = Callable[[int, int], None]


def ablate(
    subject: Subject,
    corpus: Corpus,
    sets: Sets,
    *,
    kind: Kind = "zero",
    metric: str | Metric = "accuracy",
    on: On = "both",
    controls: int = 20,
    match: Match = "layer",
    scores: Scores | Sequence[Scores] | None = None,
    others: Sets | None = None,
    twins: bool = False,
    seed: int = 0,
    reference: References | None = None,
    factor: float = 2.0,
    expect: Expect | None = None,
    split: str | None = "auto",
    max_tokens: int = 4096,
    max_new_tokens: int = 32,
    owners: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Effects:
    """A corpus's questions under the ablation of every set and of its controls.

    A set may be several, of several sites: they are ablated together. `kind`, `factor`, `reference` and `on` are those of
    `intervene`; `metric` is one of METRICS or a Metric.

    A control has as many neurons in each layer and site, other than the set's own where a layer has enough. `match` also
    asks for neurons of like `activation` (root mean square over the corpus's training split), of like `score` (norm over
    groups of `scores`), or takes the sets of the other `groups`, each once at most: those of `others`, by default of `sets`.
    `origin["closeness"]` says how well it matched.

    `twins` asks the control twins too, as a negative control. `expect="better"` turns the tests round: by default for
    `keep`, where a set that carries a group leaves more of it standing than random ones. `owners` names the groups that
    sets are held against where the names of the sets do not. `split` names the value of the tag `split` to ask; "auto"
    takes "test" where the corpus has splits and everything where it has none; None takes everything. `progress(done,
    total)` is called after every pass over the corpus. The subject is left as it was.

    Raises SetError when sets belong to another subject or controls cannot be drawn, CorpusError when examples lack
    what the metric or the twins need.
    """
    chosen = parts_of(subject, sets)
    if controls < 0:
        raise SetError(f"controls is {controls}; expected how many random sets to draw for each set, 0 or more")
    pool = chosen if others is None else parts_of(subject, others) | chosen
    if match == "groups":
        controls = others_in_turn(controls, pool)
    asked = corpus.part(split, auto="test")
    bench = Bench(
        subject, asked, metric_named(metric), Asking(max_tokens, max_new_tokens, on=on), twins=twins, kind=kind,
        factor=factor, reference=reference, on=on, seed=seed,
    )  # fmt: skip
    drawing = Drawing(match, seed, sizes_to_match(subject, corpus, chosen, match=match, scores=scores))
    drawn = {name: [drawing.control(pool, name=name, repeat=repeat) for repeat in range(controls)] for name in chosen}
    total, done = 1 + len(chosen) * (1 + controls), 0

    def values(neurons: Parts | None) -> Tensor:
        nonlocal done
        found = bench.values(neurons)
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    base = values(None)
    ablated = torch.stack([values(neurons) for neurons in chosen.values()])
    under = torch.stack([
        torch.stack([values(control) for control in drawn[name]]) if controls else base.new_zeros((0, len(base)))
        for name in chosen
    ])  # fmt: skip
    origin = {
        "split": split_of(corpus, split),
        "controls": controls, "match": match,
        "closeness": {name: _mean([drawing.closeness(chosen[name], c) for c in drawn[name]]) for name in chosen},
        "expect": expect or ("better" if kind == "keep" else "worse"),
    }  # fmt: skip
    return bench.effects(chosen, base, ablated, under, origin, owners)


class Bench:
    """A corpus that is asked again and again, under one kind of intervention on one set after the other."""

    def __init__(
        self,
        subject: Subject,
        asked: Corpus,
        metric: Metric,
        asking: Asking,
        *,
        twins: bool,
        kind: Kind,
        factor: float,
        reference: References | None,
        on: On,
        seed: int,
    ) -> None:
        check_words(kind, on)
        self.subject, self.asked, self.metric, self.twins = subject, asked, metric, twins
        self.how: dict[str, Any] = {
            "kind": kind, "factor": factor, "reference": reference, "on": on, "seed": seed,
        }  # fmt: skip
        self.measure = metric.prepare(subject, asked + asked.controls() if twins else asked, asking)

    def values(self, neurons: Parts | None) -> Tensor:
        """The metric of every question, then of every twin."""
        if neurons is None:
            found = self.measure()
        else:
            with intervene(self.subject, neurons, **self.how):
                found = self.measure()
        return found if found.dtype == torch.bool else found.float()

    def effects(
        self,
        sets: Mapping[str, Parts],
        base: Tensor,
        ablated: Tensor,
        controls: Tensor,
        origin: Mapping[str, Any],
        owners: Mapping[str, str] | None = None,
    ) -> Effects:
        """What was measured, taken apart into questions and twins, with what made it."""
        asked, count = self.asked, len(self.asked)
        groups, items = list(asked.groups), list(dict.fromkeys(example.item for example in asked))
        group_place = {group: place for place, group in enumerate(groups)}
        item_place = {item: place for place, item in enumerate(items)}
        references = self.how["reference"]
        known = list(references.values()) if isinstance(references, Mapping) else [references] if references else []
        kind = self.how["kind"]
        found = Effects(
            "+".join(dict.fromkeys(part.site for parts in sets.values() for part in parts)),
            self.subject.fingerprint, kind, self.metric.name, tuple(sets), tuple(groups),
            group_index=torch.tensor([group_place[example.group] for example in asked]),
            item_index=torch.tensor([item_place[example.item] for example in asked]),
            base=base[:count], ablated=ablated[:, :count], controls=controls[:, :, :count],
            sizes=torch.tensor([sum(map(len, parts)) for parts in sets.values()]),
            owners=None if owners is None else tuple(owners.get(name, name) for name in sets),
            origin={
                "corpus": asked.name, "corpus_hash": asked.hash, "num_examples": count, "num_items": len(items),
                "kind": kind, "on": self.how["on"], "factor": self.how["factor"] if kind in ("scale", "noise") else None,
                "reference": ", ".join(dict.fromkeys(one.name for one in known)) or None, "seed": self.how["seed"],
                "unit": self.metric.unit, "higher_is_better": self.metric.higher_is_better, "about": self.metric.about,
                "sets": {name: "+".join(part.digest for part in parts) for name, parts in sets.items()},
                "versions": library_versions(), **origin,
            },
        )  # fmt: skip
        if not self.twins:
            return found
        return replace(
            found,
            twins=replace(found, base=base[count:], ablated=ablated[:, count:], controls=controls[:, :, count:]),
        )


def split_of(corpus: Corpus, split: str | None) -> str | None:
    """Which split "auto" stands for."""
    if split != "auto":
        return split
    return "test" if corpus.splits else None


def parts_of(subject: Subject, sets: Sets) -> dict[str, Parts]:
    """Every set as one set a site, checked against the subject."""
    if not sets:
        raise SetError("no sets to ablate; give {name: NeuronSet}, for example from npl.select")
    chosen = {name: united(neurons) for name, neurons in sets.items()}
    for parts in chosen.values():
        for part in parts:
            part.check(subject)
    return chosen


def joined(sets: Mapping[str, NeuronSet]) -> dict[str, list[NeuronSet]]:
    """Sets named "group/site", as studies of several sites have them, by group; others stay by themselves.

    Raises SetError when a group has both a set of its own name and such sets.
    """
    found: dict[str, list[NeuronSet]] = {}
    for name, one in sets.items():
        found.setdefault(name.removesuffix(f"/{one.site}"), []).append(one)
    for name in sets.keys() & found.keys():
        if len(found[name]) > 1:
            others = ", ".join(f"{name}/{one.site}" for one in found[name] if one is not sets[name])
            raise SetError(
                f"{name!r} is a set by itself, beside {others}: expected one or the other; name the sets to take"
            )
    return found


def others_in_turn(controls: int, sets: Mapping[str, Parts]) -> int:
    """How many controls other groups' sets make: each serves once. Raises SetError when there is no other."""
    if len(sets) < 2:
        raise SetError("match='groups' takes the other groups' sets as controls, and there is one set alone; give more")
    return min(controls, len(sets) - 1)


def sizes_to_match(
    subject: Subject,
    corpus: Corpus,
    sets: Mapping[str, Parts],
    *,
    match: str,
    scores: Scores | Sequence[Scores] | None,
) -> Sizes | None:
    """What controls are matched by beyond layer and site: [layer, neuron] by site."""
    sites = list(dict.fromkeys(part.site for parts in sets.values() for part in parts))
    if match == "activation":
        return activation_sizes({site: gather(subject, corpus, site=site, pool=1) for site in sites})
    if match != "score":
        return None
    given = [scores] if isinstance(scores, Scores) else list(scores or ())
    norms = score_norms([one for one in given if one.site in sites])
    missing = [site for site in sites if site not in norms]
    if missing:
        raise SetError(f"match='score' needs scores of site {missing[0]!r}: ablate(..., scores=npl.attribute(...))")
    return norms


def _mean(values: Sequence[float]) -> float | None:
    """Mean of what is known, None of nothing: NaN is no JSON."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
