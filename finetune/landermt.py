"""LANDeRMT: fine-tuning for translation of language-general and pair-specific FFN neurons, with routing between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..attribution.encoding import encode_corpus
from ..attribution.language_pairs import PairNeurons
from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.subject import Subject
from .delta import Delta
from .entries import Entry
from .errors import TuneError
from .routing import Gates, open_gates, routed, trainable_gates
from .trainable import Trainable, trainable_slice
from .training import Progress, Recipe, train


@dataclass(frozen=True, eq=False)
class RoutedDelta:
    """What `landermt` trained: the entries of the detected neurons, and the gates between them."""

    delta: Delta
    gates: Gates

    @property
    def subject(self) -> str:
        """Fingerprint of the subject that it was trained on."""
        return self.delta.subject

    @property
    def num_parameters(self) -> int:
        """Trained numbers, those of the gates included."""
        return self.delta.num_parameters + self.gates.num_parameters

    def __repr__(self) -> str:
        return f"RoutedDelta({self.delta!r}, {self.gates!r})"

    def check(self, subject: Subject) -> None:
        """Raise DeltaError unless this was trained on that subject, in the dtype that it is loaded in."""
        self.delta.check(subject)
        self.gates.check(subject)

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[None]:
        """While the block runs, the subject has the trained entries and the gates; afterwards it is bit for bit as before.

        The gates depend on the token, so they cannot be merged into weights.
        """
        self.check(subject)
        with self.delta.applied(subject), routed(subject, self.gates):
            yield

    def save(self, folder: str | Path) -> Path:
        """Write it as a folder; see `load_routed_delta`."""
        from .landermt_files import save_routed_delta

        return save_routed_delta(self, folder)


def landermt(
    subject: Subject,
    corpus: Corpus,
    neurons: PairNeurons,
    *,
    lr: float = 3e-4,
    steps: int | None = None,
    epochs: int = 3,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    schedule: Literal["cosine", "constant"] = "cosine",
    warmup: float = 0.1,
    seed: int = 0,
    split: str | None = "auto",
    stop_diverged: bool = True,
    progress: Progress | None = None,
) -> RoutedDelta:
    """Train the neurons that are general or specific to the corpus's language pairs, with a gate for each of the two.

    The groups of `corpus` are language pairs (`language_pairs`). Trained are the slice of the general neurons and of
    those specific to these pairs, and their gates (`Gates`), which start open: the first forward is the subject's own, bit
    for bit. Pairs that are not in the corpus have no gate, and their neurons stay. Loss and recipe are those of
    `finetune`; weight decay draws gates towards 1. The subject is bit for bit the same afterwards.

    LANDeRMT (arXiv 2409.19523): "only parameters of the detected neurons in the selected FFN layers are updated"; its
    router and its hyper-parameters are not public.

    Raises SetError when a pair has no neurons in `neurons`, and what `finetune` raises.
    """
    recipe = Recipe(
        lr=lr, steps=steps, epochs=epochs, batch_size=batch_size, weight_decay=weight_decay, clip=clip, schedule=schedule,
        warmup=warmup, seed=seed, stop_diverged=stop_diverged,
    )  # fmt: skip
    rows = corpus.part(split, auto="train")
    gates = trainable_gates(open_gates(subject, neurons.roles(rows.groups)), device=subject.device)
    chosen = neurons.of(*rows.groups)
    with trainable_slice(subject, chosen) as part:
        trainable = _with_gates(part, gates)
        with routed(subject, gates):
            history = train(subject, encode_corpus(subject, rows), trainable, recipe, progress=progress)
        values = trainable.values()
        _all_finite(values, len(history))
        learned = gates.with_tensors({name: values.pop(name) for name in gates.tensors()})
        origin = {
            "made": "landermt", "corpus": rows.name, "corpus_hash": rows.hash, "groups": list(rows.groups),
            "num_examples": len(rows), "recipe": asdict(recipe), "versions": library_versions(),
        }  # fmt: skip
        delta = Delta(subject.fingerprint, chosen, values, part.base_values(), history, origin)
    return RoutedDelta(delta, learned)


def _with_gates(part: Trainable, gates: Gates) -> Trainable:
    """A slice and the gates' parameters as one: an entry of its own, outside the model, for each of these."""
    masters = [tensor for tensor in gates.tensors().values() if isinstance(tensor, nn.Parameter)]
    base = [master.detach().clone() for master in masters]
    entries = [Entry(name, values.clone()) for name, values in zip(gates.tensors(), base, strict=True)]
    return Trainable((*part.entries, *entries), (*part.masters, *masters), (*part.base, *base))


def _all_finite(values: dict[str, Tensor], num_steps: int) -> None:
    for key, tensor in values.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TuneError(
                f"training diverged: {key} is not finite after step {num_steps}, the last; "
                "the subject is untouched; try a smaller lr"
            )
