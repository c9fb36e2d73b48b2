"""Models larger than memory: weights that stay on disk or in RAM until a module needs them, and blocks computed twice.

accelerate's hooks bring a module's weights in before its forward and let go of them after it. A backward would hold on to
all of them; with every block's forward run again inside the backward, only one block's are there at a time.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from .errors import SubjectError


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate keeps some of the weights elsewhere between forwards."""
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def execution_device(model: nn.Module) -> torch.device:
    """Where the first weights compute: their device, or that which accelerate brings them to."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                hook = _holding(module) if parameter.device.type == "meta" else None
                return parameter.device if hook is None else torch.device(hook.execution_device)
    raise SubjectError(f"this {type(model).__name__} has no parameters; expected a causal LM")


def kept_elsewhere(module: nn.Module, name: str) -> Tensor | None:
    """An offloaded parameter's values, read from where they are kept; None where nothing keeps them."""
    hook = _holding(module)
    return None if hook is None else hook.weights_map[name]


def _holding(module: nn.Module) -> Any:
    """The accelerate hook that brings this module's weights in."""
    hook = getattr(module, "_hf_hook", None)
    return next((one for one in getattr(hook, "hooks", (hook,)) if getattr(one, "weights_map", None) is not None), None)


def placement(offload: str, memory: str | int | None, device: str | None) -> dict[str, Any]:
    """What `from_pretrained` must be told: how much may stay on the device that computes, and where the rest is kept.

    Raises SubjectError for an amount of memory that cannot be read, and for `"cpu"` where the CPU is what computes.
    """
    from accelerate.utils import convert_file_size_to_int, get_max_memory

    try:
        amount = None if memory is None else convert_file_size_to_int(memory)
    except ValueError as error:
        raise SubjectError(f"cannot read {memory!r} as an amount of memory; expected such as '8GB'") from error
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu":
        if offload == "cpu":
            raise SubjectError("offload='cpu' keeps weights in RAM for a GPU, and the CPU computes here; use 'disk'")
        limits: dict[Any, int] = {"cpu": amount or 0}
    else:
        index = place.index or 0
        room = int(0.6 * get_max_memory()[index]) if amount is None else amount  # the rest is for activations
        limits = {index: room, "cpu": 2**62 if offload == "cpu" else 0}
    return {"device_map": "auto", "max_memory": limits}


@contextmanager
def spare_folder(offload: str) -> Iterator[tuple[Path, Callable[[nn.Module], None]]]:
    """Where weights that are in no safetensors file are rewritten: the caller's folder, or one that goes with the model.

    Gives the folder and a function that ties it to the life of a model; without that it is removed at once.
    """
    if offload not in ("disk", "cpu"):
        yield Path(offload).expanduser(), lambda model: None
        return
    folder = tempfile.mkdtemp(prefix="neuropolis-offload-")
    bound: list[nn.Module] = []
    try:
        yield Path(folder), bound.append
    finally:
        if bound:
            weakref.finalize(bound[0], shutil.rmtree, folder, ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def blocks_recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep no activations inside of these modules for the backward, which runs their forward again (gradient checkpointing).

    Chen et al. 2016 (arXiv 1604.06174). It needs no support by the family and no training mode: each module's `forward` is
    wrapped and put back afterwards. Modules that the forward draws random numbers in are not for it.
    """
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.__dict__["forward"] = _recomputed(block.forward)
    try:
        # stopping early is an exception, and accelerate's hooks would not let go of the weights then
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = own


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def through(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return through
