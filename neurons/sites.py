"""Sites: the named places in every layer where neurons live, found on plain Hugging Face modules.

Module paths come from TransformerLens's architecture adapters, so that no table of model names is kept here. Fused
projections (qkv, gate_up) are taken apart with the adapter's own splitting function, run once on a stand-in weight whose
rows carry their own number. Routed experts are found by their structure (see `experts`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import SiteError
from .experts import RoutedEdit, attached_dense, attached_routed, check_all_sparse, expert_sizes, layer_experts

SITES: dict[str, str] = {
    "mlp": "intermediate units of the FFN: the input channels of its output projection",
    "gate": "output of the FFN's gate projection, before the activation function",
    "up": "output of the FFN's up projection (the only input projection where there is no gate)",
    "mlp_out": "output channels of the FFN's output projection",
    "q": "output channels of the query projection",
    "k": "output channels of the key projection",
    "v": "output channels of the value projection",
    "attn_out": "output channels of the attention output projection",
    "attn": "input channels of the attention output projection",
    "expert": "intermediate units of the routed experts (expert * units + unit): the input channels of their output projections",
}
_COMPONENT = {
    "attn_out": "attn.o",
    "mlp": "mlp.out", "gate": "mlp.gate", "up": "mlp.in", "mlp_out": "mlp.out",
    "q": "attn.q", "k": "attn.k", "v": "attn.v", "attn": "attn.o", "expert": "mlp.experts",
}  # fmt: skip
_FFN = ("mlp", "gate", "up", "mlp_out")
_INPUT_SIDE = ("mlp", "attn")
Edit = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, eq=False)
class Tap:
    """Where one layer's neurons are read and replaced.

    `channels` picks this site's neurons out of a fused projection's output, in neuron order; None means all channels.
    `routed` is the number of experts whose units the neurons are (neuron = expert * units + unit), None elsewhere. While
    something is attached to a routed tap, its module runs transformers' `eager` loop over experts, bit for bit, instead
    of the model's own choice (grouped_mm, batched_mm), whose outputs differ in rounding. `gate` reads, at such a tap, what
    the activation function of each unit is given, instead of the unit.
    """

    module: nn.Module
    path: str
    side: Literal["in", "out"]
    width: int
    channels: Tensor | None = None
    routed: int | None = None
    gate: bool = False

    @property
    def units(self) -> int:
        """Neurons of one expert, or all where there are no experts."""
        return self.width // (self.routed or 1)

    @contextmanager
    def attached_routed(self, edit: RoutedEdit) -> Iterator[None]:
        """Pass each expert's units through `edit(x, expert, tokens)` at every forward; None leaves them as they are.

        `x` [routed, unit] holds only the tokens that were routed to `expert`; `tokens` [routed] are their rows in the
        flattened [batch * token] order. An expert that no token chose is not called. Nothing of the size of all
        experts is made. Raises SiteError at a tap without experts.
        """
        if self.routed is None:
            raise SiteError(f"{self.path} has no routed experts; use attached")
        with attached_routed(self.module, edit, gate=self.gate):
            yield

    @contextmanager
    def attached(self, edit: Edit) -> Iterator[None]:
        """Pass the neurons ([..., width]) through `edit` at every forward; what it returns replaces them, None leaves them.

        At a routed tap this makes the whole [token, width], zero where a token is not routed: for small models, and
        where an edit must see all experts at once. What is put where a token is not routed has no effect.
        """
        if self.gate:
            raise SiteError(f"{self.path}: the gates of experts are read by attached_routed alone")
        if self.routed is not None:
            with attached_dense(self.module, edit):
                yield
            return
        handle = self._register(edit)
        try:
            yield
        finally:
            handle.remove()

    def _register(self, edit: Edit) -> torch.utils.hooks.RemovableHandle:
        def through(tensor: Tensor) -> Tensor | None:
            if self.channels is None:
                return edit(tensor)
            index = self.channels.to(tensor.device)
            edited = edit(tensor.index_select(-1, index))
            return None if edited is None else tensor.index_copy(-1, index, edited)

        def after(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
            return through(output)

        if self.side == "out":
            return self.module.register_forward_hook(after)

        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            edited = through(args[0])
            return None if edited is None else (edited, *args[1:])

        return self.module.register_forward_pre_hook(before)


@dataclass(frozen=True, eq=False)
class Site:
    """A site resolved on a subject: one tap per layer, all of one width."""

    name: str
    taps: tuple[Tap, ...]

    @property
    def num_layers(self) -> int:
        return len(self.taps)

    @property
    def width(self) -> int:
        """Neurons per layer."""
        return self.taps[0].width


def architecture(model: nn.Module) -> Any:
    """The TransformerLens adapter of a Hugging Face causal LM. Raises SiteError for a family that it does not know."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

    family = type(model).__name__
    try:
        config = build_bridge_config_from_hf(model.config, family, family, torch.float32)  # pyright: ignore[reportArgumentType]
        return ArchitectureAdapterFactory.select_architecture_adapter(config)
    except Exception as error:
        raise SiteError(
            f"cannot find the layers of a {family}: TransformerLens has no adapter for it ({error}); "
            "load a decoder-only causal LM of a family that it supports"
        ) from error


def resolve_site(model: nn.Module, adapter: Any, name: str, *, num_layers: int) -> Site:
    """Find a site's taps in every layer.

    Raises SiteError when the name is unknown, when the architecture has no such place, or when layers differ in width.
    """
    if name not in SITES:
        raise SiteError(f"unknown site {name!r}; sites are {', '.join(SITES)}")
    if name == "expert":
        check_all_sparse(model, adapter, num_layers)
    taps = tuple(find_tap(model, adapter, name, layer) for layer in range(num_layers))
    widths = {tap.width for tap in taps}
    if len(widths) != 1:
        raise SiteError(f"site {name!r} has layers of different widths {sorted(widths)}; expected one width")
    return Site(name, taps)


def find_tap(model: nn.Module, adapter: Any, name: str, layer: int) -> Tap:
    """Where a site's neurons of one layer pass. Raises SiteError when the architecture has no such place."""
    experts = layer_experts(model, adapter, layer) if name in (*_FFN, "expert") else None
    if experts is not None:
        path, module = experts
        if name != "expert":
            raise SiteError(
                f"site {name!r}: the FFN of layer {layer} of this {type(model).__name__} is a mixture of experts; "
                "use site 'expert'"
            )
        count, units = expert_sizes(module, path)
        return Tap(module, path, "in", count * units, routed=count)
    component = _COMPONENT[name]
    side = "in" if name in _INPUT_SIDE else "out"
    found = None if name == "expert" else _component(model, adapter, f"blocks.{layer}.{component}")
    if found is not None:
        in_width, out_width = projection_widths(found[0], found[1])
        return Tap(found[0], found[1], side, in_width if side == "in" else out_width)
    if name in ("q", "k", "v", "gate", "up"):
        fused = _fused(model, adapter, name, layer)
        if fused is not None:
            return fused
    raise SiteError(
        f"site {name!r} is not in layer {layer} of this {type(model).__name__} (no {component!r}); "
        f"sites it may have: {', '.join(s for s in SITES if s != name)}"
    )


def _component(model: nn.Module, adapter: Any, path: str) -> tuple[nn.Module, str] | None:
    try:
        module = adapter.get_component(model, path)
        where = adapter.translate_transformer_lens_path(path)
    except (AttributeError, ValueError, KeyError, IndexError):
        return None
    module = unwrapped(module)
    weight = getattr(module, "weight", None)
    return (module, where) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The Hugging Face module inside TransformerLens's wrapper, or the module itself."""
    inner = module._modules.get("_original_component")
    return module if inner is None else unwrapped(inner)


def projection_widths(module: nn.Module, path: str) -> tuple[int, int]:
    """(input channels, output channels) of a Linear or a Conv1D (whose weight stands transposed)."""
    weight = module.weight
    if isinstance(module, nn.Linear):  # a quantised weight may be packed
        return module.in_features, module.out_features
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise SiteError(f"{path} is a {type(module).__name__} without a two-dimensional weight")
    rows, columns = weight.shape
    return (rows, columns) if is_transposed(module) else (columns, rows)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is [in, out], as in GPT-2's Conv1D, instead of [out, in]."""
    return type(module).__name__ == "Conv1D"


def _fused(model: nn.Module, adapter: Any, name: str, layer: int) -> Tap | None:
    """A tap inside a fused qkv or gate_up projection."""
    room = "attn" if name in ("q", "k", "v") else "mlp"
    bridge = adapter.component_mapping["blocks"].submodules.get(room)
    try:
        owner = adapter.get_component(model, f"blocks.{layer}.{room}")
        owner_path = adapter.translate_transformer_lens_path(f"blocks.{layer}.{room}")
    except (AttributeError, ValueError, KeyError, IndexError):
        return None
    if owner is not unwrapped(owner):  # a bridge runs split copies in the fused projection's place
        try:
            copied = unwrapped(getattr(owner, {"up": "in"}.get(name, name)))
        except AttributeError:  # as for the gate of an FFN without one
            return None
        return Tap(copied, f"{owner_path}.{name}", "out", projection_widths(copied, owner_path)[1])
    if room == "attn":
        split = getattr(bridge, "split_qkv_matrix", None)
        fused = _component(model, adapter, f"blocks.{layer}.attn.qkv")
        order = ("q", "k", "v")
    else:
        split = getattr(bridge, "split_gate_up_matrix", None)
        inner = getattr(owner, "gate_up_proj", None)  # the name that the adapter's own splitting reads
        fused = (inner, f"{owner_path}.gate_up_proj") if isinstance(inner, nn.Module) else None
        order = ("gate", "up")
    if split is None or fused is None:
        return None
    module, path = fused
    channels = _split_channels(owner, module, split)[order.index(name)]
    return Tap(module, path, "out", len(channels), channels)


def _split_channels(owner: nn.Module, fused: nn.Module, split: Callable[[nn.Module], Any]) -> list[Tensor]:
    """Output channels of each part: split a stand-in whose weight rows are numbered, then read the numbers."""
    in_width, out_width = projection_widths(fused, "fused projection")
    numbers = torch.arange(out_width, dtype=torch.float32)
    stand_in = copy.copy(fused)
    stand_in._parameters = dict(fused._parameters)
    weight = (
        numbers.expand(in_width, out_width) if is_transposed(fused) else numbers[:, None].expand(out_width, in_width)
    )
    stand_in._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    if stand_in._parameters.get("bias") is not None:
        stand_in._parameters["bias"] = nn.Parameter(numbers, requires_grad=False)
    twin = copy.copy(owner)
    twin._modules = {key: stand_in if child is fused else child for key, child in owner._modules.items()}
    parts = []
    try:
        halves = split(twin)
    except (RuntimeError, ValueError) as error:
        raise SiteError(f"cannot take this {type(fused).__name__} of {out_width} outputs apart: {error}") from error
    for part in halves:
        column = part.weight[:, 0] if not is_transposed(part) else part.weight[0]
        parts.append(column.round().long().cpu())
    if sorted(torch.cat(parts).tolist()) != list(range(out_width)):
        raise SiteError(
            f"the split of {type(fused).__name__} does not cover its {out_width} output channels exactly once"
        )
    return parts
