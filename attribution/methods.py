"""Methods: registered ways to score neurons. Each states its formula and its cost; each has a value worked out by hand in a test.

Cheap methods read activations, or activations and gradients, of one pass that they share; the others run passes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..neurons.sites import Site
from ..neurons.subject import Subject

TokenReduction = Literal["sum", "abs", "mean", "max"]
TOKEN_REDUCTIONS = ("sum", "abs", "mean", "max")
Reads = Literal["gradient", "activation", "job", "subject"]
Over = Literal["examples", "tokens", "all_tokens"]


@dataclass(frozen=True)
class Method:
    """How neurons are scored.

    `reads` says what `function` takes and gives:

    - `gradient`: (gradient, activation), each [example, token, neuron] -> a contribution of that shape; scored in the shared
      pass, with one backward for all such methods.
    - `activation`: (activation [example, token, neuron]) -> a reading of that shape; scored in the shared pass's forward.
    - `job`: (Job, Site, **options) -> Sums; runs passes of its own.
    - `subject`: (Subject, Corpus) -> scores [group, layer, neuron], in the order of `corpus.groups`.

    `tokens` fixes the reduction over tokens; None takes the caller's. `over` says what a group's mean is over: its examples, or
    its tokens; of these at site `expert` only those that reach the neuron's expert, or `all_tokens`.

    What a shared method may do besides:

    - `place`: (Subject, Site) -> the site where the neurons of the asked site are read, of the same width.
    - `example`: (score [example, neuron], value of the objective [example], whether it is a control twin [example]) -> the
      example's score that is summed.
    - `finish`: (signed means [group, layer, neuron], the asked site) -> signed scores.
    - `rows`: (scores of every example [example, layer, neuron], its group [example], number of groups) -> signed scores.
      Every example's scores are kept in memory for it, on the CPU, as float32.

    After `finish` or `rows`, `values` are the absolute values of the signed scores, and their standard error is unknown.
    `objective` names the only objective that the method is defined for, `min_groups` says how many groups it compares.
    """

    name: str
    reads: Reads
    function: Callable[..., Any]
    tokens: TokenReduction | None = None
    over: Over = "examples"
    place: Callable[[Subject, Site], Site] | None = None
    example: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    finish: Callable[[Tensor, Site], Tensor] | None = None
    rows: Callable[[Tensor, Tensor, int], Tensor] | None = None
    objective: str | None = None
    min_groups: int = 1

    @property
    def shared(self) -> bool:
        """Whether the method reads from the shared pass."""
        return self.reads in ("gradient", "activation")


METHODS: dict[str, Method] = {}


def register_method(
    name: str,
    *,
    reads: Reads = "subject",
    tokens: TokenReduction | None = None,
    over: Over = "examples",
    place: Callable[[Subject, Site], Site] | None = None,
    example: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    finish: Callable[[Tensor, Site], Tensor] | None = None,
    rows: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    objective: str | None = None,
    min_groups: int = 1,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a method, by default one of (subject, corpus) that gives scores [group, layer, neuron].

    The other arguments are those of `Method`. A name that is there already is replaced.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(name, reads, function, tokens, over, place, example, finish, rows, objective, min_groups)
        return function

    return register


@register_method("taylor", reads="gradient")
def taylor(gradient: Tensor, activation: Tensor) -> Tensor:
    """g(t) * w(t): the first-order change of the objective when the neuron is silenced at every token.

    Leng & Xiong (arXiv 2407.06488) Eq 3 and 9: R = |dL/dw * w|; LANDeRMT Eq 2; FuxiTranyu Eq 2. Summed over tokens before
    the absolute value, it is the derivative of the objective along the line from silent to active. Cost: one backward.
    """
    return gradient * activation


@register_method("gradient", reads="gradient")
def gradient(gradient: Tensor, activation: Tensor) -> Tensor:
    """g(t): how the objective would move with the activation, whatever that is (Simonyan et al. 2013, Eq 3). One backward."""
    return gradient


def weighed_by_value(score: Tensor, value: Tensor, twin: Tensor) -> Tensor:
    """The score times the objective's value; a control twin's is at least 0."""
    score = score * value.to(score.dtype)[:, None]
    return torch.where(twin[:, None], score.clamp(min=0), score)


@register_method("culnig", reads="gradient", tokens="max", example=weighed_by_value, objective="probability")
def culnig(gradient: Tensor, activation: Tensor) -> Tensor:
    """P(y|x) * max_t n(t) * dP(y|x)/dn(t), signed; on control twins max(0, that).

    CULNIG (arXiv 2510.08284) section 3; P is the probability of the answer (of all its tokens, where it has several). The
    maximum is over real tokens; the authors' code puts zeros on padding first, so that a score is at least 0 wherever a
    batch has padding. Rank `signed`. Cost: one backward, of the probability.
    """
    return gradient * activation


def method_named(name: str) -> Method:
    """A method by name. Raises ValueError that lists the names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; methods are {', '.join(METHODS)}")
    return METHODS[name]
