"""Evaluations made by hand: changes, intervals and tests are those of the numbers put in. No harness is needed."""

from __future__ import annotations

import builtins
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from neuropolis.analysis.evaluation import Cell, Evaluation, HarnessError
from neuropolis.analysis.harness import as_lm
from neuropolis.analysis.harness_results import gathered


def evaluation(samples: list[list[float]], clusters: list[int], better: bool | None = True) -> Evaluation:
    """Runs intact, set, its two controls and a delta, as many of them as there are rows."""
    table = torch.tensor(samples, dtype=torch.float64)
    runs, conditions = ("intact", "s", "c1", "c2", "d"), ("intact", "off", "control", "control", "delta")
    count = len(table)
    return Evaluation(
        "f" * 16, runs[:count], conditions[:count], torch.tensor([-1, -1, 1, 1, -1][:count]),
        (Cell("t", "acc", "none", "1.0", table.shape[1], 0, better),), table.mean(dim=1, keepdim=True),
        torch.full((count, 1), 0.1, dtype=torch.float64), table, torch.zeros(table.shape[1], dtype=torch.long),
        torch.tensor(clusters),
    )  # fmt: skip


def test_change_interval_and_p_value_of_a_set_that_breaks_everything() -> None:
    ones, zeros = [1.0] * 8, [0.0] * 8
    found = evaluation([ones, zeros, ones, ones, ones], list(range(8)))
    assert found.change.flatten().tolist() == [0, -1, 0, 0, 0]
    low, high = found.interval()
    assert (float(low[1, 0]), float(high[1, 0])) == (-1, -1)
    p = found.p_vs_controls.flatten()
    assert float(p[1]) == pytest.approx(1 / 2**8)  # one of all sign patterns is as extreme
    assert p[[0, 2, 3, 4]].isnan().all()
    row = found.summary()[1]
    assert (row["run"], row["change"], row["controls"], row["num_controls"]) == ("s", -1, 1, 2)
    assert [row["run"] for row in found.summary()] == ["intact", "s", "d"]


def test_paraphrases_of_one_item_are_one_cluster() -> None:
    ones, zeros = [1.0] * 8, [0.0] * 8
    found = evaluation([ones, zeros, ones, ones], [0, 0, 0, 0, 1, 1, 1, 1])
    assert float(found.p_vs_controls[1, 0]) == pytest.approx(1 / 2**2)


def test_which_way_is_better_counts() -> None:
    ones, zeros = [1.0] * 8, [0.0] * 8
    lower = evaluation([ones, zeros, ones, ones], list(range(8)), better=False)
    assert float(lower.p_vs_controls[1, 0]) == 1
    assert evaluation([ones, zeros, ones, ones], list(range(8)), better=None).p_vs_controls.isnan().all()


def test_what_is_missing_is_nan_or_said() -> None:
    found = evaluation([[1.0, 0.0]], [0, 1])
    assert found.p_vs_controls.isnan().all()
    assert math.isnan(found.summary()[0]["controls"])
    with pytest.raises(HarnessError, match="no run 's' of t acc; runs are intact; metrics are t acc"):
        found.value("s", task="t", metric="acc")
    without = replace(found, conditions=("off",), runs=("s",))
    assert without.change.isnan().all()
    assert without.interval()[0].isnan().all()
    with pytest.raises(HarnessError, match=r"stderr has shape \[1\], expected \[1, 1\]"):
        replace(found, stderr=torch.zeros(1))


def result(documents: list[tuple[str, float]], **more: Any) -> dict[str, Any]:
    value = sum(score for _, score in documents) / len(documents)
    rows = [
        {"filter": "none", "doc_hash": key, "doc_id": i, "doc": {"item": key[0]}, "acc": score, "pair": (score, 1)}
        for i, (key, score) in enumerate(documents)
    ]
    return {
        "results": {"t": {"alias": "t", "sample_len": len(rows), "acc,none": value, "acc_stderr,none": 0.5,
                          "pair,none": 3.0, "pair_stderr,none": "N/A", **more}},
        "n-samples": {"t": {"original": 9, "effective": len(rows)}}, "versions": {"t": 2}, "n-shot": {"t": 5},
        "higher_is_better": {"t": {"acc": True}}, "samples": {"t": rows},
    }  # fmt: skip


def test_the_harness_results_become_tensors() -> None:
    first, second = (result([("a1", 1.0), ("a2", 0.0), ("b1", last)]) for last in (1.0, 0.0))
    cells, arrays = gathered([first, second], ["intact", "s"])
    assert cells == (Cell("t", "acc", "none", "2", 3, 5, True), Cell("t", "pair", "none", "2", 3, 5, None))
    torch.testing.assert_close(arrays["values"], torch.tensor([[2 / 3, 3], [1 / 3, 3]], dtype=torch.float64))
    assert arrays["stderr"][:, 1].isnan().all()
    assert arrays["samples"].tolist() == [[1, 0, 1], [1, 0, 0]]
    assert arrays["sample_cell"].tolist() == [0, 0, 0]
    assert arrays["sample_cluster"].tolist() == [0, 0, 1]


def test_a_group_has_the_documents_of_its_tasks() -> None:
    first, second = result([("a1", 1.0), ("b1", 0.0)]), result([("a1", 1.0)])
    whole = {
        "results": {
            "u": {k: v for k, v in first["results"]["t"].items() if k.startswith("acc,")},
            "v": {k: v for k, v in second["results"]["t"].items() if k.startswith("acc,")},
            "g": {"acc,none": 2 / 3, "sample_len": 3},
            "unweighted": {"acc,none": 3 / 4, "sample_len": 3},
        },
        "samples": {"u": first["samples"]["t"], "v": second["samples"]["t"]},
        "n-samples": {"u": {"effective": 2}, "v": {"effective": 1}}, "versions": {}, "n-shot": {},
        "higher_is_better": {name: {"acc": True} for name in "uvg"},
        "group_subtasks": {"g": ["inner", "v"], "inner": ["u"], "unweighted": ["u", "v"]},
    }  # fmt: skip
    cells, arrays = gathered([whole], ["intact"])
    assert [cell.task for cell in cells] == ["u", "v", "g", "unweighted"]
    assert arrays["samples"].tolist() == [[1, 0, 1, 1, 0, 1]]
    assert arrays["sample_cell"].tolist() == [0, 0, 1, 2, 2, 2]  # none for a mean that is not over documents
    assert arrays["sample_cluster"].tolist() == [0, 1, 2, 3, 4, 3]


def test_runs_of_other_documents_are_refused() -> None:
    with pytest.raises(HarnessError, match="run 's' was asked other documents than run 'intact'"):
        gathered([result([("a", 1.0), ("b", 0.0)]), result([("a", 1.0), ("c", 0.0)])], ["intact", "s"])
    with pytest.raises(HarnessError, match="gave no number for t"):
        gathered([{**result([("a", 1.0)]), "results": {"t": {"alias": "t"}}}], ["intact"])


def test_without_the_harness_the_extra_is_named(make_subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(HarnessError, match=r"pip install 'neuropolis\[harness\]'"):
        as_lm(make_subject("llama"))
