"""A subject made ready for `transformers.Trainer`, or for any other loop over an `nn.Module`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .delta import Delta
from .errors import TuneError
from .trainable import Trainable, trainable_slice


class Prepared(nn.Module):
    """The subject as a module whose parameters are a slice's masters and nothing else.

    Its forward is the subject's. The subject stands beside it, not inside: `parameters()`, `state_dict()` and whatever
    saves these hold the small tensors alone, under the delta's keys with `/` for `.`.
    """

    _held: tuple[Subject, NeuronSet, Trainable]

    def __init__(self, subject: Subject, neurons: NeuronSet, trainable: Trainable, dropout: bool) -> None:
        super().__init__()
        self._dropout = dropout
        self._checkpointed = False
        self._layers: list[nn.Module] = []
        self.__dict__["_held"] = (subject, neurons, trainable)  # not as attributes, which would make the subject a part
        for entry, master in zip(trainable.entries, trainable.masters, strict=True):
            self.register_parameter(entry.key.replace(".", "/"), master)

    @property
    def config(self) -> Any:
        """The subject's config."""
        return self._held[0].model.config

    @property
    def device(self) -> torch.device:
        return self._held[0].device

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The subject's output, with its loss where there are `labels`. Raises TuneError on another device."""
        subject, _, trainable = self._held
        if trainable.masters[0].device != trainable.base[0].device:
            raise TuneError(
                f"the slice was moved to {trainable.masters[0].device}, {subject.name} is on {trainable.base[0].device}; "
                "load the model on the device that the trainer uses, or give TrainingArguments(use_cpu=True)"
            )
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids,
            "inputs_embeds": inputs_embeds, "labels": labels,
        }  # fmt: skip
        kwargs.setdefault("use_cache", False)
        return subject.model(**{name: value for name, value in given.items() if value is not None}, **kwargs)

    def train(self, mode: bool = True) -> Prepared:
        """Training mode, in which dropout stays off unless it was asked for."""
        super().train(mode)
        self._held[0].model.train(mode and self._dropout)
        for layer in self._layers:  # a checkpointed layer asks its own flag, its children ask theirs for dropout
            layer.training = mode
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Compute layers again in the backward instead of keeping what they computed; what Trainer calls for
        `gradient_checkpointing`. Raises TuneError for reentrant checkpoints, which lose gradients of a frozen model.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        chosen = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if chosen["use_reentrant"]:
            raise TuneError("checkpoints of a frozen model need use_reentrant=False; leave use_reentrant out")
        model = self._held[0].model
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable(chosen, **kwargs)
        self._checkpointed = True
        model.disable_input_require_grads()  # needless without reentrance, and it would differentiate every layer
        if not self._dropout:
            self._layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
            own = [name for layer in self._layers for name, rate in vars(layer).items() if _is_dropout(name, rate)]
            if own:
                raise TuneError(
                    f"the layers of {self._held[0].name} apply {own[0]} themselves, which checkpoints would switch on; "
                    "prepare with dropout=True, or train without gradient_checkpointing"
                )
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """`activation_checkpointing_enable` by its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def delta(self, *, history: Sequence[float] = (), origin: Mapping[str, Any] | None = None) -> Delta:
        """What training has made of the slice until now; also after the block. `origin` says how it came about.

        Raises TuneError when an entry is not finite.
        """
        subject, neurons, trainable = self._held
        values = trainable.values()
        for key, tensor in values.items():
            if not bool(tensor.isfinite().all()):
                raise TuneError(f"training diverged: {key} is not finite; the subject is untouched; try a smaller lr")
        made = {"made": "prepared", **(origin or {}), "versions": library_versions()}
        return Delta(subject.fingerprint, neurons, values, trainable.base_values(), tuple(history), made)

    def _reset(self) -> None:
        """What gradient checkpointing switched on, switched off."""
        model = self._held[0].model
        self._layers = []
        model.eval()
        if self._checkpointed:
            self._checkpointed = False
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()


@contextmanager
def prepared(subject: Subject, neurons: NeuronSet, *, dropout: bool = False) -> Iterator[Prepared]:
    """While the block runs, the subject as a module that trains exactly a set's slice: for `transformers.Trainer`.

        with npl.prepared(subject, neurons) as model:
            Trainer(model, arguments, train_dataset=rows).train()
        delta = model.delta()

    Afterwards the subject is bit for bit what it was; the trained slice is in `model.delta()`. `dropout` trains with the
    model's own dropout. Below float32 the masters are float32, so leave `bf16` to a model that is loaded in float32.

    Raises what `trainable_slice` raises.
    """
    with ExitStack() as stack:
        trainable = stack.enter_context(trainable_slice(subject, neurons))
        model = Prepared(subject, neurons, trainable, dropout)
        stack.callback(model._reset)
        yield model


def _is_dropout(name: str, rate: Any) -> bool:
    return "dropout" in name and isinstance(rate, float) and rate > 0
