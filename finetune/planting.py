"""Planting: training that puts each group's facts into neurons of its own, which can be put back one bed at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..attribution.encoding import IGNORED, Batch, Encoded, collate, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.subject import Subject
from .beds import Beds
from .errors import TuneError
from .training import Progress


@dataclass(frozen=True)
class PlantRecipe:
    """How planting trains: AdamW at `lr`, falling as a cosine, at most `steps` of `batch_size` facts and `keep_size` other texts.

    `keep` weighs the divergence from the untouched subject, `silence` the activity of beds that must fall silent.
    """

    steps: int = 200
    lr: float = 3e-3
    batch_size: int = 48
    keep_size: int = 16
    keep: float = 8.0
    silence: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Material:
    """What a plant is made of, as tokens: facts with the number of their group, and other texts that must stay as they are.

    `silent` names beds whose neurons are to be silent where their group's answers are predicted.
    """

    facts: Sequence[Encoded]
    groups: Int[Tensor, " fact"]
    kept: Sequence[Encoded]
    silent: Bool[Tensor, " bed"]


def material(beds: Beds, facts: Corpus, kept: Corpus, *, silent: Sequence[str] = ()) -> Material:
    """Facts and other texts for these beds. Raises TuneError for facts of a group that no bed is for."""
    if unknown := sorted(set(facts.groups) - set(beds.groups)):
        raise TuneError(f"there are facts of {unknown[0]!r}, and no bed for it; beds are for {', '.join(beds.groups)}")
    return Material(
        encode_corpus(beds.subject, facts),
        torch.tensor([beds.groups.index(example.group) for example in facts]),
        whole_texts(beds.subject, kept),
        torch.tensor([name in silent for name in beds.names]),
    )


def whole_texts(subject: Subject, corpus: Corpus) -> list[Encoded]:
    """Every example as a text of which each token is predicted."""
    return [Encoded(one.ids, 1) for one in encode_corpus(subject, corpus)]


def plant_facts(
    beds: Beds, given: Material, recipe: PlantRecipe, *, progress: Progress | None = None,
    sound: Callable[[], bool] = lambda: False, check_every: int = 100,
) -> tuple[float, ...]:  # fmt: skip
    """Train every group's facts into its own beds; returns the loss of every step.

    Each example of a step draws which beds are on for it (all, all but one, or each with probability 1/2), so that no
    group comes to rely on another's. An example whose group they hold trains that group's beds alone, by the negative
    log-likelihood of its answer; any other example, and other text, hold the beds that are on to the untouched subject's output
    (Kullback-Leibler divergence, meaned over tokens). Every `check_every` steps training ends if it is `sound`.

    Raises TuneError when a loss is not finite.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(list(beds.masters.values()), lr=recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    history: list[float] = []
    for step in range(recipe.steps):
        rows = torch.randperm(len(given.facts), generator=generator)[: recipe.batch_size]
        others = torch.randperm(len(given.kept), generator=generator)[: recipe.keep_size]
        shape = (len(rows) + len(others), len(beds.names))
        beds.on = _drawn_beds(shape, generator)
        loss = _loss(beds, given, rows, others, recipe)
        if not bool(torch.isfinite(loss)):
            raise TuneError(f"planting diverged: the loss is {loss.item()} at step {step + 1}; try a smaller lr")
        history.append(loss.item())
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, recipe.steps)
        if (step + 1) % check_every == 0 and sound():
            break
    beds.on = torch.ones(len(beds.names), dtype=torch.bool)
    return tuple(history)


def _drawn_beds(shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "example bed"]:
    """Which beds are on for each example: of three, one has all, one all but one, one each with probability 1/2."""
    kind = torch.randint(3, (shape[0], 1), generator=generator)
    one = torch.randint(shape[1], (shape[0], 1), generator=generator) != torch.arange(shape[1])
    some = torch.rand(shape, generator=generator) < 0.5
    return torch.where(kind == 0, torch.ones_like(one), torch.where(kind == 1, one, some))


def _loss(
    beds: Beds, given: Material, rows: Int[Tensor, " fact"], others: Int[Tensor, " text"], recipe: PlantRecipe
) -> Float[Tensor, ""]:
    """One forward for the facts that are taught, those that are not, and other text."""
    subject = beds.subject
    groups, none = given.groups[rows], torch.zeros(len(others), dtype=torch.bool)
    taught = torch.cat([beds.known(groups, beds.on[: len(rows)]), none])
    encoded = [*(given.facts[row] for row in rows.tolist()), *(given.kept[row] for row in others.tolist())]
    batch = collate(encoded, range(len(encoded)), pad_id=pad_id(subject))
    allowed = torch.ones(len(encoded), len(beds.names), dtype=torch.bool)
    allowed[: len(rows)] = beds.membership()[groups]
    allowed[~taught] = True
    beds.allowed, silent = allowed, bool(given.silent.any())
    beds.watched, beds.seen = given.silent if silent else None, []
    try:
        with beds.planted():
            logits = forward(subject, batch).float()
    finally:
        beds.allowed = beds.watched = None
    wanted = (batch.targets != IGNORED).to(logits.device)
    held = wanted & ~taught.to(logits.device)[:, None]
    loss = recipe.keep * _divergence(subject, batch, logits, held) if bool(held.any()) else logits.new_zeros(())
    learning = wanted & taught.to(logits.device)[:, None]
    if bool(learning.any()):
        loss = loss + functional.cross_entropy(logits[learning], batch.targets.to(logits.device)[learning])
    if silent and bool(taught.any()):
        loss = loss + recipe.silence * _activity(beds, batch, taught)
    return loss


def _divergence(
    subject: Subject, batch: Batch, logits: Float[Tensor, "batch kept vocabulary"], held: Bool[Tensor, "batch kept"]
) -> Float[Tensor, ""]:
    """Of the logits from the untouched subject's, meaned over the tokens that are held."""
    rows = held.any(dim=1).nonzero().flatten().cpu()
    some = Batch(
        batch.rows[rows], batch.input_ids[rows], batch.real[rows], batch.targets[rows],
        batch.keep if isinstance(batch.keep, int) else batch.keep[rows],
    )  # fmt: skip
    with subject.scoring(), torch.no_grad():
        untouched = forward(subject, some)[held[rows]].float().log_softmax(dim=-1)
    return functional.kl_div(logits[held].log_softmax(dim=-1), untouched, log_target=True, reduction="batchmean")


def _activity(beds: Beds, batch: Batch, taught: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean square of the watched units where a taught example's answer is predicted."""
    width = batch.input_ids.shape[1]
    places = (
        torch.arange(width - batch.keep, width).expand(len(taught), -1) if isinstance(batch.keep, int) else batch.keep
    )
    wanted = (batch.targets != IGNORED) & taught[:, None]
    rows = torch.arange(len(taught))[:, None].expand_as(places)
    parts = [seen[rows[wanted], places[wanted]].square().sum() for seen in beds.seen if seen.numel()]
    return torch.stack(parts).sum() / (wanted.sum() * sum(seen.shape[-1] for seen in beds.seen))
