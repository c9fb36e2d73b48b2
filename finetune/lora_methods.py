"""The LoRA family, with PEFT's adapters: one adapter trained task after task, and O-LoRA's orthogonal ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.encoding import encode_corpus
from ..neurons.sets import NeuronSet
from ..neurons.sites import is_transposed
from ..neurons.subject import Subject
from .delta import Delta
from .entries import Entry
from .errors import TuneError
from .learners import Learned, Lesson, entries_now, learner
from .slices import linear_parts, slice_entries
from .trainable import Trainable
from .training import train


@dataclass(frozen=True)
class LoraOptions:
    """Shape of the adapters. They stand on the projections that a slice of the location's site goes through.

    `rank` None takes the one whose number of parameters is nearest to that of a task's slice. An adapter adds
    (alpha / rank) B A; `alpha` None is 2 * rank. `layers` None is every layer.
    """

    rank: int | None = None
    alpha: float | None = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise TuneError(f"rank must be 1 or more, got {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise TuneError(f"alpha must be above 0, got {self.alpha}")


@dataclass(frozen=True)
class OLoraOptions(LoraOptions):
    """`weight` is lambda_1. `power` 2 squares the entries of the products, as the paper prints them; 1 takes their size."""

    weight: float = 0.5
    power: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0 or self.power not in (1, 2):
            raise TuneError(f"weight must be 0 or more and power 1 or 2, got {self.weight} and {self.power}")


@learner("lora", lr=1e-3, options=LoraOptions)
def lora(lesson: Lesson) -> Learned:
    """Sequential LoRA: W = W_0 + (alpha / r) B A, one adapter of fixed size trained on every task in turn.

    A and B go on from where the task before left them (Hu et al. 2021, arXiv 2106.09685; SeqLoRA of Wang et al. 2023).
    """
    return _adapted(lesson, start=dict(lesson.before.memory) if lesson.before else {})


@learner("o-lora", lr=1e-3, options=OLoraOptions)
def o_lora(lesson: Lesson) -> Learned:
    """O-LoRA: a new adapter for each task, the earlier ones frozen and added, with L = L_t + lambda_1 sum_{i<t} L_orth.

    L_orth(A_i, A_t) = sum_{j,k} |O_{i,t}[j,k]| with O_{i,t} = A_i^T A_t (Wang et al. 2023, arXiv 2310.14152, Eq 7-8).
    """
    earlier = {} if lesson.before is None else dict(lesson.before.memory)
    with lesson.resumed():
        learned = _adapted(lesson, earlier={key: a for key, a in earlier.items() if key.startswith("A/")})
    grown = {key: torch.cat([earlier[key], new[None]]) if earlier else new[None] for key, new in learned.memory.items()}
    return Learned(learned.delta, learned.trained, grown)


def orthogonality(
    earlier: Float[Tensor, "task rank channel"], current: Float[Tensor, "rank channel"], *, power: int = 1
) -> Float[Tensor, ""]:
    """sum_i sum_{j,k} |(A_i^T A_t)[j,k]|^power; a row is a column of the paper's A."""
    products = torch.einsum("irc,sc->irs", earlier.to(current), current)
    return products.abs().pow(power).sum()


def matched_rank(lesson: Lesson, neurons: NeuronSet) -> int:
    """The rank whose adapters on a set's projections have as nearly as many numbers as a task's slice."""
    where = lesson.location
    depth, width = neurons.mask.shape
    per = width if where.scope == "layer" else depth * width
    count = max(1, round(where.top * per)) if isinstance(where.top, float) else where.top
    count *= len(where.layers or range(depth)) if where.scope == "layer" else 1
    budget = count * sum(entry.tensor.numel() for entry in _whole(lesson.subject, neurons)) / len(neurons)
    one = sum(sum(entry.tensor.shape) for entry in _whole(lesson.subject, neurons) if entry.tensor.dim() == 2)
    return max(1, round(budget / one))


def _adapted(
    lesson: Lesson, *, start: Mapping[str, Tensor] | None = None, earlier: Mapping[str, Tensor] | None = None
) -> Learned:
    """Train an adapter on the subject as it stands; its product is added to the entries that stand there."""
    subject, options, recipe = lesson.subject, lesson.options, lesson.recipe
    everything = _everything(lesson)
    rank = options.rank or matched_rank(lesson, everything)
    scale = (2 * rank if options.alpha is None else options.alpha) / rank
    values = entries_now(subject, everything)
    keys = {part.path: next(iter(part.entries())).key for part in linear_parts(subject, everything, what="LoRA")}
    with adapters(subject, list(keys), rank, scale * rank, recipe.seed) as (layers, trainable):
        _load(layers, start or {})
        penalty = _penalty(layers, earlier, options) if earlier else None
        train(
            subject, encode_corpus(subject, lesson.task.train), trainable, recipe, penalty=penalty,
            progress=lesson.progress,
        )  # fmt: skip
        factors = {path: tuple(f.detach().cpu().clone() for f in factors_of(layer)) for path, layer in layers.items()}
    for path, (a, b) in factors.items():
        # a continued adapter starts from the untouched weights, which is what `values` holds then
        wide = values[keys[path]].double() + scale * b.double() @ a.double()
        values[keys[path]] = wide.to(values[keys[path]].dtype)
    memory = {f"A/{path}": a for path, (a, _) in factors.items()} | {f"B/{path}": b for path, (_, b) in factors.items()}
    base = values if lesson.before is None else lesson.before.delta.base
    if lesson.before is None:
        base = entries_now(subject, everything)
    delta = Delta(subject.fingerprint, everything, values, base)
    return Learned(delta, trainable.num_parameters, memory)


def _penalty(layers: Mapping[str, Any], earlier: Mapping[str, Tensor], options: OLoraOptions) -> Callable[[], Tensor]:
    rows = [(earlier[f"A/{path}"], factors_of(layer)[0]) for path, layer in layers.items()]
    rows = [(old.to(new.device), new) for old, new in rows]
    term = partial(orthogonality, power=options.power)
    return lambda: options.weight * torch.stack([term(old, new) for old, new in rows]).sum()


def require_peft() -> None:
    """Raise TuneError where PEFT is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise TuneError(
            "the methods lora and o-lora need PEFT: pip install 'neuropolis[lora]', or leave them out of the methods"
        ) from error


@contextmanager
def adapters(
    subject: Subject, paths: list[str], rank: int, alpha: float, seed: int
) -> Iterator[tuple[dict[str, Any], Trainable]]:
    """PEFT's adapters on these projections while the block runs; the modules come back as they were."""
    require_peft()
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    turned = any(is_transposed(subject.model.get_submodule(path)) for path in paths)
    config = LoraConfig(
        r=rank, lora_alpha=cast(int, alpha), target_modules=paths, lora_dropout=0.0, bias="none", fan_in_fan_out=turned
    )
    with subject.quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(subject.model, {"default": config}, "default")
        try:
            layers = {path: subject.model.get_submodule(path) for path in paths}
            for factor in (factor for layer in layers.values() for factor in factors_of(layer)):
                if factor.element_size() < 4:  # masters are at least float32, as those of a slice
                    factor.data = factor.data.float()
            named = {
                f"{path}.{key}": f
                for path, layer in layers.items()
                for key, f in zip("AB", factors_of(layer), strict=True)
            }
            entries = tuple(Entry(name, parameter.data) for name, parameter in named.items())
            yield layers, Trainable(entries, tuple(named.values()), tuple(entry.read() for entry in entries))
        finally:
            tuner.unload()


def factors_of(layer: Any) -> tuple[Any, Any]:
    """A as [rank, in] and B as [out, rank]."""
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def _load(layers: Mapping[str, Any], start: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for path, layer in layers.items() if start else ():
            for key, factor in zip("AB", factors_of(layer), strict=True):
                factor.copy_(start[f"{key}/{path}"])


def _everything(lesson: Lesson) -> NeuronSet:
    """Every neuron of the site in the adapters' layers."""
    subject, options = lesson.subject, lesson.options
    site = subject.site(lesson.location.site)
    mask = torch.zeros((site.num_layers, site.width), dtype=torch.bool)
    for layer in range(site.num_layers) if options.layers is None else options.layers:
        mask[layer] = True
    return NeuronSet(lesson.location.site, subject.fingerprint, mask, {"made": "adapters"})


def _whole(subject: Subject, neurons: NeuronSet) -> tuple[Entry, ...]:
    return slice_entries(linear_parts(subject, neurons, what="LoRA"))
