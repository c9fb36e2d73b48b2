"""What lm-evaluation-harness hands back, as tensors: one cell for each number, one column for each document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .evaluation import Cell, HarnessError


def gathered(results: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> tuple[tuple[Cell, ...], dict[str, Tensor]]:
    """The cells of some runs of the same tasks, and `Evaluation`'s tensors of them.

    Raises HarnessError when runs were asked different documents, which would make their differences meaningless.
    """
    cells = _cells(results[0])
    values, errors = (
        torch.tensor(
            [[_number(found["results"][c.task].get(f"{c.metric}{ending},{c.filter}")) for c in cells] for found in results],
            dtype=torch.float64,
        ).reshape(len(results), len(cells))
        for ending in ("", "_stderr")
    )  # fmt: skip
    columns: list[Tensor] = []
    owner: list[int] = []
    cluster: list[int] = []
    clusters: dict[tuple[str, str], int] = {}
    for number, cell in enumerate(cells):
        documents = [_documents(found, cell) for found in results]
        for run, found in zip(runs, documents, strict=True):
            if [key for key, _, _ in found] != [key for key, _, _ in documents[0]]:
                raise HarnessError(f"task {cell.task}: run {run!r} was asked other documents than run {runs[0]!r}")
        table = torch.tensor([[value for _, _, value in found] for found in documents], dtype=torch.float64)
        if not table.numel() or not torch.allclose(table.mean(dim=1), values[:, number], rtol=1e-6, atol=1e-9):
            continue  # a ratio, a perplexity: no mean over documents, so that their differences say nothing about it
        columns.append(table)
        owner += [number] * table.shape[1]
        cluster += [clusters.setdefault((cell.task, item), len(clusters)) for _, item, _ in documents[0]]
    samples = torch.cat(columns, dim=1) if columns else torch.zeros((len(results), 0), dtype=torch.float64)
    return cells, {
        "values": values, "stderr": errors, "samples": samples,
        "sample_cell": torch.tensor(owner, dtype=torch.long), "sample_cluster": torch.tensor(cluster, dtype=torch.long),
    }  # fmt: skip


def _cells(found: Mapping[str, Any]) -> tuple[Cell, ...]:
    cells = []
    for task, numbers in found["results"].items():
        for key in numbers:
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(numbers[key], Real):
                continue
            count = found["n-samples"].get(task, {}).get("effective")
            cells.append(
                Cell(
                    task, metric, name, str(found["versions"].get(task)),
                    int(count if count is not None else numbers.get("sample_len", 0)),
                    int(found["n-shot"].get(task) or 0), found["higher_is_better"].get(task, {}).get(metric),
                )
            )  # fmt: skip
    if not cells:
        raise HarnessError(f"the harness gave no number for {', '.join(found['results'])}; does the task have metrics?")
    return tuple(cells)


def _documents(found: Mapping[str, Any], cell: Cell) -> list[tuple[str, str, float]]:
    """(document, what it is about, its value) of a cell, where every document has one number; a group's are its tasks'."""
    documents = []
    for task in _leaves(found, cell.task):
        for row in found["samples"].get(task, ()):
            if row["filter"] == cell.filter and isinstance(row.get(cell.metric), Real):
                about = row["doc"].get("item") if isinstance(row["doc"], Mapping) else None
                cluster = f"{task} doc {row['doc_id']}" if about is None else f"item {about}"
                documents.append((row["doc_hash"], cluster, float(row[cell.metric])))
    return documents if len(documents) == cell.num_samples else []


def _leaves(found: Mapping[str, Any], task: str) -> list[str]:
    """The tasks that a group is made of, at any depth; a task itself."""
    members = found.get("group_subtasks", {}).get(task)
    return [task] if not members else [leaf for member in members for leaf in _leaves(found, member)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real) else math.nan
