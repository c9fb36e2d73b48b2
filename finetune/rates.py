"""Rates: the learning rate of every method, chosen with the same effort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..neurons.subject import Subject
from .continual import continual
from .errors import TuneError
from .streams import Task


@dataclass(frozen=True)
class Rates:
    """What a search found: by method and rate, the average accuracy at the end and the forgetting, means over seeds."""

    average: Mapping[str, Mapping[float, float]]
    forgotten: Mapping[str, Mapping[float, float]]

    @property
    def best(self) -> dict[str, float]:
        """Every method's rate of the highest average accuracy; of equal ones the lowest."""
        return {name: max(sorted(found), key=lambda rate: found[rate]) for name, found in self.average.items()}


def search_rates(
    subject: Subject,
    tasks: Sequence[Task],
    *,
    rates: Mapping[str, Sequence[float]],
    state: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    **arguments: Any,
) -> Rates:
    """Learn the stream by every method at each of its rates; the other arguments are those of `continual`.

    The questions of the tasks should be none of those that the methods are compared on later. `state` has a folder for
    every place among the rates.

    Raises TuneError where methods have different numbers of rates, or a rate twice, and what `continual` raises.
    """
    counts = {name: len(set(chosen)) for name, chosen in rates.items()}
    if len(set(counts.values())) != 1 or any(len(rates[name]) != count for name, count in counts.items()):
        shown = ", ".join(f"{name} {len(chosen)}" for name, chosen in rates.items())
        raise TuneError(f"every method needs the same number of different rates, got {shown or 'none'}")
    average: dict[str, dict[float, float]] = {name: {} for name in rates}
    forgotten: dict[str, dict[float, float]] = {name: {} for name in rates}
    for name, chosen in rates.items():
        for rate in chosen:
            folder = None if state is None else Path(state) / f"{name}-{rate:g}"
            if folder is not None:
                folder.parent.mkdir(parents=True, exist_ok=True)
            options = {key: value for key, value in (arguments.get("options") or {}).items() if key == name}
            found = continual(
                subject, tasks, methods=(name,), lrs={name: rate}, state=folder, **{**arguments, "options": options}
            )
            average[name][rate] = float(found.metric("average_accuracy").mean())
            forgotten[name][rate] = float(found.metric("forgetting").mean())
            if tell is not None:
                tell(f"{name} at {rate:g}: {100 * average[name][rate]:.1f} % right at the end")
    return Rates(average, forgotten)
