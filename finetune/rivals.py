"""What neuron-restricted tuning is compared with: LoRA (PEFT) and whole layers, trained on copies of the subject.

They train in the subject's own dtype: compare on a subject in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..attribution.encoding import encode_corpus
from ..corpora.examples import Corpus
from ..neurons.errors import SiteError
from ..neurons.subject import Subject
from .entries import Entry
from .errors import TuneError
from .trainable import Trainable
from .training import Recipe, train


def tuned_layers(subject: Subject, corpus: Corpus, layers: Iterable[int], recipe: Recipe) -> tuple[Subject, int]:
    """A copy of the subject in which all parameters of these layers were trained, and how many numbers those are."""
    twin = _copy(subject)
    twin.model.requires_grad_(False)
    for layer in sorted(set(layers)):
        subject.adapter.get_component(twin.model, f"blocks.{layer}").requires_grad_(True)
    return _trained(twin, corpus, recipe)


def tuned_lora(
    subject: Subject, corpus: Corpus, rank: int, recipe: Recipe, *, alpha: float | None = None
) -> tuple[Subject, int]:
    """A copy of the subject with LoRA adapters (PEFT) on every layer's FFN projections, trained; and how many numbers.

    `alpha` is twice the rank by default; no dropout. The recipe's seed draws the adapters' initial values.

    Raises TuneError when PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise TuneError(
            "the comparison with LoRA needs PEFT; pip install peft, or leave 'lora' out of the methods"
        ) from error
    twin = _copy(subject)
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=0.0, target_modules=ffn_projections(subject))  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        inject_adapter_in_model(config, twin.model)
    return _trained(twin, corpus, recipe)


def lora_rank(subject: Subject, num_parameters: int) -> int:
    """The rank at which LoRA on the FFN projections trains as many numbers as can be to these, 1 at least."""
    one = sum(sum(subject.model.get_submodule(path).weight.shape) for path in ffn_projections(subject))
    return max(1, round(num_parameters / one))


def ffn_projections(subject: Subject) -> list[str]:
    """Paths of the gate (where there is one), up and down projections of all layers."""
    paths: dict[str, None] = {}
    for site in ("gate", "up", "mlp"):
        try:
            taps = subject.site(site).taps
        except SiteError:
            if site != "gate":
                raise
            continue
        paths |= dict.fromkeys(tap.path for tap in taps)
    return list(paths)


def _copy(subject: Subject) -> Subject:
    return Subject(copy.deepcopy(subject.model).eval(), subject.tokenizer, subject.name, subject.fingerprint)


def _trained(twin: Subject, corpus: Corpus, recipe: Recipe) -> tuple[Subject, int]:
    """Train what requires a gradient. Not under `quiet`, which would freeze it."""
    named: list[tuple[str, nn.Parameter]] = [(n, p) for n, p in twin.model.named_parameters() if p.requires_grad]
    entries: Any = tuple(Entry(name, parameter.data) for name, parameter in named)
    trainable = Trainable(entries, tuple(p for _, p in named), tuple(entry.read() for entry in entries))
    train(twin, encode_corpus(twin, corpus), trainable, recipe)
    return twin, trainable.num_parameters
