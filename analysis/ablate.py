"""Ablation: score a corpus with nothing ablated, with every set ablated, and with each of their controls ablated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch

from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.errors import SetError
from ..neurons.interventions import Kind, Reference, intervene
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .choices import answer_correct, encode_choices
from .effects import Effects


def ablate(
    subject: Subject,
    corpus: Corpus,
    sets: Mapping[str, NeuronSet],
    *,
    kind: Kind = "zero",
    controls: int = 20,
    seed: int = 0,
    reference: Reference | None = None,
    factor: float = 2.0,
    split: str | None = "auto",
    max_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Effects:
    """Right and wrong answers to a corpus's choice questions under the ablation of every set and of its controls.

    A control is `NeuronSet.random`: as many neurons in each layer, other than the set's own where a layer has enough.
    `kind`, `factor` and `reference` are those of `intervene`. `split` names the value of the tag `split` to ask; "auto"
    takes "test" where the corpus has splits and everything where it has none; None takes everything. `progress(done,
    total)` is called after every pass over the corpus. The subject is left as it was.

    Raises SetError when sets differ in site or belong to another subject, CorpusError when examples lack choices.
    """
    site = _checked(subject, sets)
    if controls < 0:
        raise SetError(f"controls is {controls}; expected how many random sets to draw for each set, 0 or more")
    asked = corpus.part(split, auto="test")
    plan = encode_choices(subject, asked, max_tokens=max_tokens)
    total, done = 1 + len(sets) * (1 + controls), 0

    def answers(neurons: NeuronSet | None) -> torch.Tensor:
        nonlocal done
        if neurons is None:
            right = answer_correct(subject, plan)
        else:
            with intervene(subject, neurons, kind=kind, factor=factor, reference=reference, seed=seed):
                right = answer_correct(subject, plan)
        done += 1
        if progress is not None:
            progress(done, total)
        return right

    base = answers(None)
    ablated = torch.stack([answers(neurons) for neurons in sets.values()])
    under = torch.zeros((len(sets), controls, len(asked)), dtype=torch.bool)
    for s, (name, neurons) in enumerate(sets.items()):
        for repeat in range(controls):
            under[s, repeat] = answers(control(neurons, name=name, repeat=repeat, seed=seed))
    groups, items = list(asked.groups), list(dict.fromkeys(example.item for example in asked))
    group_place = {group: place for place, group in enumerate(groups)}
    item_place = {item: place for place, item in enumerate(items)}
    return Effects(
        site, subject.fingerprint, kind, "accuracy", tuple(sets), tuple(groups),
        group_index=torch.tensor([group_place[example.group] for example in asked]),
        item_index=torch.tensor([item_place[example.item] for example in asked]),
        base=base, ablated=ablated, controls=under,
        sizes=torch.tensor([len(neurons) for neurons in sets.values()]),
        origin={
            "corpus": asked.name, "corpus_hash": asked.hash, "num_examples": len(asked), "num_items": len(items),
            "split": "test" if split == "auto" and corpus.splits else split if split != "auto" else None,
            "kind": kind, "factor": factor if kind in ("scale", "noise") else None,
            "reference": None if reference is None else reference.name, "controls": controls, "seed": seed,
            "sets": {name: neurons.digest for name, neurons in sets.items()}, "versions": library_versions(),
        },
    )  # fmt: skip


def control(neurons: NeuronSet, *, name: str, repeat: int, seed: int) -> NeuronSet:
    """The control of a set for one repeat; sets of different names draw differently, also when they are equal."""
    digest = hashlib.sha256(f"{seed}|{name}|{repeat}".encode()).digest()
    return NeuronSet.random(neurons, seed=int.from_bytes(digest[:6], "big"))


def _checked(subject: Subject, sets: Mapping[str, NeuronSet]) -> str:
    """The site that all sets share."""
    if not sets:
        raise SetError("no sets to ablate; give {name: NeuronSet}, for example from npl.select")
    for neurons in sets.values():
        neurons.check(subject)
    sites = {neurons.site for neurons in sets.values()}
    if len(sites) > 1:
        raise SetError(f"the sets are of sites {', '.join(sorted(sites))}; ablate the sets of one site at a time")
    return sites.pop()
