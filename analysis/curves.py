"""Curves: effects along an axis: one layer's share of a set after another, or larger and larger sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from .effects import Effects, effects_from_record

Axis = Literal["layer", "dose"]
KINDS = {"layer": "layer_sweep", "dose": "dose_response"}


@dataclass(frozen=True, eq=False)
class Curve:
    """Effects at every step of an axis: `layer` (the number of a layer) or `dose` (the share of a site's neurons).

    `effects` holds all steps of the first set, then all of the second (`effects.owners` names whose they are), so that its
    tests are corrected over all steps and sets. `names` [set] are the sets, `steps` [step] the places on the axis.
    """

    axis: Axis
    names: tuple[str, ...]
    steps: tuple[float, ...]
    effects: Effects

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "steps", tuple(self.steps))
        if self.axis not in get_args(Axis):
            raise SetError(f"unknown axis {self.axis!r}; curves are along {', '.join(get_args(Axis))}")
        if len(self.effects.sets) != len(self.names) * len(self.steps):
            raise SetError(
                f"a curve of {len(self.names)} sets and {len(self.steps)} steps needs {len(self.names) * len(self.steps)} "
                f"effects, found {len(self.effects.sets)}"
            )

    @property
    def subject(self) -> str:
        return self.effects.subject

    @property
    def sizes(self) -> Tensor:
        """Neurons ablated [set, step]."""
        return self.shaped(self.effects.sizes)

    def shaped(self, values: Tensor) -> Tensor:
        """[set * step, ...] as [set, step, ...]."""
        return values.reshape(len(self.names), len(self.steps), *values.shape[1:])

    def own(self, *, seed: int = 0) -> dict[str, Float[Tensor, "set step"]]:
        """On the sets' own groups: `effect` with its 95 % interval `low`, `high`; `others`, the mean over the other groups;
        `control`, the mean of the controls, with the range of their draws `control_low`, `control_high`; `p_controls`,
        Holm-corrected over all steps and sets; with twins, `twin`, the effect on the twins, with `twin_low`, `twin_high`.

        Groups that no set is held against do not count; a set without a group has NaN.
        """
        found, effects = {}, self.effects
        low, high = effects.interval(seed=seed)
        control = effects.mean_controls - effects.mean_base
        found = {"effect": effects.own(effects.effect), "low": effects.own(low), "high": effects.own(high)}
        found["others"] = effects.others(effects.effect)
        found["control"] = effects.own(effects.control_effect)
        ends = (control.amin(dim=1), control.amax(dim=1)) if control.shape[1] else (effects.control_effect,) * 2
        found["control_low"], found["control_high"] = (effects.own(end) for end in ends)
        found["p_controls"] = effects.corrected()[0]
        if effects.twins is not None:
            ends = effects.twins.interval(seed=seed)
            found["twin"] = effects.own(effects.twins.effect)
            found["twin_low"], found["twin_high"] = (effects.own(end) for end in ends)
        return {key: self.shaped(values) for key, values in found.items()}

    def averaged(self, *, seed: int = 0) -> dict[str, Float[Tensor, " step"]]:
        """Means over the sets of `own`, without intervals: what a figure of many sets shows first."""
        own = self.own(seed=seed)
        return {
            key: values.nanmean(dim=0) for key, values in own.items() if key in ("effect", "others", "control", "twin")
        }

    def summary(self) -> list[dict[str, Any]]:
        """One row per set and step."""
        own, sizes = self.own(), self.sizes
        return [
            {"set": name, self.axis: step, "neurons": int(sizes[s, t])}
            | {key: float(values[s, t]) for key, values in own.items()}
            for s, name in enumerate(self.names)
            for t, step in enumerate(self.steps)
        ]

    def to_record(self, name: str | None = None) -> Record:
        """The curve as a record of the atlas."""
        inner = self.effects.to_record()
        meta = {"names": list(self.names), "steps": list(self.steps), "effects": dict(inner.meta)}
        return Record(KINDS[self.axis], name or KINDS[self.axis], inner.arrays, meta)


def _from_record(record: Record, axis: Axis) -> Curve:
    inner = replace(record, kind="effects", meta=record.meta["effects"])
    return Curve(axis, tuple(record.meta["names"]), tuple(record.meta["steps"]), effects_from_record(inner))


@record_type("layer_sweep")
def layer_sweep_from_record(record: Record) -> Curve:
    """A layer sweep back from an atlas."""
    return _from_record(record, "layer")


@record_type("dose_response")
def dose_response_from_record(record: Record) -> Curve:
    """A dose-response curve back from an atlas."""
    return _from_record(record, "dose")
