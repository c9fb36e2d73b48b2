"""A delta as a PEFT adapter, for tools that load adapters and not whole models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons.sites import is_transposed
from ..neurons.subject import Subject
from .delta import Delta
from .delta_files import folder_for, in_place_of
from .errors import DeltaError
from .slices import SlicePart, linear_parts

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def export_peft(delta: Delta, subject: Subject, folder: str | Path) -> Path:
    """Write a LoRA adapter that `PeftModel.from_pretrained(model, folder)` loads, with the delta's change in it.

    A change of r rows or columns has rank r, so a LoRA pair of that rank holds it without loss:
    `W + B A` with, for rows, `B` [out, r] the columns of the identity that pick them and `A` [r, in] the change; for
    columns, `A` [r, in] the rows of the identity and `B` [out, r] the change. Each projection has its own rank, and
    `lora_alpha = r` makes PEFT's scale 1. Changes of biases go into `lora_bias`. The pair is float32; the sum `W x + B A x`
    is that of the tuned model up to rounding. Unlike a merged delta it costs `2 r` multiplications a token and channel.

    Raises DeltaError where LoRA cannot say it: a delta of all parameters or of routed experts, a projection that is no
    Linear or Conv1D, or trained biases beside projections without bias (PEFT has them everywhere or nowhere); and when
    PEFT is not installed, when the folder is there and not empty, or when the delta is of another subject.
    """
    from safetensors.torch import save_file

    delta.check(subject)
    if delta.neurons is None:
        raise DeltaError(
            "PEFT has no adapter for a delta of all parameters; write a checkpoint with delta.export(subject, folder)"
        )
    if delta.neurons.site == "expert":
        raise DeltaError(
            "PEFT's LoRA has no form for single units of some of a layer's experts; write a checkpoint with "
            "delta.export(subject, folder)"
        )
    folder = folder_for(folder, "the adapter")
    parts = linear_parts(subject, delta.neurons, what="a PEFT adapter")
    changes = {key: delta.values[key].double() - base.double() for key, base in delta.base.items()}
    biased = _biased(parts, changes)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for part in parts:
        down, up = _pair(part, changes)
        ranks[part.path] = len(down)
        tensors |= {f"{PREFIX}{part.path}.lora_A.weight": down, f"{PREFIX}{part.path}.lora_B.weight": up}
        if biased:
            tensors[f"{PREFIX}{part.path}.lora_B.bias"] = _bias(part, changes)
    config = _config(subject, parts, ranks, biased)
    with in_place_of(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file({key: tensor.float().contiguous() for key, tensor in tensors.items()}, temporary / TENSORS)
    return folder


def _pair(part: SlicePart, changes: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(A [r, in], B [out, r]) whose product is the change of a projection's weight as [out, in]."""
    if not isinstance(part.module, nn.Linear) and not is_transposed(part.module):
        raise DeltaError(f"PEFT's LoRA is for Linear and Conv1D, {part.path} is a {type(part.module).__name__}")
    out_width, in_width = part.weight.shape
    if part.rows is not None:
        return changes[f"{part.path}.rows"], _one_hot(part.rows, out_width).t()
    assert part.columns is not None
    return _one_hot(part.columns, in_width), changes[f"{part.path}.columns"]


def _one_hot(index: Tensor, width: int) -> Tensor:
    """[index, width]: a row for every index, with its one there."""
    return torch.nn.functional.one_hot(index.cpu(), width).double()


def _bias(part: SlicePart, changes: Mapping[str, Tensor]) -> Tensor:
    """The change of a projection's whole bias; zero outside of what was trained."""
    bias = torch.zeros(part.weight.shape[0], dtype=torch.float64)
    if part.rows is not None and part.bias is not None:
        bias[part.rows.cpu()] = changes[f"{part.path}.bias"]
    return bias


def _biased(parts: tuple[SlicePart, ...], changes: Mapping[str, Tensor]) -> bool:
    """Whether the adapter must change biases. Raises DeltaError where PEFT cannot."""
    trained = [
        part.path for part in parts if f"{part.path}.bias" in changes and bool(changes[f"{part.path}.bias"].any())
    ]
    bare = [part.path for part in parts if getattr(part.module, "bias", None) is None]
    if trained and bare:
        raise DeltaError(
            f"the bias of {trained[0]} was trained, but {bare[0]} has none, and PEFT's lora_bias is for all projections "
            "or for none; write a checkpoint with delta.export(subject, folder)"
        )
    return bool(trained)


def _config(subject: Subject, parts: tuple[SlicePart, ...], ranks: dict[str, int], biased: bool) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise DeltaError("writing a PEFT adapter needs PEFT; install it with pip install peft") from error

    default = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != default}
    return LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=subject.name, inference_mode=True, r=default, lora_alpha=default,
        target_modules=sorted(ranks), rank_pattern=others, alpha_pattern=dict(others), lora_bias=biased,
        fan_in_fan_out=any(is_transposed(part.module) for part in parts),
    )  # fmt: skip
