"""LoRA adapters on every projection, trained by the common loop and kept in PEFT's files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...attribution.encoding import encode_corpus
from ...corpora.examples import Corpus
from ...neurons.sites import is_transposed
from ...neurons.subject import Subject
from ..delta_files import folder_for, in_place_of
from ..errors import DeltaError
from ..loop import train
from ..lora_methods import adapters, factors_of
from ..peft_export import CONFIG, PREFIX, TENSORS
from ..recipe import Recipe


def projections(subject: Subject) -> list[str]:
    """Paths of all linear layers of the blocks: attention's and the FFN's, as CultureSPA adapts them."""
    head = getattr(subject.model, "get_output_embeddings", lambda: None)()
    return [
        path
        for path, module in subject.model.named_modules()
        if module is not head and (isinstance(module, nn.Linear) or is_transposed(module))
    ]


def train_adapter(
    subject: Subject, corpus: Corpus, folder: str | Path, recipe: Recipe, *, rank: int = 8, alpha: float | None = None
) -> int:
    """Train W + (alpha / rank) B A on a corpus and write A and B as a PEFT adapter; how many numbers those are.

    `alpha` is twice the rank by default; no dropout. The subject is as before afterwards. Raises TuneError without PEFT
    and when training diverges, DeltaError when the folder is there and not empty.
    """
    folder = folder_for(folder, "the adapter")
    alpha = 2 * rank if alpha is None else alpha
    with adapters(subject, projections(subject), rank, alpha, recipe.seed) as (layers, trainable):
        train(subject, encode_corpus(subject, corpus), trainable, recipe)
        tensors = {
            f"{PREFIX}{path}.lora_{key}.weight": factor.detach().cpu().contiguous()
            for path, layer in layers.items()
            for key, factor in zip("AB", factors_of(layer), strict=True)
        }
        count = trainable.num_parameters
    _write(subject, folder, tensors, rank, alpha)
    return count


@contextmanager
def adapted(subject: Subject, folder: str | Path) -> Iterator[None]:
    """While the block runs the subject has a trained adapter; what stood there comes back. Raises DeltaError for another's."""
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / TENSORS).is_file():
        raise DeltaError(f"no adapter at {folder}: expected {CONFIG} and {TENSORS}; check the path")
    config, tensors = _config(folder), load_file(folder / TENSORS)
    paths = projections(subject)
    with adapters(subject, paths, config.r, config.lora_alpha, 0) as (layers, _), torch.no_grad():
        for path, layer in layers.items():
            for key, factor in zip("AB", factors_of(layer), strict=True):
                found = tensors.get(f"{PREFIX}{path}.lora_{key}.weight")
                if found is None or found.shape != factor.shape:
                    raise DeltaError(
                        f"{folder}: no {key} of {path} in the shape {list(factor.shape)}; is it another model's?"
                    )
                factor.copy_(found)
        yield


def _write(subject: Subject, folder: Path, tensors: dict[str, torch.Tensor], rank: int, alpha: float) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    paths = projections(subject)
    config = LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=subject.name, inference_mode=True, r=rank, lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        target_modules=paths, lora_dropout=0.0, bias="none",
        fan_in_fan_out=any(is_transposed(subject.model.get_submodule(path)) for path in paths),
    )  # fmt: skip
    with in_place_of(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file({key: tensor.float() for key, tensor in tensors.items()}, temporary / TENSORS)


def _config(folder: Path) -> Any:
    from peft import LoraConfig

    return LoraConfig.from_pretrained(str(folder))
