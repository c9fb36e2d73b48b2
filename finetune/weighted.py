"""W-NCFT: at inference, each task's columns count by how alike that task is to the one that is asked about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attribution.encoding import batches, encode_corpus, pad_id
from ..corpora.examples import Corpus
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .errors import TuneError
from .learners import Learned, Lesson, learner, plain_view
from .ncft import ncft
from .slices import Part, parts_of
from .streams import sampled


@dataclass(frozen=True)
class WeightedOptions:
    """What the paper leaves open (Leng & Xiong, section 5.2), and what is done here unless told otherwise.

    - `temperature` of the softmax: none is printed, so 1.
    - `scale`: weights that sum to 1 shrink the columns to 1/i of their size on average after i tasks. "own" divides by
      the asked task's own weight, so that its columns stay as they were trained and others shrink by how unlike their
      task is; "count" multiplies by i, so that the mean weight is 1; "none" takes the weights as printed.
    - `shared`: a column in several tasks' sets takes the greatest of their weights ("max"), their "mean", or, reading
      the sum of Eq 12 literally, their "sum".
    - columns in no set stay as they are.
    - `of`: "weights" scales the columns themselves (Eq 12), "changes" only what tuning changed in them.
    - `matrices`: "out" scales the FFN's output projection alone, which scales what a neuron writes by exactly the
      weight; "all" scales its rows of the input projections too (a gated FFN then multiplies the weights; not at site
      `expert`).
    - `layers`: those whose columns are scaled; all by default.
    - `samples` rows of a task's training part give its features (1000 in the paper), of the untouched subject's last
      hidden state, over the tokens of prompt and answer.

    A question of no task of the stream is answered without scaling, and so is one of a task not learned yet.
    """

    temperature: float = 1.0
    scale: Literal["own", "count", "none"] = "own"
    shared: Literal["max", "mean", "sum"] = "max"
    of: Literal["weights", "changes"] = "weights"
    matrices: Literal["out", "all"] = "out"
    layers: tuple[int, ...] | None = None
    samples: int = 1000

    def __post_init__(self) -> None:
        allowed = {
            "scale": ("own", "count", "none"), "shared": ("max", "mean", "sum"), "of": ("weights", "changes"),
            "matrices": ("out", "all"),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise TuneError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")
        if not (self.temperature > 0 and self.samples > 0):
            raise TuneError(f"temperature and samples must be above 0, got {self.temperature} and {self.samples}")


@contextmanager
def weighted_view(lesson: Lesson, learned: Learned, place: int | None) -> Iterator[None]:
    """The subject with every column scaled for the questions of the task at that place."""
    with plain_view(lesson, learned, place):
        if place is None or place > lesson.place:
            yield
            return
        options: WeightedOptions = lesson.options
        weights = task_weights(learned.memory["features"], place, temperature=options.temperature, scale=options.scale)
        factors = column_factors(learned.memory["masks"], weights, shared=options.shared)
        if options.layers is not None:
            others = [layer for layer in range(len(factors)) if layer not in options.layers]
            factors[others] = 1.0
        with _scaled(lesson.subject, learned, factors, options):
            yield


@learner("w-ncft", lr=3e-4, options=WeightedOptions, view=weighted_view)
def w_ncft(lesson: Lesson) -> Learned:
    """W-NCFT: tuned as NCFT; to answer task j, W' = sum_k Sim_j[k] W_{task-k}, the sum joining column sub-matrices.

    Sim_j = softmax_k(cos(fea_j, fea_k) / temperature) over the tasks learned so far (Leng & Xiong, Eq 10-12). Which
    task a question belongs to must be known. The features come from the untouched subject and are kept with the sets, so
    earlier tasks' data are not needed again.
    """
    learned = ncft(lesson)
    rows = sampled(lesson.task.train, lesson.options.samples, by_group=False)
    features = task_features(lesson.subject, rows)[None]
    earlier = lesson.kept("features")
    features = features if earlier is None else torch.cat([earlier, features])
    return Learned(learned.delta, learned.trained, {**learned.memory, "features": features})


def task_features(subject: Subject, corpus: Corpus) -> Float[Tensor, " channel"]:
    """fea_task: the last hidden state, averaged over the tokens of each row, then over rows."""
    total = None
    with subject.quiet(), torch.no_grad():
        for batch in batches(encode_corpus(subject, corpus), pad_id=pad_id(subject)):
            output = subject.model(
                input_ids=batch.input_ids.to(subject.device), use_cache=False, output_hidden_states=True
            )
            hidden = output.hidden_states[-1].float().cpu()
            real = batch.real[..., None]
            rows = (hidden * real).sum(dim=1) / real.sum(dim=1)
            total = rows.sum(dim=0) if total is None else total + rows.sum(dim=0)
    assert total is not None
    return total / len(corpus)


def task_weights(
    features: Float[Tensor, "task channel"], asked: int, *, temperature: float = 1.0, scale: str = "own"
) -> Float[Tensor, " task"]:
    """Sim_j of Eq 10-11 for the asked task j, scaled as `WeightedOptions.scale` says."""
    wide = torch.nn.functional.normalize(features.double(), dim=1)
    weights = (wide @ wide[asked] / temperature).softmax(dim=0)
    if scale == "own":
        weights = weights / weights[asked]
    elif scale == "count":
        weights = weights * len(weights)
    return weights.float()


def column_factors(
    masks: Bool[Tensor, "task layer neuron"], weights: Float[Tensor, " task"], *, shared: str = "max"
) -> Float[Tensor, "layer neuron"]:
    """What each column is multiplied by: 1 outside all sets, else the weights of the sets that it is in."""
    own = weights[:, None, None] * masks
    if shared == "max":
        factors = own.amax(dim=0)
    else:
        factors = own.sum(dim=0)
        factors = factors / masks.sum(dim=0).clamp(min=1) if shared == "mean" else factors
    return torch.where(masks.any(dim=0), factors, 1.0)


@contextmanager
def _scaled(
    subject: Subject, learned: Learned, factors: Float[Tensor, "layer neuron"], options: WeightedOptions
) -> Iterator[None]:
    """The delta's columns (and rows) multiplied while the block runs."""
    neurons = learned.delta.neurons
    assert neurons is not None
    if options.matrices == "all" and neurons.site == "expert":
        raise TuneError("W-NCFT with matrices='all' is not for site 'expert'; leave it at 'out'")
    kept = []
    try:
        for part, scale in _part_factors(subject, neurons, factors):
            if options.matrices == "out" and part.columns is None:
                continue
            for entry in part.entries():
                now = entry.read()
                kept.append((entry, now))
                by = scale.to(now).view([-1 if dim == entry.dim else 1 for dim in range(now.dim())])
                base = learned.delta.base[entry.key].to(now) if options.of == "changes" else torch.zeros_like(now)
                entry.write(torch.where(by == 1, now, base + by * (now - base)))  # what is not scaled stays bit for bit
        yield
    finally:
        for entry, now in reversed(kept):
            entry.write(now)


def _part_factors(
    subject: Subject, neurons: NeuronSet, factors: Float[Tensor, "layer neuron"]
) -> Iterator[tuple[Part, Tensor]]:
    """Every part of a set's slice with the factor of each of its channels.

    A part's channels of one layer stand for that layer's neurons, in ascending order; where a projection is fused, for
    all of its gate rows and then all of its up rows.
    """
    for layer in range(neurons.num_layers):
        index = neurons.indices(layer)
        if not len(index):
            continue
        for part in parts_of(subject, neurons.layers([layer])):
            channels = part.rows if part.columns is None else part.columns
            assert channels is not None
            yield part, factors[layer, index].repeat(len(channels) // len(index))
