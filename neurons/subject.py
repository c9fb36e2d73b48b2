"""The subject: an untouched Hugging Face causal LM with its tokenizer and a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checks import check_site
from .errors import SubjectError
from .experts import eager_in_float64
from .offload import blocks_recomputed, execution_device, is_offloaded, kept_elsewhere, placement, spare_folder
from .products import fast_products
from .sites import Site, architecture, resolve_site, unwrapped

BUNDLED = {"bundled:polis": Path(__file__).parent / "bundled" / "polis"}


@dataclass(frozen=True, eq=False)
class Subject:
    """A causal LM under study. Nothing in this package rewrites its module: hooks go in and come out again.

    `fingerprint` names the weights and the architecture, whatever the dtype they are loaded in (see `fingerprint`).
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    _sites: dict[str, Site] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> Any:
        """The language model's config (the text part of it where the model has several)."""
        return self.model.config.get_text_config()

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        """Where the embeddings compute; sums are kept there too."""
        return execution_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def offloaded(self) -> bool:
        """Whether weights are brought in from disk or RAM when a module needs them (see `load_model`)."""
        return is_offloaded(self.model)

    @cached_property
    def adapter(self) -> Any:
        """TransformerLens's adapter for this architecture."""
        return architecture(self.model)

    def site(self, name: str) -> Site:
        """The site of this name, resolved once and checked once.

        Raises SiteError when the subject lacks it or when it does not stand its check (see `checks`).
        """
        if name not in self._sites:
            site = resolve_site(self.model, self.adapter, name, num_layers=self.num_layers)
            check_site(self, site)
            self._sites[name] = site
        return self._sites[name]

    @contextmanager
    def quiet(self, *, recompute: bool | None = None) -> Iterator[None]:
        """Evaluation mode with every parameter frozen, both put back afterwards; experts in float64 compute one by one.

        With `recompute`, a backward runs each block's forward again instead of keeping its activations; by default an
        offloaded subject does so, because a backward would otherwise hold all of its weights.
        """
        training = [module for module in self.model.modules() if module.training]
        # by name: accelerate puts other objects in the place of offloaded parameters
        trained = [
            (m, n) for m in self.model.modules() for n, p in m._parameters.items() if p is not None and p.requires_grad
        ]
        self.model.eval()
        self.model.requires_grad_(False)
        try:
            with (
                blocks_recomputed(self.blocks)
                if (self.offloaded if recompute is None else recompute)
                else nullcontext(),
                eager_in_float64(self.model),
            ):
                yield
        finally:
            for module in training:
                module.training = True
            for module, name in trained:
                module._parameters[name].requires_grad_(True)  # pyright: ignore[reportOptionalMemberAccess]

    @contextmanager
    def scoring(self, *, recompute: bool | None = None) -> Iterator[None]:
        """`quiet`, with large products by the fastest kernel there is, whose last bits may differ (see `kernel_serves`)."""
        with self.quiet(recompute=recompute), fast_products(self.model, self.device):
            yield

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order. Raises SiteError for a family that TransformerLens does not know."""
        return [self.adapter.get_component(self.model, f"blocks.{layer}") for layer in range(self.num_layers)]


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    offload: str | Path | None = None,
    memory: str | int | None = None,
) -> Subject:
    """Load a subject.

    `source` is a hub id, a local folder, `"bundled:polis"`, an `nn.Module`, a pair (module, tokenizer), a TransformerLens
    `TransformerBridge`, or a Subject (returned as it is). `dtype` and `device` apply to what is loaded from a name; by
    default the checkpoint's dtype, on a GPU where there is one (that of its LOCAL_RANK under `torchrun`).

    `offload` is for models that memory does not hold: `"disk"` (or a folder for weights that are in no safetensors file)
    leaves on disk what goes beyond `memory`, `"cpu"` leaves it in RAM and computes on a GPU. `memory` ("5GB") is for weights
    on the device that computes; leave room for two blocks, activations and sums. By default it is nothing on the CPU, and
    0.6 of what is free on a GPU. Scores are those of the model in memory, bit for bit on the CPU.

    Raises SubjectError when nothing is there, when it is no causal LM, or when there is no tokenizer.
    """
    if isinstance(source, Subject):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        source, tokenizer = source
    if isinstance(source, nn.Module):
        if offload is not None:
            raise SubjectError("offload is for models that are loaded by name; offload a module with accelerate first")
        return _from_module(source, tokenizer)
    if not isinstance(source, str | Path):
        raise SubjectError(
            f"cannot load a model from a {type(source).__name__}; "
            "give a hub id, a folder, 'bundled:polis', a module or (module, tokenizer)"
        )
    return _from_name(str(source), tokenizer, dtype, device, None if offload is None else str(offload), memory)


def _from_module(module: nn.Module, tokenizer: Any) -> Subject:
    if hasattr(module, "original_model"):  # a TransformerBridge wraps the Hugging Face module
        tokenizer = tokenizer or getattr(module, "tokenizer", None)
        module = module.original_model  # pyright: ignore[reportAssignmentType]
    if not hasattr(module, "config"):
        raise SubjectError(f"a {type(module).__name__} has no 'config'; expected a Hugging Face causal LM")
    name = str(getattr(module.config, "name_or_path", "") or type(module).__name__)
    if tokenizer is None:
        raise SubjectError(f"{name}: no tokenizer; give load_model((module, tokenizer))")
    return Subject(module, tokenizer, name, fingerprint(module))


def _from_name(
    name: str,
    tokenizer: Any,
    dtype: torch.dtype | None,
    device: str | None,
    offload: str | None,
    memory: str | int | None,
) -> Subject:
    where = str(BUNDLED.get(name, name))
    if name.startswith("bundled:") and name not in BUNDLED:
        raise SubjectError(f"no bundled model {name!r}; bundled models are {', '.join(BUNDLED)}")
    if memory is not None and offload is None:
        raise SubjectError(f"memory={memory!r} says what stays of an offloaded model; give offload='disk' too")
    looks_local = where.startswith(("/", ".", "~")) or Path(where).exists()
    where = os.path.expanduser(where) if looks_local else where
    if looks_local and not (Path(where) / "config.json").is_file():
        raise SubjectError(f"no model in {name!r}: expected a folder with config.json and weights; check the path")
    place = device or _default_device()
    if offload is None:
        loaded, tokenizer = _pretrained(name, where, tokenizer, dtype=dtype)
        _put(loaded, place, name)
    else:
        told = placement(offload, memory, place)
        with spare_folder(offload) as (folder, bind):
            loaded, tokenizer = _pretrained(name, where, tokenizer, dtype=dtype, offload_folder=str(folder), **told)
            bind(loaded)
    return Subject(loaded.eval(), tokenizer, name, fingerprint(loaded))


def _default_device() -> str:
    """A GPU where there is one: under `torchrun` and `accelerate launch` that of this process."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _pretrained(name: str, where: str, tokenizer: Any, **how: Any) -> tuple[Any, Any]:
    """Model and tokenizer as transformers loads them. Raises SubjectError when it cannot, or when weights are missing."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how["dtype"] = how["dtype"] or "auto"
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **how)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise SubjectError(
            f"cannot load model {name!r}: {str(error).strip().splitlines()[0]} "
            "(give a hub id you can reach, a local folder, or 'bundled:polis')"
        ) from error
    loaded, told = loading
    if missing := sorted(told["missing_keys"]):
        raise SubjectError(
            f"cannot load model {name!r}: its checkpoint lacks {len(missing)} weights, such as {missing[0]}, "
            "which would be random; expected the checkpoint of a causal LM"
        )
    return loaded, tokenizer


def _put(loaded: Any, place: str, name: str) -> None:
    try:
        loaded.to(place)
    except (AssertionError, RuntimeError) as error:  # torch raises either for a device that is not there
        reason = str(error).strip().splitlines()[0]
        raise SubjectError(
            f"cannot put {name!r} on device {place!r}: {reason}; try --device cpu (device='cpu')"
        ) from error


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a model's architecture and weights.

    Every parameter counts with its name, its shape and, after rounding to bfloat16, the sums (modulo 2^32) of the bits
    along each of its dimensions: one checkpoint has one name in float32 and in bfloat16, and a changed entry or two
    swapped rows or columns give another. A TransformerLens bridge has the name of the module that it wraps.

    Raises SubjectError for weights that are no plain tensors, as quantisation libraries (torchao) make them.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, module, parameter in _plain_parameters(model):
        values: torch.Tensor | None = parameter
        if parameter.device.type == "meta":
            if name in tied:  # offloaded, both ends of a tie have an object of their own
                continue
            values = kept_elsewhere(module, name.rpartition(".")[2])
        digest.update(json.dumps([name, list(parameter.shape)]).encode())
        if values is None:
            continue
        if type(values.data).__module__.startswith("torchao"):  # quantised tensors that have no bits of their own
            values = values.dequantize()
        if type(values.data) is not torch.Tensor:
            raise SubjectError(
                f"{name} of this {type(model).__name__} is a {type(values.data).__name__}, not a plain tensor (a sharded model, "
                "or a quantisation other than bitsandbytes' and torchao's); load it on one device, in float32 or bfloat16"
            )
        bits = values.detach().to(torch.bfloat16).view(torch.int16)
        for dim in range(bits.dim()):
            others = [other for other in range(bits.dim()) if other != dim]
            sums = bits.sum(dim=others, dtype=torch.int32) if others else bits
            digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Parameters with their names and modules, without the wrappers and the split copies of a TransformerLens bridge."""
    seen: set[nn.Parameter] = set()

    def below(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        module = unwrapped(module)
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in seen:
                seen.add(parameter)
                yield path + name, module, parameter
        for name, child in module.named_children():
            yield from below(child, f"{path}{name}.")

    return below(model, "")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Sixteen hexadecimal digits that name a tokenizer's rules and vocabulary, whatever it padded or cut last."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:
        rules["padding"] = rules["truncation"] = None
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]
