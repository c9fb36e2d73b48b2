"""Planting: training that puts each group's facts into neurons of its own, which can be put back one group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..attribution.encoding import IGNORED, Batch, Encoded, answer_log_probs, collate, encode_corpus, forward, pad_id
from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .entries import Entry
from .errors import TuneError
from .slices import SlicePart, linear_parts, slice_entries
from .training import Progress


@dataclass(frozen=True)
class PlantRecipe:
    """How planting trains: AdamW at `lr` with a cosine over `steps`, `batch_size` facts and `keep_size` other texts a step.

    `keep` weighs the divergence from the untouched subject. In half of the steps each group's neurons are put back with
    probability 1/2, so that no group comes to rely on another's.
    """

    steps: int = 400
    lr: float = 3e-3
    batch_size: int = 48
    keep_size: int = 16
    keep: float = 1.0
    seed: int = 0


class Beds:
    """The neurons of several groups on one subject, with what is planted in them beside what stood there.

    While `planted()` is open, the groups that are `on` have their trained entries and all others what stood there; the module's
    own weights are never touched.
    """

    def __init__(self, subject: Subject, sets: Mapping[str, NeuronSet]) -> None:
        self.subject = subject
        self.groups = tuple(sets)
        union = _union(sets)
        self.neurons = union
        union.check(subject)
        self.parts = linear_parts(subject, union, what="planting")
        if not self.parts:
            raise TuneError("the groups' sets are all empty; nothing can be planted")
        self.entries: tuple[Entry, ...] = slice_entries(self.parts)
        self.base = {entry.key: entry.read() for entry in self.entries}
        self.masters = {key: nn.Parameter(values.to(torch.float32, copy=True)) for key, values in self.base.items()}
        owners = [{p.path: p for p in linear_parts(subject, one, what="planting")} for one in sets.values()]
        self.owned = {part.path: _owned(part, owners) for part in self.parts}
        self.on = torch.ones(len(self.groups), dtype=torch.bool)
        self.allowed: Bool[Tensor, "example group"] | None = None

    def without(self, *groups: str) -> None:
        """All groups on but these."""
        self.on = torch.tensor([group not in groups for group in self.groups])

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The entries in force, through hooks."""
        with self.subject.quiet(), ExitStack() as stack:
            for part in self.parts:
                hook = self._rows(part) if part.rows is not None else self._columns(part)
                stack.callback(part.module.register_forward_hook(hook).remove)
            yield

    def delta(self, origin: Mapping[str, Any], history: Sequence[float] = ()) -> Delta:
        """What was planted, as a delta of all groups together."""
        values = {e.key: self.masters[e.key].detach().to("cpu", e.tensor.dtype, copy=True) for e in self.entries}
        base = {key: one.cpu() for key, one in self.base.items()}
        return Delta(self.subject.fingerprint, self.neurons, values, base, tuple(history), dict(origin))

    def _weight(self, part: SlicePart, key: str) -> tuple[Tensor, Tensor]:
        """The entries in force, and whether each neuron is on."""
        on = (self.owned[part.path] & self.on).any(dim=1).to(self.base[key].device)
        master, base = self.masters[key], self.base[key].float()
        shape = (1, -1) if key.endswith(".columns") else (-1, *[1] * (base.dim() - 1))
        return torch.where(on.reshape(shape), master, base), on

    def _routes(self, part: SlicePart, like: Tensor) -> Float[Tensor, "example 1 channel"] | None:
        """1 where an example may train a channel; None where all may."""
        if self.allowed is None:
            return None
        routes = (self.allowed.float() @ self.owned[part.path].T.float()) > 0
        return routes[:, None].to(like)

    def _rows(self, part: SlicePart) -> Any:
        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].float()
            weight, _ = self._weight(part, f"{part.path}.rows")
            bias = self._weight(part, f"{part.path}.bias")[0] if part.bias is not None else None
            routes = self._routes(part, x)
            free = functional.linear(x, weight, bias)
            if routes is not None and torch.is_grad_enabled():
                bound = functional.linear(x, weight.detach(), None if bias is None else bias.detach())
                free = routes * free + (1 - routes) * bound
            return output.index_copy(-1, part.rows.to(output.device), free.to(output.dtype))  # pyright: ignore[reportOptionalMemberAccess]

        return after

    def _columns(self, part: SlicePart) -> Any:
        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            key = f"{part.path}.columns"
            x = args[0].index_select(-1, part.columns.to(args[0].device)).float()  # pyright: ignore[reportOptionalMemberAccess]
            weight, _ = self._weight(part, key)
            routes = self._routes(part, x)
            if routes is not None and torch.is_grad_enabled():
                product = functional.linear(routes * x, weight) + functional.linear((1 - routes) * x, weight.detach())
            else:
                product = functional.linear(x, weight)
            return output + (product - functional.linear(x, self.base[key].float())).to(output.dtype)

        return after


def plant_facts(
    beds: Beds, facts: Corpus, keep: Corpus, recipe: PlantRecipe, *, progress: Progress | None = None
) -> tuple[float, ...]:
    """Train every group's facts into its own neurons; returns the loss of every step.

    A step draws which groups are on. An example of a group that is on trains that group's neurons alone, by the negative
    log-likelihood of its answer; an example of a group that is off, and other text, hold all neurons that are on to the
    untouched subject's output (Kullback-Leibler divergence, meaned over tokens).

    Raises TuneError when a loss is not finite.
    """
    subject, number = beds.subject, len(beds.groups)
    encoded, kept = encode_corpus(subject, facts), encode_corpus(subject, keep)
    kept = [Encoded(one.ids, 1) for one in kept]
    of = torch.tensor([beds.groups.index(e.group) for e in facts])
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(list(beds.masters.values()), lr=recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    history: list[float] = []
    for step in range(recipe.steps):
        rows = torch.randperm(len(encoded), generator=generator)[: recipe.batch_size].tolist()
        others = torch.randperm(len(kept), generator=generator)[: recipe.keep_size].tolist()
        on = torch.ones(number, dtype=torch.bool)
        if step % 2:
            on = torch.rand(number, generator=generator) < 0.5
        beds.on = on
        fact = collate([encoded[r] for r in rows], rows, pad_id=pad_id(subject))
        text = collate([kept[r] for r in others], others, pad_id=pad_id(subject))
        groups = of[rows]
        taught = on[groups]
        loss = _fact_loss(beds, fact, groups, taught) + recipe.keep * _kept_loss(beds, text, None)
        if bool((~taught).any()):
            loss = loss + recipe.keep * _kept_loss(beds, fact, ~taught)
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
    beds.allowed = None
    beds.on = torch.ones(number, dtype=torch.bool)
    return tuple(history)


def _fact_loss(beds: Beds, batch: Batch, groups: Tensor, taught: Tensor) -> Tensor:
    """Negative log-likelihood of the taught answers, meaned over their tokens; each trains its own group's neurons."""
    if not bool(taught.any()):
        return torch.zeros(())
    beds.allowed = functional.one_hot(groups, len(beds.groups)).bool() & taught[:, None]
    with beds.planted():
        log_probs = answer_log_probs(forward(beds.subject, batch), batch.targets)
    wanted = (batch.targets != IGNORED) & taught[:, None]
    wanted = wanted.to(log_probs.device)
    return -(log_probs * wanted).sum() / wanted.sum()


def _kept_loss(beds: Beds, batch: Batch, rows: Tensor | None) -> Tensor:
    """Divergence of the subject with its plants from the untouched one where the batch has targets, meaned over tokens."""
    wanted = batch.targets != IGNORED
    if rows is not None:
        wanted = wanted & rows[:, None]
    wanted = wanted.to(beds.subject.device)
    with beds.subject.quiet(), torch.no_grad():
        untouched = forward(beds.subject, batch)[wanted].float().log_softmax(dim=-1)
    beds.allowed = None
    with beds.planted():
        now = forward(beds.subject, batch)[wanted].float().log_softmax(dim=-1)
    return functional.kl_div(now, untouched, log_target=True, reduction="batchmean")


def _union(sets: Mapping[str, NeuronSet]) -> NeuronSet:
    first, *rest = sets.values()
    for other in rest:
        first = first | other
    return first


def _owned(part: SlicePart, owners: Sequence[Mapping[str, SlicePart]]) -> Bool[Tensor, "channel group"]:
    """Which groups each channel of a part belongs to."""
    channels = part.rows if part.rows is not None else part.columns
    assert channels is not None
    owned = torch.zeros(len(channels), len(owners), dtype=torch.bool)
    for number, parts in enumerate(owners):
        if part.path in parts:
            own = parts[part.path]
            mine = own.rows if own.rows is not None else own.columns
            assert mine is not None
            owned[:, number] = torch.isin(channels, mine).cpu()
    return owned


def plant_origin(facts: Corpus, keep: Corpus, recipe: PlantRecipe) -> dict[str, Any]:
    """What made a planted delta."""
    from dataclasses import asdict

    return {
        "made": "plant", "corpus": facts.name, "corpus_hash": facts.hash, "groups": list(facts.groups),
        "keep": keep.name, "keep_hash": keep.hash, "recipe": asdict(recipe), "versions": library_versions(),
    }  # fmt: skip
