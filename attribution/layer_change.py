"""How much each layer changes what passes through it, by language pair: which layers LANDeRMT looks for neurons in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..corpora.examples import Corpus
from ..neurons.errors import SetError
from ..neurons.pickling import by_fields
from ..neurons.sites import unwrapped
from ..neurons.subject import Subject
from .encoding import Batch, batches, encode_corpus, forward, pad_id

State = Literal["input", "output"]
Tokens = Literal["mean", "last"]
Distance = Literal["l2", "l1", "means"]


@dataclass(frozen=True, eq=False)
class LayerChange:
    """The change D of every layer, and the layers where it is largest.

    `change` [group, layer] is NaN where a layer has no value. `layers` are those chosen, in ascending order.
    """

    subject: str
    groups: tuple[str, ...]
    change: Float[Tensor, "group layer"]
    layers: tuple[int, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))


def relevant_layers(
    subject: Subject,
    corpus: Corpus,
    *,
    top: int = 4,
    state: State = "input",
    tokens: Tokens = "mean",
    distance: Distance = "l2",
    split: str | None = "auto",
    max_tokens: int = 4096,
) -> LayerChange:
    """The `top` layers with the largest change of activation between neighbours, over the groups of a corpus.

    LANDeRMT (arXiv 2409.19523) Eq 1: D_i = |(1/N) sum_n A_{i,n} - (1/N) sum_n A_{i+1,n}|, A_{i,n} the activation of
    layer i in the n-th forward pass; D is taken for each group (a group = a language pair), layers are chosen by its
    mean over groups, ties to the lower layer. A pass is one example. What the paper leaves open:

    - `state`, what a layer's activation is. `input`: the hidden state that enters it (A of the last layer's successor is
      what leaves the last layer, before the final norm), so D_i is what layer i itself adds, and every layer has one.
      `output`: the hidden state that leaves it, so D_i is what the layer after i adds, and the last layer has none.
    - `tokens`, how a pass becomes one vector: its `mean` over real tokens, or the `last` token before the answer's last.
    - `distance`, how the difference of two mean vectors becomes a number: its norm (`l2`), the sum of its absolute
      entries (`l1`), or the absolute difference of the two vectors' means over channels (`means`).

    Means are taken in float64. Nothing is scaled: where the hidden state grows with depth, upper layers are favoured.

    Raises SetError for an unknown option, or when `top` is more than the layers that have a value.
    """
    for name, value, known in (("state", state, State), ("tokens", tokens, Tokens), ("distance", distance, Distance)):
        if value not in get_args(known):
            raise SetError(f"unknown {name} {value!r}; expected {', '.join(get_args(known))}")
    room = subject.num_layers - (state == "output")
    if not 1 <= top <= room:
        raise SetError(f"top is {top} layers; {subject.name!r} has {room} with a change of state {state!r}")
    corpus = corpus.part(split, auto="train")
    means = _mean_states(subject, corpus, tokens, max_tokens)
    change = _distance(means[:, 1:] - means[:, :-1], distance)
    if state == "output":
        change = torch.cat([change[:, 1:], torch.full_like(change[:, :1], torch.nan)], dim=1)
    ranked = change.mean(dim=0).nan_to_num(-torch.inf).sort(descending=True, stable=True).indices
    origin = {
        "corpus": corpus.name, "corpus_hash": corpus.hash, "split": split, "top": top, "state": state, "tokens": tokens,
        "distance": distance,
    }  # fmt: skip
    return LayerChange(subject.fingerprint, corpus.groups, change.float(), tuple(sorted(ranked[:top].tolist())), origin)


def _distance(difference: Float[Tensor, "group layer model"], distance: Distance) -> Float[Tensor, "group layer"]:
    if distance == "l2":
        return difference.norm(dim=-1)
    if distance == "l1":
        return difference.abs().sum(dim=-1)
    return difference.mean(dim=-1).abs()


def _mean_states(
    subject: Subject, corpus: Corpus, tokens: Tokens, max_tokens: int
) -> Float[Tensor, "group state model"]:
    """Mean over a group's examples of the state that enters each layer, and of the one that leaves the last."""
    rows = torch.tensor([corpus.groups.index(example.group) for example in corpus])
    counts = torch.bincount(rows, minlength=len(corpus.groups))
    sums: Tensor | None = None
    with subject.scoring(), torch.no_grad():
        for batch in batches(encode_corpus(subject, corpus), max_tokens=max_tokens, pad_id=pad_id(subject)):
            with block_states(subject) as seen:
                forward(subject, batch)
            passes = torch.stack([pass_vectors(seen[place], batch, tokens) for place in sorted(seen)], dim=1)
            sums = torch.zeros((len(counts), *passes.shape[1:]), dtype=passes.dtype) if sums is None else sums
            sums.index_add_(0, rows[batch.rows], passes)
    assert sums is not None
    return sums / counts[:, None, None]


def pass_vectors(state: Tensor, batch: Batch, tokens: Tokens) -> Float[Tensor, "batch model"]:
    """One vector for every example of a batch."""
    real = batch.real
    state = state.reshape(*real.shape, -1).cpu().double()
    if tokens == "last":
        last: Int[Tensor, " batch"] = real.sum(dim=1) - 1
        return state[torch.arange(len(real)), last]
    return state.masked_fill(~real[..., None], 0.0).sum(dim=1) / real.sum(dim=1, keepdim=True)


@contextmanager
def block_states(subject: Subject) -> Iterator[dict[int, Tensor]]:
    """While the block runs, the state that enters layer i under i, and the one that leaves the last under their number."""
    seen: dict[int, Tensor] = {}
    blocks = [_block(subject, layer) for layer in range(subject.num_layers)]

    def enter(place: int) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[place] = (args[0] if args else kwargs["hidden_states"]).detach()

        return note

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        seen[len(blocks)] = (output[0] if isinstance(output, tuple) else output).detach()

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(enter(layer), with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(leave).remove)
        yield seen


def _block(subject: Subject, layer: int) -> nn.Module:
    return unwrapped(subject.adapter.get_component(subject.model, f"blocks.{layer}"))
