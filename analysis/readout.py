"""Readout: what a direction of the residual stream says, through the subject's own final norm and unembedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..neurons.errors import SiteError
from ..neurons.sites import unwrapped
from ..neurons.subject import Subject
from .parameters import output_direction


def vocabulary_logits(
    subject: Subject, site: str, layers: Sequence[int], indices: Sequence[int]
) -> Float[Tensor, "neuron vocabulary"] | None:
    """The logits that neurons write directly where their activation is positive; None for sites that write nothing.

    head(norm(w)) - head(norm(0)) less its mean over the vocabulary, w what the neuron adds to the residual stream, norm
    and head the subject's own modules: the logits if the stream held nothing else. A final norm maps w to gain * (w -
    mean(w)) / size(w), or without the mean, so that its gain is folded in exactly, whatever its form; w is given at a
    size at which the norm's epsilon does not count. Numbers of neurons compare with each other: they do not depend on
    the length of w. A negative activation turns the signs. What later layers make of w is not in it (logit lens,
    nostalgebraist 2020; Geva et al. 2022, arXiv 2203.14680), nor are norms that stand behind the projection (Gemma 2).

    Raises SiteError when the subject has no final norm or no unembedding that can be found.
    """
    try:
        directions = torch.stack(
            [output_direction(subject, site, layer, index) for layer, index in zip(layers, indices, strict=True)]
        )
    except SiteError:
        if site in ("q", "k", "v"):
            return None
        raise
    norm, head = _final(subject)
    dtype = subject.dtype
    size = 2.0**6 if dtype == torch.float16 else 2.0**12
    length = directions.square().mean(dim=1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    stream = torch.cat([directions / length * size, torch.zeros_like(directions[:1])]).to(subject.device, dtype)
    with subject.scoring(), torch.no_grad():
        logits = head(norm(stream[None]))[0].float().cpu()
    written = logits[:-1] - logits[-1]
    return written - written.mean(dim=1, keepdim=True)


def _final(subject: Subject) -> tuple[nn.Module, nn.Module]:
    """The norm before the unembedding, and the unembedding."""
    head = getattr(subject.model, "get_output_embeddings", lambda: None)()
    try:
        norm = unwrapped(subject.adapter.get_component(subject.model, "ln_final"))
    except (AttributeError, ValueError, KeyError, IndexError):
        norm = None
    if norm is None or head is None:
        lacks = "final norm" if norm is None else "unembedding"
        raise SiteError(
            f"no {lacks} was found on this {type(subject.model).__name__}, so what its neurons write cannot be read"
        )
    return norm, head
