"""Routing: gates that weigh groups of FFN neurons token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from ..neurons.pickling import by_fields
from ..neurons.sets import NeuronSet
from ..neurons.sites import Tap, projection_widths
from ..neurons.subject import Subject
from .errors import DeltaError, TuneError


@dataclass(frozen=True, eq=False)
class Gates:
    """One gate for every role in every layer that has neurons with a role.

    The router of LANDeRMT (Conditional Awareness-based Routing, arXiv 2409.19523, Eq 7) is not public; this one is ours.
    With x the state that enters the FFN at a token (what its input projections read), role r has in each layer

        g_r(x) = 2 sigmoid(w_r . x + b_r),

    and the intermediate activation of every neuron of the role is multiplied by g_r(x). So the FFN is the sum of its
    plain part (neurons without a role), of g_general(x) times the general neurons' part and of g_pair(x) times each
    pair's part. No gate needs to be told the language pair: the token's state decides. A neuron with several roles is
    multiplied by the mean of their gates. At w = 0, b = 0 every gate is exactly 1, and multiplying by 1 changes no bit.

    `members` holds the set of each role; `weight` [role, model] and `bias` [role] are float32, by layer.
    """

    members: Mapping[str, NeuronSet]
    weight: Mapping[int, Float[Tensor, "role model"]]
    bias: Mapping[int, Float[Tensor, " role"]]

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("members", "weight", "bias"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.members)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.weight)

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in (*self.weight.values(), *self.bias.values()))

    def __repr__(self) -> str:
        return f"Gates(roles {', '.join(self.roles)}, layers {', '.join(map(str, self.layers))})"

    def tensors(self) -> dict[str, Tensor]:
        """Weights and biases by name: `gates.<layer>.weight`, `gates.<layer>.bias`."""
        pairs = [(layer, self.weight[layer], self.bias[layer]) for layer in self.layers]
        return {f"gates.{layer}.{name}": t for layer, w, b in pairs for name, t in (("weight", w), ("bias", b))}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Gates:
        """The same gates with other weights and biases, given by name as `tensors` gives them."""
        found = {
            name: {layer: tensors[f"gates.{layer}.{name}"] for layer in self.layers} for name in ("weight", "bias")
        }
        return replace(self, **found)

    def check(self, subject: Subject) -> None:
        """Raise SetError unless the sets are of that subject, DeltaError unless the weights fit its FFN."""
        for chosen in self.members.values():
            chosen.check(subject)
        for layer in self.layers:
            expected = [len(self.roles), _state_tap(subject, layer).width]
            found = list(self.weight[layer].shape)
            if found != expected or list(self.bias[layer].shape) != expected[:1]:
                raise DeltaError(
                    f"the gates of layer {layer} have weights {found} and biases {list(self.bias[layer].shape)}, "
                    f"expected {expected} and {expected[:1]}; load the model that they were trained on"
                )


def open_gates(subject: Subject, members: Mapping[str, NeuronSet]) -> Gates:
    """Gates that are exactly 1 for every token, for sets of FFN neurons by role; training starts from them.

    Raises TuneError when there is no role, or a set is empty or not of site `mlp`; SetError for a set of another subject.
    """
    if not members:
        raise TuneError("gates need at least one role with its neurons; expected {'general': set, 'en-es': set, ...}")
    for role, chosen in members.items():
        chosen.check(subject)
        if chosen.site != "mlp":
            raise TuneError(f"role {role!r} has neurons of site {chosen.site!r}; gates weigh neurons of site 'mlp'")
        if not chosen:
            raise TuneError(f"role {role!r} has no neuron; leave the role out")
    used = torch.stack([chosen.per_layer for chosen in members.values()]).sum(dim=0)
    layers = [int(layer) for layer in used.nonzero()]
    widths = {layer: _state_tap(subject, layer).width for layer in layers}
    return Gates(
        members,
        {layer: torch.zeros(len(members), widths[layer]) for layer in layers},
        {layer: torch.zeros(len(members)) for layer in layers},
    )


@contextmanager
def routed(subject: Subject, gates: Gates) -> Iterator[None]:
    """While the block runs, the gates weigh the activations, in forward passes and in `generate`.

    The hooks are gone afterwards, also after an exception. Raises as `Gates.check` does.
    """
    gates.check(subject)
    taps = subject.site("mlp").taps
    with ExitStack() as stack:
        for layer in gates.layers:
            member = torch.stack([chosen.mask[layer] for chosen in gates.members.values()])
            router = _Router(gates.weight[layer], gates.bias[layer], member)
            stack.enter_context(_state_tap(subject, layer).attached(router.read))
            stack.enter_context(taps[layer].attached(router.weigh))
        yield


class _Router:
    """One layer's gates: they read the state at the FFN's entrance and weigh what its output projection is given."""

    def __init__(self, weight: Tensor, bias: Tensor, member: Bool[Tensor, "role neuron"]) -> None:
        self.weight, self.bias = weight, bias
        self.member = member.float()
        self.count = self.member.sum(dim=0)
        self.gate: Float[Tensor, "*token role"] | None = None

    def read(self, x: Float[Tensor, "*token model"]) -> None:
        self.gate = 2 * linear(x.float(), self.weight.to(x.device), self.bias.to(x.device)).sigmoid()

    def weigh(self, activation: Float[Tensor, "*token neuron"]) -> Tensor:
        assert self.gate is not None, "the FFN's output projection ran before its input projection"
        gate, self.gate = self.gate, None
        member, count = self.member.to(gate), self.count.to(gate)
        # a neuron without a role has the scale (0 + 1) / 1; with open gates, k roles give k / k: both exactly 1
        scale = (gate @ member + (count == 0)) / count.clamp(min=1)
        return activation * scale.to(activation.dtype)


def _state_tap(subject: Subject, layer: int) -> Tap:
    """Where the state enters a layer's FFN: the input of the projection that site `up` is the output of."""
    tap = subject.site("up").taps[layer]
    return replace(tap, side="in", width=projection_widths(tap.module, tap.path)[0], channels=None)


def trainable_gates(gates: Gates, *, device: torch.device) -> Gates:
    """The same gates on a device, with parameters that an optimizer can hold."""
    tensors = gates.tensors().items()
    return gates.with_tensors({name: nn.Parameter(tensor.to(device, copy=True)) for name, tensor in tensors})
