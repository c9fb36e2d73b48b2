"""Methods: registered functions that score neurons. Each states its formula; each has a value worked out by hand in a test."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Method = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, Method] = {}


def register_method(name: str) -> Callable[[Method], Method]:
    """Register a function (gradient, activation) -> contribution, all of shape [batch, token, neuron]."""

    def register(function: Method) -> Method:
        METHODS[name] = function
        return function

    return register


@register_method("taylor")
def taylor(gradient: Tensor, activation: Tensor) -> Tensor:
    """g(t) * w(t): the first-order change of the objective when the neuron is silenced at every token.

    Leng & Xiong (arXiv 2407.06488) Eq 3 and 9: R = |dL/dw * w|; LANDeRMT Eq 2; FuxiTranyu Eq 2. Summed over tokens before
    the absolute value, it is the derivative of the objective along the line from silent to active.
    """
    return gradient * activation


@register_method("gradient")
def gradient(gradient: Tensor, activation: Tensor) -> Tensor:
    """g(t): how the objective would move with the activation, whatever the activation is (Simonyan et al. 2013, Eq 3)."""
    return gradient


def method_named(name: str) -> Method:
    """A method by name. Raises ValueError that lists the names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; methods are {', '.join(METHODS)}")
    return METHODS[name]
