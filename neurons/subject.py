"""The subject: an untouched Hugging Face causal LM with its tokenizer and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SiteError, SubjectError
from .sites import Site, architecture, resolve_site

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
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def adapter(self) -> Any:
        """TransformerLens's adapter for this architecture."""
        return architecture(self.model)

    def site(self, name: str) -> Site:
        """The site of this name, resolved once and checked once.

        Raises SiteError when the subject lacks it or when a short forward does not pass through every tap.
        """
        if name not in self._sites:
            site = resolve_site(self.model, self.adapter, name, num_layers=self.num_layers)
            _check(self, site)
            self._sites[name] = site
        return self._sites[name]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Evaluation mode with every parameter frozen, both put back afterwards."""
        training = [module for module in self.model.modules() if module.training]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.model.eval()
        self.model.requires_grad_(False)
        try:
            yield
        finally:
            for module in training:
                module.training = True
            for parameter in trained:
                parameter.requires_grad_(True)


def load_model(
    source: Any, *, tokenizer: Any = None, dtype: torch.dtype | None = None, device: str | None = None
) -> Subject:
    """Load a subject.

    `source` is a hub id, a local folder, `"bundled:polis"`, an `nn.Module`, a pair (module, tokenizer), a TransformerLens
    `TransformerBridge`, or a Subject (returned as it is). `dtype` and `device` apply to what is loaded from a name; by
    default the checkpoint's dtype, on a GPU where there is one.

    Raises SubjectError when nothing is there, when it is no causal LM, or when there is no tokenizer.
    """
    if isinstance(source, Subject):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        source, tokenizer = source
    if isinstance(source, nn.Module):
        return _from_module(source, tokenizer)
    if not isinstance(source, str | Path):
        raise SubjectError(
            f"cannot load a model from a {type(source).__name__}; "
            "give a hub id, a folder, 'bundled:polis', a module or (module, tokenizer)"
        )
    return _from_name(str(source), tokenizer, dtype, device)


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


def _from_name(name: str, tokenizer: Any, dtype: torch.dtype | None, device: str | None) -> Subject:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = str(BUNDLED.get(name, name))
    if name.startswith("bundled:") and name not in BUNDLED:
        raise SubjectError(f"no bundled model {name!r}; bundled models are {', '.join(BUNDLED)}")
    looks_local = where.startswith(("/", ".", "~")) or Path(where).exists()
    if looks_local and not (Path(where).expanduser() / "config.json").is_file():
        raise SubjectError(f"no model in {where!r}: expected a folder with config.json and weights; check the path")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(Path(where).expanduser()) if looks_local else where, dtype=dtype or "auto"
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SubjectError(
            f"cannot load model {name!r}: {str(error).strip().splitlines()[0]} "
            "(give a hub id you can reach, a local folder, or 'bundled:polis')"
        ) from error
    loaded: Any = model
    loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return Subject(loaded, tokenizer, name, fingerprint(loaded))


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a model's architecture and weights.

    Every parameter counts with its name, its shape, the exact sum of the bits of all its entries and 64 of the entries
    themselves, both after rounding to bfloat16, so that one checkpoint has one name in float32 and in bfloat16.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        digest.update(json.dumps([name.replace("_original_component.", ""), list(parameter.shape)]).encode())
        if parameter.device.type == "meta":
            continue
        bits = parameter.detach().reshape(-1).to(torch.bfloat16).view(torch.int16)
        digest.update(str(int(bits.sum(dtype=torch.int64))).encode())
        stride = max(1, bits.numel() // 64)
        digest.update(bits[::stride][:64].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Sixteen hexadecimal digits that name a tokenizer's rules and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(subject: Subject, site: Site) -> None:
    """One short forward must pass every tap once, with the width that was read from the weights."""
    seen: dict[int, int] = {}

    def note(layer: int, width: int) -> None:
        seen[layer] = width

    ids = torch.zeros((1, 2), dtype=torch.long, device=subject.device)
    with subject.quiet(), torch.no_grad(), _watch(site, note):
        subject.model(input_ids=ids, use_cache=False)
    for layer, tap in enumerate(site.taps):
        if seen.get(layer) != tap.width:
            found = f"width {seen[layer]}" if layer in seen else "no forward through it"
            raise SiteError(
                f"site {site.name!r}, layer {layer} ({tap.path}): expected width {tap.width}, found {found}"
            )


@contextmanager
def _watch(site: Site, note: Any) -> Iterator[None]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        for layer, tap in enumerate(site.taps):

            def look(x: Tensor, layer: int = layer) -> None:
                note(layer, int(x.shape[-1]))

            stack.enter_context(tap.attached(look))
        yield
