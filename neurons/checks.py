"""What a resolved site must stand before it is believed: short forwards through its taps."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import SiteError
from .experts import implementation
from .sites import Edit, Site, Tap, find_tap

if TYPE_CHECKING:
    from .subject import Subject


def check_site(subject: Subject, site: Site) -> None:
    """One short forward must pass every tap, with the width that was read from the weights; a fused split must behave.

    At routed experts some expert must be passed in every layer, and the model must compute what it does by itself.

    Raises SiteError that names the site, the layer and the module.
    """
    if site.taps[0].routed is not None:
        _check_routed(subject, site)
        return
    seen: dict[int, int] = {}

    def note(x: Tensor, layer: int) -> None:
        seen[layer] = int(x.shape[-1])

    with ExitStack() as stack:
        for layer, tap in enumerate(site.taps):
            stack.enter_context(tap.attached(lambda x, layer=layer: note(x, layer)))
        _forward(subject)
    for layer, tap in enumerate(site.taps):
        if seen.get(layer) != tap.width:
            found = f"width {seen[layer]}" if layer in seen else "no forward through it"
            raise SiteError(
                f"site {site.name!r}, layer {layer} ({tap.path}): expected width {tap.width}, found {found}"
            )
    if site.taps[0].channels is not None:
        _check_split(subject, site)


def _check_routed(subject: Subject, site: Site) -> None:
    seen: dict[int, int] = {}

    def note(x: Tensor, layer: int) -> None:
        seen[layer] = int(x.shape[-1])

    with ExitStack() as stack:
        for layer, tap in enumerate(site.taps):
            stack.enter_context(tap.attached_routed(lambda x, _expert, _tokens, layer=layer: note(x, layer)))
        looped = _forward(subject)
    for layer, tap in enumerate(site.taps):
        if seen.get(layer) != tap.units:
            found = f"{seen[layer]}" if layer in seen else "no forward through any"
            raise SiteError(
                f"site {site.name!r}, layer {layer} ({tap.path}): expected experts of {tap.units} units, found {found}"
            )
    with ExitStack() as stack:
        for tap in site.taps:
            stack.enter_context(implementation(tap.module, "eager"))
        plain = _forward(subject)
    if not _close(looped, plain):
        raise SiteError(
            f"site {site.name!r}: the experts of {site.taps[0].path} do more than project, gate and project back, "
            "so their units cannot be read here"
        )


def _check_split(subject: Subject, site: Site) -> None:
    """The parts of a fused projection must do what they are called after.

    Attention is linear in its values and a gated FFN in `up`: halving those halves what the output projection reads.
    A token's query does not reach another token.
    """
    linear, reader = ("v", "attn") if site.name in ("q", "k", "v") else ("up", "mlp")
    target = find_tap(subject.model, subject.adapter, reader, 0)
    plain = _read(subject, target)
    halved = _read(subject, target, find_tap(subject.model, subject.adapter, linear, 0), lambda x: x / 2)
    sound = _close(halved, plain / 2)
    if linear == "v":
        queries = find_tap(subject.model, subject.adapter, "q", 0)
        turned = _read(
            subject, target, queries, lambda x: torch.cat([x[..., :1, :], -x[..., 1:2, :], x[..., 2:, :]], -2)
        )
        sound = sound and _close(turned[2:], plain[2:])
    if not sound:
        raise SiteError(
            f"site {site.name!r}: the parts of {site.taps[0].path} do not act as query, key and value or gate and up; "
            "TransformerLens's split does not fit this model, so only sites outside that projection can be used"
        )


def _forward(subject: Subject) -> Float[Tensor, "1 token vocabulary"]:
    """The logits of three different tokens."""
    ids = torch.arange(3, device=subject.device)[None]
    with subject.quiet(), torch.no_grad():
        return subject.model(input_ids=ids, use_cache=False).logits


def _read(
    subject: Subject, target: Tap, edited: Tap | None = None, edit: Edit = lambda x: None
) -> Float[Tensor, "token neuron"]:
    """What passes a tap, while another one is edited."""
    read: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(target.attached(lambda x: read.append(x.detach().reshape(-1, x.shape[-1]).clone())))
        if edited is not None:
            stack.enter_context(edited.attached(edit))
        _forward(subject)
    return read[0]


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()), equal_nan=True)
