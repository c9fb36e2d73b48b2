"""Rules of layer-wise relevance propagation as changes of a backward: hooks that leave every forward value as it is.

Each rule replaces a value by itself with another gradient. Places are found with TransformerLens's adapters and with the taps
of the sites, checked numerically instead of looked up by family: a norm must be one, an FFN must be act(gate) * up or act(up).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.experts import layer_experts
from ..neurons.sites import Tap, find_tap
from ..neurons.subject import Subject

Attention = Literal["pattern", "softmax"]
CLOSE = {torch.bfloat16: 5e-2, torch.float16: 2e-2}  # relative to the largest value; 1e-3 for wider dtypes
# shares of the gradient that pass query, key and value projections (see `relp`)
PASSED: dict[Attention, tuple[float, float, float]] = {"pattern": (0.0, 0.0, 1.0), "softmax": (0.25, 0.25, 0.5)}


@dataclass(frozen=True, eq=False)
class Ffn:
    """One layer's FFN: outputs of its gate (None where there is none) and up projections, inputs of its output projection."""

    gate: Tap | None
    up: Tap
    out: Tap


@dataclass(frozen=True, eq=False)
class Rules:
    """Where the rules stand in one subject. `attention` holds the layers' query, key and value taps, `passed` their shares."""

    norms: tuple[tuple[str, nn.Module], ...]
    ffns: tuple[Ffn, ...]
    attention: tuple[tuple[Tap, Tap, Tap], ...] = ()
    passed: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @contextmanager
    def attached(self, readings: AbstractContextManager[None]) -> Iterator[None]:
        """While the block runs, the rules are in force. `readings` puts hooks in that read gradients between the rules.

        A neuron is read after what the rules make of it and before what they make of its inputs, so their hooks stand on both
        sides of the readings'. All are gone afterwards, also after an exception.
        """
        with ExitStack() as stack:
            for path, module in self.norms:
                handle = module.register_forward_hook(partial(_norm_rule, path=path), with_kwargs=True)
                stack.callback(handle.remove)
            factors: list[dict[str, Tensor]] = [{} for _ in self.ffns]
            for ffn, seen in zip(self.ffns, factors, strict=True):
                stack.enter_context(ffn.out.attached(partial(_ffn_rule, seen=seen)))
            stack.enter_context(readings)
            for ffn, seen in zip(self.ffns, factors, strict=True):
                for name, tap in (("gate", ffn.gate), ("up", ffn.up)):
                    if tap is not None:
                        stack.enter_context(tap.attached(partial(seen.__setitem__, name)))
            for taps in self.attention:
                for tap, share in zip(taps, self.passed, strict=True):
                    if share != 1:
                        stack.enter_context(tap.attached(partial(passing, share=share)))
            yield


class _StandIn(torch.autograd.Function):
    """The value of the first tensor with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0]


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.share, None


def passing(x: Tensor, *, share: float) -> Tensor:
    """The same values; this share of their gradient passes on. The half rule of a product is `share=0.5` for each factor."""
    if share == 0:
        return x.detach().clone()
    out: Tensor = _Passing.apply(x, share)  # pyright: ignore[reportAssignmentType]
    return out.clone()


def identity_rule(x: Tensor, y: Tensor, *, share: float = 1.0) -> Tensor:
    """What has y's values and is linear in x: x * (y / x), the quotient a constant (0 where x is 0), times `share`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        quotient = torch.where(x == 0, 0.0, y.to(wide) / x.to(wide)) * share
    return (x.to(wide) * quotient).to(y.dtype)


def _ffn_rule(y: Tensor, *, seen: dict[str, Tensor]) -> Tensor | None:
    """y = act(gate) * up with dy/dgate = 0.5 y / gate and dy/dup = 0.5 y / up; y = act(up) with dy/dup = y / up."""
    factors = list(seen.values())
    seen.clear()
    live = [x for x in factors if x.requires_grad]
    if not live or not torch.is_grad_enabled():
        return None
    parts = [identity_rule(x, y.detach(), share=1 / len(factors)) for x in live]
    out: Tensor = _StandIn.apply(y.detach(), sum(parts[1:], parts[0]))  # pyright: ignore[reportAssignmentType]
    return out


def _norm_rule(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any, *, path: str) -> Tensor | None:
    x = args[0] if args else next(iter(kwargs.values()))
    if not torch.is_grad_enabled() or not x.requires_grad:
        return None
    return _StandIn.apply(y.detach(), frozen_norm(module, x, y.detach(), path=path))  # pyright: ignore[reportReturnType]


def frozen_norm(
    module: nn.Module, x: Float[Tensor, "*any width"], y: Float[Tensor, "*any width"], *, path: str
) -> Tensor:
    """A norm's output as a linear map of its input: gain * (x - mean) / sigma, or gain * x / sigma, with sigma a constant.

    Gain, bias and whether the mean is taken off are read by probing the module (Gemma's gain is 1 + weight, Cohere's has two
    dimensions), sigma from x and y. Raises SiteError when the module is no LayerNorm or RMSNorm.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        gain, bias, centred = _probed(module, x)
        raw = (x - x.mean(dim=-1, keepdim=True) if centred else x).to(wide)
        line, rest = gain * raw, y.to(wide) - bias
        square = line.square().sum(dim=-1, keepdim=True)
        inverse = torch.where(square > 0, (line * rest).sum(dim=-1, keepdim=True) / square, 0.0)
        if not _close(line * inverse, rest, x.dtype):
            raise SiteError(
                f"{path} ({type(module).__name__}) is neither a LayerNorm nor an RMSNorm of its input; "
                "relevance has no rule for it, take another method"
            )
    moving = x.to(wide)
    moving = moving - moving.mean(dim=-1, keepdim=True) if centred else moving
    return (moving * (gain * inverse)).to(y.dtype)


def _probed(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Gain and bias of a norm [1, ..., width], and whether it takes the mean off."""
    wide = torch.promote_types(x.dtype, torch.float32)
    width, size = x.shape[-1], 2.0**10 if x.dtype == torch.float16 else 2.0**20  # so large that epsilon does not count
    signs = torch.tensor([1.0, -1.0], dtype=wide, device=x.device).repeat(width // 2 + 1)[:width]
    if width % 2:  # three numbers that sum to zero at the end
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0])
    probe = (signs * size).to(x.dtype).expand(x[:1].shape).contiguous()
    there, back = module.forward(probe).to(wide), module.forward(-probe).to(wide)
    gain, bias = (there - back) / 2 * signs.square().mean().sqrt() / signs, (there + back) / 2
    level = module.forward(torch.full_like(probe, size)).to(wide) - bias
    return gain, bias, bool(level.abs().sum() < (level - gain).abs().sum())


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    if not bool(torch.isfinite(b).all()):  # an example that is not finite is named elsewhere
        return True
    return float((a - b).abs().max()) <= CLOSE.get(dtype, 1e-3) * float(b.abs().max())


def find_rules(subject: Subject, attention: Attention) -> Rules:
    """Where the rules stand in a subject.

    Raises SiteError that names the family where norms, FFN or attention are not found, or do not behave as the rules assume.
    """
    if attention not in get_args(Attention):
        raise ValueError(f"unknown attention {attention!r}; expected pattern or softmax")
    model, adapter, layers = subject.model, subject.adapter, range(subject.num_layers)
    if any(layer_experts(model, adapter, i) for i in layers):
        raise SiteError(
            f"relevance has no rule for the routed experts of this {type(model).__name__}; take another method than relp"
        )
    subject.site("mlp")
    ffns = tuple(
        Ffn(_gate(subject, i), find_tap(model, adapter, "up", i), find_tap(model, adapter, "mlp", i)) for i in layers
    )
    for name in ("q", "k", "v"):
        subject.site(name)
    taps = tuple(
        (find_tap(model, adapter, "q", i), find_tap(model, adapter, "k", i), find_tap(model, adapter, "v", i))
        for i in layers
    )
    _check_ffns(subject, ffns)
    return Rules(tuple(_norms(subject)), ffns, taps, PASSED[attention])


def _gate(subject: Subject, layer: int) -> Tap | None:
    try:
        return find_tap(subject.model, subject.adapter, "gate", layer)
    except SiteError:
        return None


def _norms(subject: Subject) -> Iterator[tuple[str, nn.Module]]:
    """Every norm: those that the adapter names, and other modules called one. The rule checks what each does."""
    from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

    adapter, model = subject.adapter, subject.model
    paths = [name for name, part in adapter.component_mapping.items() if isinstance(part, NormalizationBridge)]
    inner = adapter.component_mapping["blocks"].submodules.items()
    named = [name for name, part in inner if isinstance(part, NormalizationBridge)]
    paths += [f"blocks.{layer}.{name}" for layer in range(subject.num_layers) for name in named]
    found: dict[nn.Module, str] = {}
    for path in paths:
        try:
            found[adapter.get_component(model, path)] = path
        except (AttributeError, ValueError, KeyError, IndexError) as error:
            raise SiteError(
                f"cannot find the norm {path!r} of this {type(model).__name__} ({error}); take another method than relp"
            ) from error
    if not named and not any("norm" in type(m).__name__.lower() for m in model.modules()):
        raise SiteError(f"no norm is found in this {type(model).__name__}; take another method than relp")
    covered = {part for module in found for part in module.modules()}
    for path, module in model.named_modules():
        leaf = not any(True for _ in module.children())
        if leaf and module not in covered and "norm" in type(module).__name__.lower():
            found[module] = path
    yield from ((path, module) for module, path in found.items())


def _check_ffns(subject: Subject, ffns: Sequence[Ffn]) -> None:
    """Every FFN must be elementwise in its factors, and linear in `up` where it has a gate. Raises SiteError.

    The graph is of the FFNs' own products alone: nothing is computed again in the backward, and no weight is held for it.
    """
    inputs: dict[tuple[int, str], Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def leaf(x: Tensor, key: tuple[int, str]) -> Tensor:
        inputs[key] = x.detach().clone().requires_grad_()
        return inputs[key].clone()

    def product(x: Tensor, layer: int) -> Tensor:
        outputs[layer] = x
        return x.detach()

    with ExitStack() as stack:
        for layer, ffn in enumerate(ffns):
            for name, tap in (("gate", ffn.gate), ("up", ffn.up)):
                if tap is not None:
                    stack.enter_context(tap.attached(partial(leaf, key=(layer, name))))
            stack.enter_context(ffn.out.attached(partial(product, layer=layer)))
        with subject.quiet(recompute=False), torch.enable_grad():
            subject.model(input_ids=torch.arange(3, device=subject.device)[None], use_cache=False)
    generator = torch.Generator().manual_seed(0)
    for (layer, name), x in inputs.items():
        y = outputs[layer]
        one, two = ((torch.rand(y.shape, generator=generator) + 0.5).to(y) for _ in range(2))
        sound = y.shape == x.shape
        if sound:
            first, second = (torch.autograd.grad((y * w).sum(), x, retain_graph=True)[0] for w in (one, two))
            sound = _close(first * two, second * one, y.dtype)
            if ffns[layer].gate is not None and name == "up":
                sound = sound and _close(first * x.detach(), one * y.detach(), y.dtype)
        if not sound:
            form = "act(up)" if ffns[layer].gate is None else "act(gate) * up"
            raise SiteError(
                f"the FFN of layer {layer} of this {type(subject.model).__name__} is not {form} ({name} acts otherwise); "
                "relevance has no rule for it, take another method"
            )
