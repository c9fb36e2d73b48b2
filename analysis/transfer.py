"""Transfer: whether tasks whose neurons' parameters are alike help each other, from measured gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..neurons.atlas import Record, record_type
from ..neurons.errors import SetError
from .similarity import Similarity
from .tables import Correlation, correlate

_FIELDS = ("r", "low", "high", "p", "null_low", "null_high")


@dataclass(frozen=True, eq=False)
class Transfer:
    """Correlation of the similarity of two tasks' parameters with what learning one does for the other.

    `gains` [learned, asked] are changes of accuracy; `similar` [group, group, layer] the similarities. `overall` and `by_layer`
    [layer] are, for `pearson` and `spearman` [2, ...], r, its 95 % bootstrap interval over tasks, p of the permutation
    test and the central 95 % of the permutations: the fields of `tables.Agreement`. Overall is the mean similarity over layers.
    `by_target` [2, asked] is the correlation over the learned tasks alone (Leng & Xiong, table 4), without a test.
    """

    subject: str
    groups: tuple[str, ...]
    gains: Float[Tensor, "learned asked"]
    similar: Float[Tensor, "group group layer"]
    overall: Float[Tensor, "2 6"]
    by_layer: Float[Tensor, "2 layer 6"]
    by_target: Float[Tensor, "2 asked"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "transfer") -> Record:
        """The table as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("transfer", name, arrays, meta)


@record_type("transfer")
def transfer_from_record(record: Record) -> Transfer:
    """The table back from an atlas."""
    return Transfer(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def measured_gains(result: Any, *, method: str) -> Float[Tensor, "learned asked"]:
    """Change of accuracy on every task after learning one task alone, from the record of a continual run.

    Row i is the change, against the untouched subject, after task i was learned from it: every stage of the method
    `per-task`, whose stages all begin there, and the first stage of any other. Means over seeds; NaN for tasks that no seed
    began with. `result` has the fields of a `finetune` Continual.

    Raises SetError when the method is not in the result, or when a task was never learned first; the text says which.
    """
    methods, tasks = list(result.methods), list(result.tasks)
    if method not in methods:
        raise SetError(f"no method {method!r} in this result; it has {', '.join(methods)}")
    matrix, orders = result.matrix[methods.index(method)].double(), result.orders
    total = torch.zeros((len(tasks), len(tasks)), dtype=torch.float64)
    counts = torch.zeros(len(tasks), dtype=torch.float64)
    for seed in range(len(orders)):
        for stage in range(len(tasks) if method == "per-task" else 1):
            task = int(orders[seed, stage])
            total[task] += matrix[seed, stage] - result.untouched.double()
            counts[task] += 1
    missing = [task for task, count in zip(tasks, counts.tolist(), strict=True) if not count]
    if missing:
        raise SetError(
            f"method {method!r} never learned {', '.join(missing)} first, so its transfer was not measured; run "
            "'neuropolis continual' with --method per-task, or with orders that begin with every task"
        )
    return total / counts[:, None]


def transfer(
    alike: Similarity,
    gains: Float[Tensor, "learned asked"],
    *,
    shared: bool = False,
    given: bool = False,
    draws: int = 9999,
    seed: int = 0,
    source: str = "",
) -> Transfer:
    """Whether similarity of parameters goes with transfer, over ordered pairs of tasks, in the similarity's order of groups.

    Leng & Xiong (arXiv 2407.06488, section 5, table 4) correlate, for each test task, the similarity with the
    performance of n = 6 models, each similarity in the model trained on its task (`similarity_in_each` gives that; rows are
    tasks learned), and do not say which layers they take. Here: the mean over layers, and every layer. Of one asked task
    gains and performances correlate alike, since they differ by a constant.
    `shared` takes shared neurons in; `given` says that `gains` are performances as they were given, not changes of accuracy.
    Intervals and tests treat tasks as the unit (`tables.correlate`).

    Raises SetError for fewer than three tasks, or when the gains are not of the similarity's groups.
    """
    num = len(alike.groups)
    if gains.shape != (num, num) or num < 3:
        raise SetError(
            f"the gains are {list(gains.shape)}, the similarity has {num} groups ({', '.join(alike.groups)}); expected "
            "[learned, asked] of the same three groups or more"
        )
    similar = (alike.values if shared else alike.values_unshared).double().clone()
    similar[range(num), range(num)] = torch.nan
    table = similar.nanmean(dim=2)
    kinds: tuple[Correlation, ...] = ("pearson", "spearman")

    def row(values: Tensor, kind: Correlation) -> list[float]:
        found = correlate(values, gains, method=kind, draws=draws, seed=seed)
        return [getattr(found, name) for name in _FIELDS]

    return Transfer(
        alike.subject, alike.groups, gains.double(), similar,
        torch.tensor([row(table, kind) for kind in kinds], dtype=torch.float64),
        torch.tensor([[row(layer, kind) for layer in similar.unbind(dim=2)] for kind in kinds], dtype=torch.float64),
        torch.stack([_by_target(table, gains, kind) for kind in kinds]),
        {
            "shared": shared, "given": given, "draws": draws, "seed": seed, "source": source,
            "similarity": {key: alike.origin.get(key) for key in ("align", "matrices", "center", "of", "sets", "each")},
        },
    )  # fmt: skip


def _by_target(table: Tensor, gains: Tensor, kind: str) -> Float[Tensor, " asked"]:
    """Over the other tasks learned, for each task asked."""
    from scipy.stats import rankdata

    found = []
    for asked in range(len(table)):
        others = [i for i in range(len(table)) if i != asked]
        x, y = table[others, asked].numpy(), gains[others, asked].numpy()
        if np.isnan(x).any() or np.isnan(y).any() or np.ptp(x) == 0 or np.ptp(y) == 0:
            found.append(np.nan)
            continue
        x, y = (rankdata(x), rankdata(y)) if kind == "spearman" else (x, y)
        found.append(float(np.corrcoef(x, y)[0, 1]))
    return torch.tensor(found, dtype=torch.float64)
