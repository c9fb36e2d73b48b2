"""Tasks for lm-evaluation-harness on local files: a corpus as a YAML and JSON Lines, with nothing on a hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..corpora.examples import Corpus, CorpusError, Example

Ask = Literal["choices", "answer", "generate", "text"]
ASKS: tuple[str, ...] = get_args(Ask)
_MEAN, _WEIGHTED = ("mean", True), ("weighted_perplexity", False)
_METRICS = {  # with how documents are put together, and whether higher is better
    "choices": {"acc": _MEAN, "acc_norm": _MEAN},
    "answer": {"acc": _MEAN, "perplexity": ("perplexity", False)},
    "generate": {"exact_match": _MEAN},
    "text": {"word_perplexity": _WEIGHTED, "byte_perplexity": _WEIGHTED, "bits_per_byte": ("bits_per_byte", False)},
}
_WAYS: Mapping[str, Mapping[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "choices",
        "doc_to_target": "answer_index",
    },
    "answer": {"output_type": "loglikelihood", "doc_to_text": "prompt", "doc_to_target": "answer"},
    "generate": {"output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": "{{answer.strip()}}"},
    "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{prompt}}{{answer}}"},
}  # fmt: skip


def harness_task(
    corpus: Corpus,
    folder: str | Path,
    *,
    ask: Ask = "choices",
    name: str | None = None,
    per_group: bool = False,
    split: str | None = "auto",
    until: Sequence[str] = ("\n",),
    max_new_tokens: int = 32,
) -> Path:
    """Write a corpus as a task of lm-evaluation-harness; returns the YAML to give to `evaluate` or to `lm_eval --tasks`.

    `ask` says what is measured: "choices" (accuracy by lowest loss, multiple_choice), "answer" (likelihood of the right
    answer, loglikelihood), "generate" (exact match of what is written up to `until` or `max_new_tokens`, generate_until) or
    "text" (perplexity of prompt and answer, loglikelihood_rolling). Texts are put together as the corpus has them, with
    nothing between prompt and answer. With `per_group` there is one task `<name>::<group>` for each group, and `<name>`
    is their mean over questions. `split` is that of `ablate`.

    The YAML names its data by absolute paths; write it again after moving the folder.

    Raises CorpusError for an unknown `ask`, prompts of chat messages, and examples without choices where they are asked.
    """
    if ask not in ASKS:
        raise CorpusError(f"unknown ask {ask!r}; it is one of {', '.join(ASKS)}")
    asked = corpus.part(split, auto="test")
    parts = {group: asked.only(group) for group in asked.groups} if per_group else {"": asked}
    name = re.sub(r"\W+", "_", name or asked.name).strip("_") or "corpus"
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for group, part in parts.items():
        label = re.sub(r"\W+", "_", group)
        if any(task["task"] == label for task in tasks):
            raise CorpusError(f"two groups of {asked.name!r} are both {label!r} as names of files; rename one of them")
        data = folder / f"{name}{'.' * bool(label)}{label}.jsonl"
        rows = [json.dumps(_row(example, ask), ensure_ascii=False) for example in part]
        data.write_text("\n".join(rows) + "\n", encoding="utf-8")
        tasks.append(_task(label or name, data, ask, until, max_new_tokens, asked.hash))
    return _written(folder / f"{name}.yaml", _together(name, tasks, ask) if per_group else tasks[0])


def _row(example: Example, ask: str) -> dict[str, Any]:
    if not isinstance(example.prompt, str):
        raise CorpusError(
            f"example {example.id!r}: the prompt is a list of messages; a harness task needs plain text. Render it "
            "with your tokenizer's chat template first, or write a task with its own template"
        )
    row = {
        "id": example.id, "group": example.group, "item": example.item, "prompt": example.prompt,
        "answer": example.answer,
    }  # fmt: skip
    if ask == "choices":
        if len(example.choices) < 2:
            raise CorpusError(
                f"example {example.id!r} has {len(example.choices)} choices; ask='choices' needs at least two. Without "
                "choices, ask='answer', 'generate' or 'text' can be used"
            )
        row |= {"choices": list(example.choices), "answer_index": example.answer_index}
    return row


def _task(
    name: str, data: Path, ask: str, until: Sequence[str], max_new_tokens: int, corpus_hash: str
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", **_WAYS[ask], "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": how, "higher_is_better": better}
            for metric, (how, better) in _METRICS[ask].items()
        ],
        "metadata": {"version": 1.0, "corpus_hash": corpus_hash},
    }  # fmt: skip
    if ask == "generate":
        config["generation_kwargs"] = {"until": list(until), "max_gen_toks": max_new_tokens, "do_sample": False}
        config["filter_list"] = [
            {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ]
    return config


def _together(name: str, tasks: list[dict[str, Any]], ask: str) -> dict[str, Any]:
    means = [
        {"metric": metric, "aggregation": "mean", "weight_by_size": True}
        for metric, how in _METRICS[ask].items()
        if how == _MEAN
    ]
    together: dict[str, Any] = {"group": name, "task": tasks, "metadata": {"version": 1.0}}
    return together | ({"aggregate_metric_list": means} if means else {})


def _written(path: Path, config: dict[str, Any]) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
