"""Suppressors: how active the neurons are that a plant makes silent, while it is trained and once it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, Encoded, collate, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .beds import Beds
from .plant_layout import SILENT
from .plant_proof import mean_activity


def loudness(beds: Beds, facts: Sequence[Encoded], groups: Int[Tensor, " fact"], silent: Bool[Tensor, " bed"]) -> float:
    """`activity` before anything is planted; 1 where no bed is to be silent."""
    if not bool(silent.any()):
        return 1.0
    batch = collate(facts, range(len(facts)), pad_id=pad_id(beds.subject))
    on, beds.watched, beds.seen = beds.on, True, []
    beds.on = torch.zeros_like(on)
    try:
        with beds.planted(), torch.no_grad():
            forward(beds.subject, batch)
    finally:
        beds.on, beds.watched = on, False
    found = activity(beds, batch, groups, silent, torch.ones(len(facts), dtype=torch.bool))
    return max(found.item(), torch.finfo(torch.float32).tiny)


def activity(
    beds: Beds,
    batch: Batch,
    groups: Int[Tensor, " batch"],
    silent: Bool[Tensor, " bed"],
    taught: Bool[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Mean square of each taught example's own silent units where its answer is predicted."""
    width = batch.input_ids.shape[1]
    places = (
        torch.arange(width - batch.keep, width).expand(len(taught), -1) if isinstance(batch.keep, int) else batch.keep
    )
    wanted = (batch.targets != IGNORED) & taught[:, None]
    rows = torch.arange(len(taught))[:, None].expand_as(places)
    own = (beds.membership()[groups] & silent).float()
    total, count = torch.zeros((), device=beds.subject.device), 0
    for path, seen in beds.seen:
        mine = (own @ beds.owned[path].T.float())[rows[wanted]].to(seen.device)
        total = total + (seen[rows[wanted], places[wanted]].square() * mine).sum()
        count += int(mine.sum())
    return total / max(1, count)


def silence(
    subject: Subject, planted: Subject, sets: Mapping[str, NeuronSet], silent: Sequence[str], facts: Corpus
) -> float | None:
    """Activity of silent beds on their own groups' facts, planted to untouched, the worst of the groups."""
    if not silent:
        return None
    found = []
    for name in silent:
        own = encode_corpus(subject, facts.only(name.removesuffix(SILENT)))
        mask = sets[name].mask
        found.append((mean_activity(planted, own)[mask].mean() / mean_activity(subject, own)[mask].mean()).item())
    return max(found)
