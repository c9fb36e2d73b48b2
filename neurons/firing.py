"""Firing: an intervention that is watched, so that one that never took hold is an error and not a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .errors import SubjectError
from .experts import by_expert
from .interventions import intervene
from .sets import NeuronSet
from .sites import Tap
from .subject import Subject


@dataclass(frozen=True, eq=False)
class Firing:
    """What a watched intervention did so far, by layer of its set.

    `entered` counts forward passes of the tapped module, `seen` the tensors that came to the set's place, `edited` those
    that left it as another tensor. Of routed experts only those of the set are seen, and a pass may reach none of them.
    """

    layers: tuple[int, ...]
    entered: Counter[int] = field(default_factory=Counter)
    seen: Counter[int] = field(default_factory=Counter)
    edited: Counter[int] = field(default_factory=Counter)

    def check(self, subject: Subject, neurons: NeuronSet) -> None:
        """Raise SubjectError unless every layer of the set ran and every tensor that came to its place was edited."""
        for layer in self.layers:
            tap = subject.site(neurons.site).taps[layer]
            reached = self.entered[layer] > 0 and (self.seen[layer] > 0 or tap.routed is not None)
            if not reached or self.edited[layer] != self.seen[layer]:
                raise SubjectError(
                    f"the intervention did not take hold: the hook at {tap.path} (site {neurons.site!r}, layer {layer}) "
                    f"edited {self.edited[layer]} of {self.seen[layer]} activations in {self.entered[layer]} passes of "
                    f"that module; expected every pass of {subject.name} to go through it. Is the module's forward "
                    "replaced (a fused kernel, a compiled block)? Load the model with its plain implementation"
                )


@contextmanager
def intervene_watched(subject: Subject, neurons: NeuronSet, **how: Any) -> Iterator[Firing]:
    """`intervene`, with its hooks watched: they must have fired in every layer that is edited by the end of the block.

    `how` is what `intervene` takes. An empty set has nothing to fire.

    Raises SubjectError at the end of the block when a layer's hook never fired, or not in every pass.
    """
    neurons.check(subject)
    if how.get("kind") == "keep":
        chosen, neurons = neurons, ~neurons  # what is edited is all else
    else:
        chosen = neurons
    taps = dict(enumerate(subject.site(neurons.site).taps))
    layers = tuple(layer for layer in taps if bool(neurons.mask[layer].any()))
    firing = Firing(layers)
    arrived: dict[tuple[int, int], Tensor] = {}  # kept only while a tensor passes from the first watcher to the second

    def before(layer: int) -> Callable[[Tensor, int], None]:
        return lambda x, part: arrived.__setitem__((layer, part), x)

    def after(layer: int) -> Callable[[Tensor, int], None]:
        def count(x: Tensor, part: int) -> None:
            firing.seen[layer] += 1
            firing.edited[layer] += x is not arrived.pop((layer, part))

        return count

    with ExitStack() as stack:
        for layer in layers:
            entered = _entered(taps[layer], lambda layer=layer: firing.entered.update((layer,)))
            stack.callback(entered.remove)
            stack.enter_context(_watching(taps[layer], neurons, layer, before(layer)))
        stack.enter_context(intervene(subject, chosen, **how))
        for layer in layers:
            stack.enter_context(_watching(taps[layer], neurons, layer, after(layer)))
        yield firing
    firing.check(subject, neurons)


def _entered(tap: Tap, note: Callable[[], None]) -> Any:
    return tap.module.register_forward_pre_hook(lambda _module, _args: note())


@contextmanager
def _watching(tap: Tap, neurons: NeuronSet, layer: int, note: Callable[[Tensor, int], None]) -> Iterator[None]:
    """Show every tensor that passes a tap to `note(tensor, expert)`; expert is 0 where there are none."""
    if tap.routed is not None:
        experts = set(by_expert(neurons.indices(layer), units=tap.units))

        def look(x: Tensor, expert: int, _tokens: Tensor) -> None:
            if expert in experts:
                note(x, expert)

        with tap.attached_routed(look):
            yield
        return
    if tap.side == "out":
        handle = tap.module.register_forward_hook(lambda *given: note(given[2], 0))  # pyright: ignore[reportArgumentType]
    else:

        def enters(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            note(args[0], 0)

        handle = tap.module.register_forward_pre_hook(enters)
    try:
        yield
    finally:
        handle.remove()
