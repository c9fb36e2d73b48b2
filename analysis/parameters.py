"""Parameters: the rows and columns of a subject's weights that belong to a neuron."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..neurons.errors import SiteError
from ..neurons.experts import expert_weights, input_channels
from ..neurons.sites import Tap, is_transposed
from ..neurons.subject import Subject

FFN = ("gate", "up", "mlp")


def neuron_parameters(subject: Subject, site: str, layer: int) -> Float[Tensor, "neuron parameter"]:
    """What a neuron is made of: its weights, one row per neuron, as float32 on the subject's device.

    For `mlp`, `gate` and `up`, whose neuron i is the same unit of the FFN: row i of the gate projection (where there is
    one), row i of the up projection, column i of the output projection, in this order. For `mlp_out`, `q`, `k` and `v`:
    the row of the projection that computes the neuron. For `attn`: the column of the output projection that reads it.
    For `expert`: as for `mlp`, from the neuron's own expert. Biases are left out.

    Raises SiteError when the layer is outside the site.
    """
    sites = [subject.site(name) for name in _parts(subject, site)]
    if not 0 <= layer < sites[0].num_layers:
        raise SiteError(f"layer {layer} is outside 0 to {sites[0].num_layers - 1} of site {site!r}")
    return torch.cat([_weights(part.taps[layer]) for part in sites], dim=1)


def _parts(subject: Subject, site: str) -> tuple[str, ...]:
    """The sites whose projections hold a neuron's weights."""
    if site not in FFN:
        return (site,)
    return FFN if _has_gate(subject) else FFN[1:]


def _has_gate(subject: Subject) -> bool:
    try:
        subject.site("gate")
    except SiteError:
        return False
    return True


def _weights(tap: Tap) -> Float[Tensor, "neuron weight"]:
    """Rows of [out, in] for neurons that the module puts out, columns for those that it takes in."""
    if tap.routed is not None:
        into, out = expert_weights(tap.module)
        parts = [into[:, channels.to(into.device)] for channels in input_channels(tap.module)]
        return torch.cat([*parts, out], dim=-1).detach().flatten(0, 1).float()
    weight = tap.module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().T if is_transposed(tap.module) else weight.detach()
    rows = weight if tap.side == "out" else weight.T
    if tap.channels is not None:
        rows = rows.index_select(0, tap.channels.to(rows.device))
    return rows.float()
