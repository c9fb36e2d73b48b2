"""Methods: registered ways to score neurons. Each states its formula and its cost; each has a value worked out by hand in a test.

Cheap methods read activations, or activations and gradients, of one pass that they share; the others run passes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

TokenReduction = Literal["sum", "abs", "mean", "max"]
TOKEN_REDUCTIONS = ("sum", "abs", "mean", "max")
Reads = Literal["gradient", "activation", "job", "subject"]
Over = Literal["examples", "tokens"]


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
    its tokens. `finish` turns the groups' signed means [group, layer, neuron] into signed scores; `values` are then their
    absolute values.
    """

    name: str
    reads: Reads
    function: Callable[..., Any]
    tokens: TokenReduction | None = None
    over: Over = "examples"
    finish: Callable[[Tensor], Tensor] | None = None

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
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a method, by default one of (subject, corpus) that gives scores [group, layer, neuron].

    The other arguments are those of `Method`. A name that is there already is replaced.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(name, reads, function, tokens, over, finish)
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


def method_named(name: str) -> Method:
    """A method by name. Raises ValueError that lists the names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; methods are {', '.join(METHODS)}")
    return METHODS[name]
