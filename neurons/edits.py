"""Edits: a set silenced in the weights themselves, written as a plain checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import SetError, SubjectError
from .experts import expert_weights
from .sets import NeuronSet
from .sites import Tap, is_transposed, unwrapped
from .subject import Subject


def export_silenced(subject: Subject, neurons: NeuronSet, folder: str | Path, *, factor: float = 0.0) -> Path:
    """Write a Hugging Face checkpoint in which a set's activations are multiplied by `factor` (0 silences them).

    The same as `intervene(kind="zero")` or `kind="scale"`, in the weights: for sites on the input side of a projection
    (`mlp`, `attn`, `expert`) the projection's columns are scaled, for sites on an output side its rows and bias. The
    folder loads with plain `from_pretrained`. The subject is the same afterwards, bit for bit.

    Raises SetError for a set of another subject, and when the folder exists and is not empty; SubjectError for a model
    inside a TransformerLens bridge, whose parameters have other names than a checkpoint's.
    """
    neurons.check(subject)
    if any(module is not unwrapped(module) for module in subject.model.modules()):
        raise SubjectError(
            f"{subject.name} is wrapped by a TransformerLens bridge, so it cannot be saved as a plain checkpoint; "
            "load the model again without the bridge (it has the same fingerprint) and export from that"
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetError(f"{folder} exists and is not an empty folder; choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with _scaled(subject, neurons, factor):
            subject.model.save_pretrained(work)
        subject.tokenizer.save_pretrained(work)
        work.chmod(0o755)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


@contextmanager
def _scaled(subject: Subject, neurons: NeuronSet, factor: float) -> Iterator[None]:
    kept: list[tuple[torch.Tensor, tuple[Any, ...], torch.Tensor]] = []
    try:
        with torch.no_grad():
            for layer, tap in enumerate(subject.site(neurons.site).taps):
                index = neurons.indices(layer)
                if len(index):
                    for tensor, place in _entries(tap, index):
                        old = tensor[place].clone()
                        kept.append((tensor, place, old))
                        tensor[place] = old * factor
        yield
    finally:
        with torch.no_grad():
            for tensor, place, old in reversed(kept):
                tensor[place] = old


def _entries(tap: Tap, index: Int[Tensor, " neuron"]) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """The tensors that carry a tap's neurons, and where in them these neurons' entries are."""
    if tap.routed is not None:
        _, out = expert_weights(tap.module)
        yield out, ((index // tap.units).to(out.device), (index % tap.units).to(out.device))
        return
    weight = tap.module.weight
    assert isinstance(weight, torch.Tensor)
    channels = (index if tap.channels is None else tap.channels[index]).to(weight.device)
    rows = (tap.side == "out") != is_transposed(tap.module)
    yield weight, (channels,) if rows else (slice(None), channels)
    bias = getattr(tap.module, "bias", None)
    if tap.side == "out" and isinstance(bias, torch.Tensor):
        yield bias, (channels,)
