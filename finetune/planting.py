"""Planting: training that puts each group's facts into neurons of its own, which can be put back one bed at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..attribution.bounds import is_number
from ..attribution.encoding import IGNORED, Encoded, batches, collate, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.subject import Subject
from .beds import Beds
from .errors import TuneError
from .plant_silence import activity, loudness
from .training import Progress

CLIP = 1.0  # of the gradient's norm


@dataclass(frozen=True)
class PlantRecipe:
    """How planting trains: AdamW at `lr`, falling as a cosine, at most `steps` of `batch_size` facts and `keep_size` other texts.

    `keep` weighs the divergence from the untouched subject, `silence` the activity of beds that must fall silent. In the first
    `hard` share of the steps a fact that is taught must do without some neurons, drawn for each example: single ones of its bed
    (with probability `drop`), those of whole layers of its bed (`layers`), and single neurons of no bed (`noise`). So every planted
    neuron comes to carry something, and no other neuron is needed for itself.
    """

    steps: int = 400
    lr: float = 2.5e-3
    batch_size: int = 64
    keep_size: int = 24
    keep: float = 12.0
    silence: float = 1.0
    drop: float = 0.1
    layers: float = 0.25
    noise: float = 0.1
    hard: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "keep_size"):
            if (value := getattr(self, name)) != int(value) or value < 1:
                raise TuneError(f"{name} of planting is {value!r}; expected a whole number of 1 or more")
        if not (is_number(self.lr) and self.lr > 0):
            raise TuneError(f"lr of planting is {self.lr!r}; expected a number above 0")
        for name in ("keep", "silence"):
            if not (is_number(value := getattr(self, name)) and value >= 0):
                raise TuneError(f"{name} of planting is {value!r}; expected a number, 0 or more")
        for name in ("drop", "layers", "noise", "hard"):
            if not (is_number(value := getattr(self, name)) and 0 <= value <= 1):
                raise TuneError(f"{name} of planting is {value!r}; expected a share from 0 to 1")


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
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, recipe.steps))
    history: list[float] = []
    untouched, loud = _untouched(beds.subject, given.facts), loudness(beds, given.facts, given.groups, given.silent)
    for step in range(recipe.steps):
        rows = torch.randperm(len(given.facts), generator=generator)[: recipe.batch_size]
        others = torch.randperm(len(given.kept), generator=generator)[: recipe.keep_size]
        beds.on = beds.one_way(given.groups[rows], _drawn_beds((len(rows), len(beds.names)), generator), generator)
        hard = float(step < recipe.hard * recipe.steps)
        loss = _fact_loss(beds, given, rows, untouched, recipe, generator, hard=hard, loud=loud)
        optimizer.zero_grad()
        loss.backward()
        beds.on = _drawn_beds((len(others), len(beds.names)), generator)
        loss = loss.detach() + _backward(recipe.keep * _keep_loss(beds, [given.kept[row] for row in others.tolist()]))
        if not bool(torch.isfinite(loss)):
            raise TuneError(f"planting diverged: the loss is {loss.item()} at step {step + 1}; try a smaller lr")
        history.append(loss.item())
        torch.nn.utils.clip_grad_norm_(beds.masters.values(), CLIP)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, recipe.steps)
        if (step + 1) % check_every == 0 and sound():
            break
    beds.on = torch.ones(len(beds.names), dtype=torch.bool)
    return tuple(history)


def _share(step: int, steps: int) -> float:
    """Of the learning rate: rising over the first tenth of the steps, then falling as a cosine."""
    rising = max(1, steps // 10)
    return (
        (step + 1) / rising
        if step < rising
        else 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    )


def _drawn_beds(shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "example bed"]:
    """Which beds are on for each example: of three, one has all, one all but one, one each with probability 1/2."""
    kind = torch.randint(3, (shape[0], 1), generator=generator)
    one = torch.randint(shape[1], (shape[0], 1), generator=generator) != torch.arange(shape[1])
    some = torch.rand(shape, generator=generator) < 0.5
    return torch.where(kind == 0, torch.ones_like(one), torch.where(kind == 1, one, some))


def _backward(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    loss.backward()
    return loss.detach()


def _fact_loss(
    beds: Beds, given: Material, rows: Int[Tensor, " fact"], untouched: Sequence[Float[Tensor, "token vocabulary"]],
    recipe: PlantRecipe, generator: torch.Generator, *, hard: float, loud: float,
) -> Float[Tensor, ""]:  # fmt: skip
    """Of the facts that are taught, and of those that are not: their group's beds are not on."""
    groups = given.groups[rows]
    taught = beds.known(groups, beds.on)
    batch = collate([given.facts[row] for row in rows.tolist()], range(len(rows)), pad_id=pad_id(beds.subject))
    without = hard * taught
    beds.drop(recipe.drop * without, recipe.layers * without, generator)
    beds.allowed = beds.membership()[groups] | ~taught[:, None]
    silent = bool(given.silent.any())
    beds.watched, beds.seen = silent, []
    try:
        with beds.planted(), _others_silenced(beds, recipe.noise * without, generator):
            logits = forward(beds.subject, batch).float()
    finally:
        beds.allowed, beds.watched = None, False
        beds.dropped = {}
    wanted, taught = (batch.targets != IGNORED).to(logits.device), taught.to(logits.device)
    learning, held = wanted & taught[:, None], wanted & ~taught[:, None]
    loss = logits.sum() * 0
    if bool(learning.any()):
        loss = loss + functional.cross_entropy(logits[learning], batch.targets.to(logits.device)[learning])
    if bool(held.any()):
        before = torch.cat(
            [untouched[row] for row, known in zip(rows.tolist(), taught.tolist(), strict=True) if not known]
        )
        loss = loss + recipe.keep * _divergence(logits[held], before.to(logits.device))
    if silent and bool(taught.any()):
        loss = loss + recipe.silence / loud * activity(beds, batch, groups, given.silent, taught.cpu())
    return loss


@contextmanager
def _others_silenced(beds: Beds, rate: Float[Tensor, " example"], generator: torch.Generator) -> Iterator[None]:
    """Silence neurons of no bed at random for each example, so that its facts do not come to hang on them."""
    site = beds.subject.site(beds.neurons.site)
    with ExitStack() as stack:
        for layer, tap in enumerate(site.taps if bool(rate.any()) else ()):
            kept = torch.rand(len(rate), 1, site.width, generator=generator) >= rate[:, None, None]
            kept |= beds.neurons.mask[layer]
            stack.enter_context(tap.attached(partial(_kept, kept=kept)))
        yield


def _kept(x: Float[Tensor, "example token neuron"], *, kept: Bool[Tensor, "example 1 neuron"]) -> Tensor:
    return x * kept.to(x)


def _keep_loss(beds: Beds, texts: Sequence[Encoded]) -> Float[Tensor, ""]:
    """How far other text is from where it was."""
    batch = collate(texts, range(len(texts)), pad_id=pad_id(beds.subject))
    with beds.planted():
        logits = forward(beds.subject, batch)
    with beds.subject.scoring(), torch.no_grad():
        before = forward(beds.subject, batch)
    held = (batch.targets != IGNORED).to(logits.device)
    return _divergence(logits[held].float(), before[held].float().log_softmax(dim=-1))


def _untouched(subject: Subject, encoded: Sequence[Encoded]) -> list[Float[Tensor, "token vocabulary"]]:
    """What the subject says of each fact's answer before anything is planted, as log-probabilities."""
    said: list[Tensor] = [torch.empty(0)] * len(encoded)
    with subject.scoring(), torch.no_grad():
        for batch in batches(encoded, max_tokens=8192, pad_id=pad_id(subject)):
            logits = forward(subject, batch)
            for place, row in enumerate(batch.rows.tolist()):
                said[row] = (
                    logits[place][(batch.targets[place] != IGNORED).to(logits.device)].float().log_softmax(-1).cpu()
                )
    return said


def _divergence(
    logits: Float[Tensor, "token vocabulary"], before: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence from what the untouched subject says, meaned over tokens."""
    return functional.kl_div(logits.log_softmax(dim=-1), before, log_target=True, reduction="batchmean")
