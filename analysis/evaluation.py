"""Evaluation: what lm-evaluation-harness measured of a subject, intact and under each condition, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..neurons.atlas import Record, record_type
from .statistics import bootstrap, cluster_sums, holm, sign_flip_test


class HarnessError(ValueError):
    """lm-evaluation-harness is not there, or a task or its data is not what was expected."""


@dataclass(frozen=True)
class Cell:
    """One number of the harness: a task's (or a group of tasks') metric after a filter.

    `higher_is_better` is None where the task does not say.
    """

    task: str
    metric: str
    filter: str
    version: str
    num_samples: int
    num_fewshot: int
    higher_is_better: bool | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The harness's results for a run with nothing changed, for one run per set and per delta, and for controls.

    `conditions` says what a run is: "intact", "off" (a set is ablated), "delta" (a tuned model) or "control" (a random
    set matched to the one of run `control_of`, which is -1 elsewhere). `values` and `stderr` [run, cell] are the
    harness's own; stderr is NaN where it has none. `samples` [run, sample] are the values that documents had, of cell
    `sample_cell` and cluster `sample_cluster`, for cells that are the mean of one number per document. A document's cluster
    is its field `item` where it has one (paraphrases of one fact are not independent), else the document.
    """

    subject: str
    runs: tuple[str, ...]
    conditions: tuple[str, ...]
    control_of: Int[Tensor, " run"]
    cells: tuple[Cell, ...]
    values: Float[Tensor, "run cell"]
    stderr: Float[Tensor, "run cell"]
    samples: Float[Tensor, "run sample"]
    sample_cell: Int[Tensor, " sample"]
    sample_cluster: Int[Tensor, " sample"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("runs", "conditions", "cells"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        R, C, S = len(self.runs), len(self.cells), len(self.sample_cell)
        shapes = {
            "control_of": (R,), "values": (R, C), "stderr": (R, C), "samples": (R, S), "sample_cell": (S,),
            "sample_cluster": (S,),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise HarnessError(f"evaluation: {name} has shape {list(found)}, expected {list(shape)}")

    def value(self, run: str, *, task: str, metric: str) -> float:
        """One number. Raises HarnessError that lists what there is."""
        places = [i for i, cell in enumerate(self.cells) if (cell.task, cell.metric) == (task, metric)]
        if run not in self.runs or not places:
            there = sorted({f"{cell.task} {cell.metric}" for cell in self.cells})
            raise HarnessError(
                f"no run {run!r} of {task} {metric}; runs are {', '.join(self.runs)}; metrics are {', '.join(there)}"
            )
        return float(self.values[self.runs.index(run), places[0]])

    @property
    def intact(self) -> int | None:
        """The run with nothing changed."""
        return self.conditions.index("intact") if "intact" in self.conditions else None

    @property
    def changed(self) -> list[int]:
        """The runs that something was changed in, without the controls."""
        return [r for r, condition in enumerate(self.conditions) if condition in ("off", "delta")]

    def controls(self, run: int) -> list[int]:
        """The runs that are controls of a run."""
        return [r for r, owner in enumerate(self.control_of.tolist()) if owner == run]

    @property
    def change(self) -> Float[Tensor, "run cell"]:
        """Values less those of the intact run; NaN without one."""
        return self.values - (torch.nan if self.intact is None else self.values[self.intact])

    def interval(
        self, level: float = 0.95, seed: int = 0
    ) -> tuple[Float[Tensor, "run cell"], Float[Tensor, "run cell"]]:
        """(low, high) of `change`: a paired percentile bootstrap over clusters of documents.

        NaN for cells that are no mean of one number per document.
        """
        ends = torch.full((2, *self.values.shape), torch.nan, dtype=torch.float64)
        if self.intact is not None:
            for cell in self.sample_cell.unique().tolist():
                sums, sizes = self._clusters(self.samples - self.samples[self.intact], cell)
                low, high = bootstrap(sums, sizes, level=level, seed=seed)
                ends[0, :, cell], ends[1, :, cell] = low, high
        return ends[0], ends[1]

    @cached_property
    def p_vs_controls(self) -> Float[Tensor, "run cell"]:
        """One-sided p-values, uncorrected, that a run makes a cell worse than the mean of its controls does.

        A sign-flip test over clusters of documents. NaN without controls, for cells without documents, and where the
        task does not say which way is better.
        """
        p = torch.full(self.values.shape, torch.nan, dtype=torch.float64)
        for run in self.changed:
            owned = self.controls(run)
            if not owned:
                continue
            difference = (self.samples[run] - self.samples[owned].mean(dim=0))[None]
            for cell in self.sample_cell.unique().tolist():
                better = self.cells[cell].higher_is_better
                if better is not None:
                    p[run, cell] = sign_flip_test(self._clusters(difference if better else -difference, cell)[0])[0]
        return p

    def summary(self) -> list[dict[str, Any]]:
        """One row per cell and run without the controls, with their mean and spread in it; p-values are Holm-corrected."""
        low, high = self.interval()
        p = holm(self.p_vs_controls)
        rows = []
        for c, cell in enumerate(self.cells):
            for r, run in enumerate(self.runs):
                if self.conditions[r] == "control":
                    continue
                owned = self.values[self.controls(r), c]
                rows.append(
                    {
                        "task": cell.task, "version": cell.version, "metric": cell.metric, "filter": cell.filter,
                        "samples": cell.num_samples, "fewshot": cell.num_fewshot, "run": run,
                        "condition": self.conditions[r], "value": float(self.values[r, c]),
                        "stderr": float(self.stderr[r, c]), "change": float(self.change[r, c]),
                        "low": float(low[r, c]), "high": float(high[r, c]),
                        "controls": float(owned.mean()) if len(owned) else torch.nan,
                        "controls_low": float(owned.min()) if len(owned) else torch.nan,
                        "controls_high": float(owned.max()) if len(owned) else torch.nan,
                        "num_controls": len(owned), "p_controls": float(p[r, c]),
                    }
                )  # fmt: skip
        return rows

    def _clusters(self, values: Float[Tensor, "any sample"], cell: int) -> tuple[Tensor, Tensor]:
        inside = self.sample_cell == cell
        return cluster_sums(values[:, inside], self.sample_cluster[inside])

    def to_record(self, name: str = "evaluation") -> Record:
        """The evaluation as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in _ARRAYS}
        meta = {
            "subject": self.subject, "runs": list(self.runs), "conditions": list(self.conditions),
            "cells": [vars(cell) for cell in self.cells], "origin": dict(self.origin),
        }  # fmt: skip
        return Record("evaluation", name, arrays, meta)


_ARRAYS = ("control_of", "values", "stderr", "samples", "sample_cell", "sample_cluster")


@record_type("evaluation")
def evaluation_from_record(record: Record) -> Evaluation:
    """An evaluation back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Evaluation(**{**record.meta, "cells": tuple(Cell(**cell) for cell in record.meta["cells"]), **arrays})
