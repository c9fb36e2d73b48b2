"""Parameters: the rows and columns of a subject's weights that belong to a neuron."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.experts import expert_weights, input_channels
from ..neurons.offload import kept_elsewhere
from ..neurons.sites import Tap, find_tap, is_transposed
from ..neurons.subject import Subject

FFN = {"gate": "gate", "up": "up", "down": "mlp"}  # matrix of an FFN neuron: the site whose projection it stands in
WRITES = {"mlp": "mlp", "gate": "mlp", "up": "mlp", "attn": "attn", "expert": "expert"}
_RESIDUAL = ("mlp_out", "attn_out")


def neuron_parameters(
    subject: Subject, site: str, layer: int, *, matrices: Sequence[str] | None = None
) -> Float[Tensor, "neuron parameter"]:
    """What a neuron is made of: its weights, one row per neuron, as float32 on the subject's device.

    For `mlp`, `gate` and `up`, whose neuron i is the same unit of the FFN: row i of the gate projection (where there is
    one), row i of the up projection, column i of the output projection, in this order. For `mlp_out`, `q`, `k` and `v`:
    the row of the projection that computes the neuron. For `attn`: the column of the output projection that reads it.
    For `expert`: as for `mlp`, from the neuron's own expert. Biases are left out. `matrices` takes some of them, in the
    order given: `gate`, `up` and `down` (the output projection) of an FFN's or an expert's neurons. Weights of an
    offloaded subject are read from where they are kept, and held no longer than the result.

    Raises SiteError when the layer is outside the site, or when a neuron has no such matrix.
    """
    own = matrix_names(subject, site)
    chosen = own if matrices is None else tuple(matrices)
    unknown = [name for name in chosen if name not in own]
    if unknown or not chosen:
        what = f"no matrix {unknown[0]!r}" if unknown else "no matrix without a name"
        raise SiteError(f"a neuron of site {site!r} has {what}; name some of {', '.join(own)}")
    depth = subject.site(site).num_layers
    if not 0 <= layer < depth:
        raise SiteError(f"layer {layer} is outside 0 to {depth - 1} of site {site!r}")
    if site == "expert":
        parts = _of_experts(subject.site(site).taps[layer])
        return torch.cat([parts[name] for name in chosen], dim=1)
    return torch.cat([_weights(subject.site(FFN[n] if site in _FFN_SITES else n).taps[layer]) for n in chosen], dim=1)


def matrix_names(subject: Subject, site: str) -> tuple[str, ...]:
    """The matrices that hold a neuron's weights: gate, up and down, or the one projection, named after its site."""
    if site == "expert":
        gated = len(input_channels(subject.site(site).taps[0].module)) == 2
    elif site in _FFN_SITES:
        gated = _has_gate(subject)
    else:
        return (site,)
    return ("gate", "up", "down") if gated else ("up", "down")


def output_direction(subject: Subject, site: str, layer: int, index: int) -> Float[Tensor, " model"]:
    """What a neuron adds to the residual stream for each unit of its activation, as float32.

    The column of the output projection that reads it; for `mlp_out` and `attn_out`, whose neurons are channels of the
    residual stream, the unit vector of that channel. Norms that stand behind the projection are not applied.

    Raises SiteError for queries, keys and values, which write nothing there.
    """
    width = subject.site(site).width
    if not 0 <= index < width:
        raise SiteError(f"neuron {index} is outside 0 to {width - 1} of site {site!r}")
    if site in _RESIDUAL:
        return nn.functional.one_hot(torch.tensor(index), width).float().to(subject.device)
    if site not in WRITES:
        raise SiteError(f"neurons of site {site!r} do not write to the residual stream; {', '.join(WRITES)} do")
    tap = find_tap(subject.model, subject.adapter, WRITES[site], layer)
    return _of_experts(tap)["down"][index] if site == "expert" else _weights(tap)[index]


_FFN_SITES = tuple(FFN.values())


def _has_gate(subject: Subject) -> bool:
    try:
        subject.site("gate")
    except SiteError:
        return False
    return True


def _weights(tap: Tap) -> Float[Tensor, "neuron weight"]:
    """Rows of [out, in] for neurons that the module puts out, columns for those that it takes in."""
    weight = _in_memory(tap.module).weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().T if is_transposed(tap.module) else weight.detach()
    rows = weight if tap.side == "out" else weight.T
    if tap.channels is not None:
        rows = rows.index_select(0, tap.channels.to(rows.device))
    return rows.float()


def _of_experts(tap: Tap) -> dict[str, Float[Tensor, "neuron weight"]]:
    """The matrices of the units of routed experts by name."""
    module = _in_memory(tap.module)
    into, out = expert_weights(module)
    channels = input_channels(module)
    names = ("gate", "up") if len(channels) == 2 else ("up",)
    parts = {name: into[:, places.to(into.device)] for name, places in zip(names, channels, strict=True)}
    return {name: part.detach().flatten(0, 1).float() for name, part in {**parts, "down": out}.items()}


def _in_memory(module: nn.Module) -> nn.Module:
    """The module, or where its weights are offloaded a stand-in of the same class that holds them."""
    if not any(p is not None and p.is_meta for p in module._parameters.values()):
        return module
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    for name, parameter in module._parameters.items():
        values = None if parameter is None or not parameter.is_meta else kept_elsewhere(module, name)
        if values is not None:
            twin._parameters[name] = nn.Parameter(values, requires_grad=False)
    return twin
