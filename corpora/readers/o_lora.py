"""Reader of the continual-learning benchmarks in O-LoRA's file layout: a folder for every task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from ..examples import Corpus, CorpusError, Example
from ..files import read_json
from ..formats import Dropped, Reading, gather, register_format
from ..parts import parted

PARTS = ("train", "dev", "test")
UNDECIDED = "-"  # MNLI's rows on which its annotators did not agree
TEMPLATE = "{sentence}\nOptions: {options}\nAnswer:"


def is_o_lora(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of this layout: a `labels.json` stands in it or up to three folders below."""
    return Path(path).is_dir() and next(_labels(Path(path)), None) is not None


def read_o_lora(path: str | os.PathLike[str], *, template: str = TEMPLATE) -> Corpus:
    """The corpus in a folder of O-LoRA's layout (Wang et al. 2023, arXiv 2310.14152): `<category>/<task>/<file>.json`.

    A task's folder holds `labels.json` (a list of labels) and `train.json`, `dev.json` or `test.json` (lists of objects
    with `sentence` and `label`); a part that is not there is left out. The path may be the clone, the benchmark, a category
    or a task. A task becomes a group under its folder's name, its labels the choices, and its parts the tag `split`. The
    prompt is `template` with the sentence (without its last line ends) and the labels, the answer a space and the label.
    The wording is this toolkit's; the authors' differs by task. Rows with the label "-" (MNLI: no gold label) are left out.

    Raises CorpusError with the file and the row for what is not as described.
    """
    return read_o_lora_files(Path(path), template=template).corpus


@register_format(
    "o-lora",
    title="continual-learning benchmarks in O-LoRA's layout (CATEGORY/TASK/train.json, labels.json)",
    source="https://github.com/cmnfriend/O-LoRA",
    licence="MIT (the corpora keep their own terms)",
    looks=is_o_lora,
)
def read_o_lora_files(
    path: Path, *, template: Annotated[str, "Prompt, with {sentence} and {options} in it."] = TEMPLATE
) -> Reading:
    """A folder of this layout with the rows left out (label "-": its annotators did not agree); see `read_o_lora`."""
    root = path
    dropped: list[Dropped] = []
    if "{sentence}" not in template:
        raise CorpusError(f"the template {template!r} has no {{sentence}} in it")
    examples: list[Example] = []
    for file in _labels(root):
        folder, labels = file.parent, _label_list(file)
        found = [part for part in PARTS if (folder / f"{part}.json").is_file()]
        if not found:
            raise CorpusError(f"{folder}: holds labels.json but none of {', '.join(f'{part}.json' for part in PARTS)}")
        for part in found:
            kept, left = parted(_examples(folder / f"{part}.json", folder.name, part, labels, template))
            examples += kept
            dropped += left
    if not examples and not dropped:
        raise CorpusError(
            f"{root}: no labels.json in it or up to three folders below; expected a benchmark in O-LoRA's layout"
        )
    return gather(examples, name=root.name, dropped=dropped)


def _labels(root: Path) -> Iterator[Path]:
    for pattern in ("labels.json", "*/labels.json", "*/*/labels.json", "*/*/*/labels.json"):
        yield from sorted(root.glob(pattern))


def _label_list(file: Path) -> list[str]:
    labels = read_json(file)
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(one, str) and one for one in labels):
        raise CorpusError(f"{file}: expected a list of two or more labels, found {str(labels)[:80]}")
    return labels


def _examples(file: Path, task: str, part: str, labels: list[str], template: str) -> Iterator[Example | Dropped]:
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise CorpusError(f"{file}: expected a list of rows with 'sentence' and 'label', found {str(rows)[:80]}")
    choices = tuple(f" {label}" for label in labels)
    for number, row in enumerate(rows, start=1):
        sentence = row.get("sentence") if isinstance(row, dict) else None
        if not isinstance(sentence, str) or not sentence.strip():
            raise CorpusError(f"{file}, row {number}: expected a text under 'sentence', found {str(row)[:80]}")
        if row.get("label") == UNDECIDED:
            yield Dropped(f"{file}, row {number}", f"the label {UNDECIDED!r}: its annotators did not agree")
            continue
        if row.get("label") not in labels:
            raise CorpusError(
                f"{file}, row {number}: label {row.get('label')!r} is none of those in labels.json: {', '.join(labels)}"
            )
        place = labels.index(row["label"])
        prompt = template.format(sentence=sentence.rstrip("\n"), options=", ".join(labels))
        yield Example(
            f"{task}/{part}/{number}", task, prompt, choices[place], choices, place, tags={"split": part, "task": task}
        )
