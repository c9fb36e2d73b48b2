"""Routed experts: where a mixture of experts computes its units, and how they are read and replaced there.

transformers keeps the experts of a layer in one module with three-dimensional weights and lets its forward be chosen by
name (`config._experts_implementation`). While an edit is attached, that module's forward is the loop below: the same
operations, on the same rows in the same order, as the model's own `eager` one. Nothing is rewritten: a pair of hooks
chooses the loop when the module is entered and puts the config's choice back when it is left, also after an exception.

Shared experts (Qwen2-MoE, DeepSeek), which every token passes, are not among the neurons of site `expert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .errors import SiteError

RoutedEdit = Callable[[Tensor, int, Tensor], Tensor | None]
LOOP = "neuropolis_routed"


@dataclass(frozen=True, eq=False)
class Route:
    """The tokens that one expert takes: rows of the flattened [batch * token] hidden states, and their place in the top k."""

    expert: int
    tokens: Int[Tensor, " routed"]
    slots: Int[Tensor, " routed"]


Stage = Callable[[Sequence[Route], list[Tensor], int], list[Tensor]]


@dataclass(frozen=True, eq=False)
class _Station:
    """The edits attached to one experts module, its hooks, and the implementation put aside while it runs.

    `stages` are on the units, `projected` on what the input projections give.
    """

    stages: list[Stage] = field(default_factory=list)
    projected: list[Stage] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    aside: list[str | None] = field(default_factory=list)


_STATIONS: dict[nn.Module, _Station] = {}


def layer_experts(model: nn.Module, adapter: Any, layer: int) -> tuple[str, nn.Module] | None:
    """The module of a layer's routed experts and its path, or None where the layer has none.

    `adapter` is TransformerLens's for the model; its wrappers are looked through, since they pass the attributes of
    what they wrap. Raises SiteError when a layer has several.
    """
    inner = "_original_component"
    try:
        block = adapter.get_component(model, f"blocks.{layer}")
        where = adapter.translate_transformer_lens_path(f"blocks.{layer}")
    except (AttributeError, ValueError, KeyError, IndexError):
        return None
    found = [
        (f"{where}.{path}".replace(f".{inner}", ""), module)
        for path, module in block.named_modules()
        if inner not in module._modules and is_experts(module)
    ]
    if len(found) > 1:
        raise SiteError(f"layer {layer} has several modules of experts: {', '.join(path for path, _ in found)}")
    return found[0] if found else None


def check_all_sparse(model: nn.Module, adapter: Any, num_layers: int) -> None:
    """Raise SiteError when some layers have routed experts and others have not.

    A set or a score has every neuron in every layer; the neurons of experts that a dense layer lacks would be made up.
    """
    dense = [layer for layer in range(num_layers) if layer_experts(model, adapter, layer) is None]
    if 0 < len(dense) < num_layers:
        raise SiteError(
            f"site 'expert': layers {', '.join(map(str, dense))} of this {type(model).__name__} have no routed experts; "
            "expected experts in every layer, since a site has the same neurons in all of them"
        )


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds fused experts ([expert, ., .] weights) whose forward transformers lets be chosen by name."""
    down = getattr(module, "down_proj", None)
    chosen = all(hasattr(module, name) for name in ("config", "num_experts", "is_transposed", "has_bias", "has_gate"))
    return chosen and isinstance(down, Tensor) and down.dim() == 3


def expert_sizes(module: nn.Module, path: str) -> tuple[int, int]:
    """(experts, units of one). Raises SiteError for quantised weights and for experts that are spread over processes."""
    down = module.down_proj
    assert isinstance(down, Tensor)
    if down.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise SiteError(f"{path} is quantised ({down.dtype}); load the model in a floating-point dtype")
    if getattr(module, "_is_expert_parallel", False):
        raise SiteError(f"{path} holds a part of the experts (expert parallelism); load the model without it")
    return down.shape[0], down.shape[1 if module.is_transposed else 2]


def input_channels(module: nn.Module) -> tuple[Int[Tensor, " unit"], ...]:
    """Output channels of the fused input projection that make each unit: (gate, up), or (up,) where there is no gate."""
    down: Any = module.down_proj
    units = torch.arange(down.shape[1 if module.is_transposed else 2])
    if not module.has_gate:
        return (units,)
    return (units, units + len(units)) if module.is_concatenated else (2 * units, 2 * units + 1)


def expert_weights(module: nn.Module) -> tuple[Float[Tensor, "expert out model"], Float[Tensor, "expert unit model"]]:
    """The weights into and out of the units, as views: rows of the input projection, columns of the output projection."""
    into: Any = module.gate_up_proj if module.has_gate else module.up_proj
    out: Any = module.down_proj
    return (into.transpose(1, 2), out) if module.is_transposed else (into, out.transpose(1, 2))


def by_expert(index: Int[Tensor, " neuron"], *, units: int) -> dict[int, Int[Tensor, " unit"]]:
    """Flat neuron indices (expert * units + unit) as {expert: its units}, both ascending where the indices are."""
    experts, unit = index // units, index % units
    return {int(expert): unit[experts == expert] for expert in experts.unique()}


@contextmanager
def attached_routed(module: nn.Module, edit: RoutedEdit, *, gate: bool = False) -> Iterator[None]:
    """Pass each expert's units ([routed, unit], its number, its token rows) through `edit`; None leaves them.

    With `gate`, what the activation function is given in their place.
    """

    def stage(routes: Sequence[Route], units: list[Tensor], _num_tokens: int) -> list[Tensor]:
        edited = [edit(x, route.expert, route.tokens) for route, x in zip(routes, units, strict=True)]
        return [x if new is None else new for x, new in zip(units, edited, strict=True)]

    def before(routes: Sequence[Route], projected: list[Tensor], num_tokens: int) -> list[Tensor]:
        channels = input_channels(module)[0].to(projected[0].device) if projected else torch.empty(0)
        gates = stage(routes, [x[:, channels] for x in projected], num_tokens)
        return [x.index_copy(-1, channels, new) for x, new in zip(projected, gates, strict=True)]

    with _attached(module, before if gate else stage, projected=gate):
        yield


@contextmanager
def attached_dense(module: nn.Module, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Pass all units at once ([token, expert * unit], zero where a token is not routed) through `edit`.

    What it puts where a token is not routed has no effect.
    """

    def stage(routes: Sequence[Route], units: list[Tensor], num_tokens: int) -> list[Tensor]:
        down: Any = module.down_proj
        if not routes:
            return units
        tokens = torch.cat([route.tokens for route in routes])
        experts = torch.cat([torch.full_like(route.tokens, route.expert) for route in routes])
        shape = (num_tokens, len(down), units[0].shape[-1])
        dense = units[0].new_zeros(shape).index_put((tokens, experts), torch.cat(units))
        edited = edit(dense.flatten(1))
        if edited is None:
            return units
        return list(edited.reshape(shape)[tokens, experts].split([len(x) for x in units]))

    with _attached(module, stage):
        yield


@contextmanager
def implementation(module: nn.Module, name: str) -> Iterator[None]:
    """While the block runs, the config of an experts module names this implementation."""
    config: Any = module.config
    kept = config._experts_implementation
    try:
        config._experts_implementation = {"": name}  # the dict form leaves the configs inside this one alone
        yield
    finally:
        config._experts_implementation = {"": kept}


@contextmanager
def eager_in_float64(model: nn.Module) -> Iterator[None]:
    """While the block runs, routed experts in float64 compute one by one: torch's grouped product has no float64."""
    with ExitStack() as stack:
        for module in model.modules():
            if is_experts(module) and module.down_proj.dtype == torch.float64:
                stack.enter_context(implementation(module, "eager"))
        yield


@contextmanager
def _attached(module: nn.Module, stage: Stage, *, projected: bool = False) -> Iterator[None]:
    station = _STATIONS.get(module) or _opened(module)
    stages = station.projected if projected else station.stages
    stages.append(stage)
    try:
        yield
    finally:
        stages.remove(stage)
        if not station.stages and not station.projected:
            for handle in station.handles:
                handle.remove()
            _leave(module, station)  # an interrupt passes the hooks by
            del _STATIONS[module]


def _opened(module: nn.Module) -> _Station:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS[LOOP] = _routed_forward
    station = _STATIONS[module] = _Station()
    config: Any = module.config

    def enter(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        station.aside.append(config._experts_implementation)
        config._experts_implementation = {"": LOOP}

    def leave(_module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        _leave(module, station)

    station.handles.append(module.register_forward_pre_hook(enter))
    station.handles.append(module.register_forward_hook(leave, always_call=True))
    return station


def _leave(module: nn.Module, station: _Station) -> None:
    config: Any = module.config
    while station.aside:
        config._experts_implementation = {"": station.aside.pop()}


def _routed_forward(
    self: Any,
    hidden_states: Float[Tensor, "token model"],
    top_k_index: Int[Tensor, "token slot"],
    top_k_weights: Float[Tensor, "token slot"],
) -> Float[Tensor, "token model"]:
    """transformers' eager loop over experts, with the attached edits between the activation and the down projection."""
    routes = _routes(top_k_index, self.num_experts)
    name = "gate_up_proj" if self.has_gate else "up_proj"
    activated = self._apply_gate if self.has_gate else self.act_fn
    # one after another, so that all experts' projections are in memory only where something reads them
    projected: Iterable[Tensor] = (_projected(self, name, hidden_states[r.tokens], r.expert) for r in routes)
    for stage in _STATIONS[self].projected:
        projected = stage(routes, list(projected), len(hidden_states))
    units = [activated(x) for x in projected]
    for stage in _STATIONS[self].stages:
        units = stage(routes, units, len(hidden_states))
    total = torch.zeros_like(hidden_states)
    for route, x in zip(routes, units, strict=True):
        out = _projected(self, "down_proj", x, route.expert)
        if getattr(self, "has_post_expert_norm", False):
            out = self.post_expert_norm(out)
        out = out * top_k_weights[route.tokens, route.slots, None]
        total.index_add_(0, route.tokens, out.to(total.dtype))
    return total


def _routes(top_k_index: Int[Tensor, "token slot"], num_experts: int) -> list[Route]:
    """The experts that were chosen, ascending; tokens by their place in the top k, then by row, as the eager loop has them."""
    num_tokens = len(top_k_index)
    experts, order = top_k_index.t().flatten().sort(stable=True)
    counts = torch.bincount(experts, minlength=num_experts).tolist()
    parts = order.split(counts)
    return [
        Route(expert, part % num_tokens, part // num_tokens)
        for expert, part in enumerate(parts[:num_experts])
        if len(part)
    ]


def _projected(module: Any, name: str, x: Tensor, expert: int) -> Tensor:
    weight = getattr(module, name)[expert]
    out = x @ weight if module.is_transposed else nn.functional.linear(x, weight)
    return out + getattr(module, f"{name}_bias")[expert] if module.has_bias else out
