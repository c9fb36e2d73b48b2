"""Readout: what a direction of the residual stream says, through the subject's own final norm and unembedding, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def written_tokens(
    subject: Subject, site: str, layers: Sequence[int], indices: Sequence[int], tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[int, str]]:
    """Ids and logits [neuron, token] of the tokens at both ends of `vocabulary_logits`, and the text of every id.

    -1 and NaN, and no texts, for sites that write nothing.
    """
    logits = vocabulary_logits(subject, site, layers, indices)
    if logits is None:
        nothing = torch.full((len(layers), tokens), -1)
        empty = torch.full(nothing.shape, torch.nan)
        return nothing, empty, nothing.clone(), empty.clone(), {}
    count = min(tokens, logits.shape[1])
    up, down = logits.topk(count, dim=1), (-logits).topk(count, dim=1)
    ids = torch.cat([up.indices, down.indices]).unique().tolist()
    return up.indices, up.values, down.indices, -down.values, {i: token_text(subject.tokenizer, i) for i in ids}


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text; where it is a part of a letter alone, its bytes, as <0xE6>, or else its own name and its id."""
    text = str(tokenizer.decode([token]))
    if _UNKNOWN not in text:
        return text
    name = str(tokenizer.convert_ids_to_tokens(token))
    if not name.startswith("<0x") and all(letter in _BYTES for letter in name):
        name = "".join(chr(b) if 32 <= b < 127 else f"<0x{b:02X}>" for b in (_BYTES[letter] for letter in name))
    return name if _UNKNOWN not in name and name else f"token {token}"


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers name bytes (GPT-2's table): printable ones are their own."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


_UNKNOWN = "\ufffd"
_BYTES = _byte_letters()


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
