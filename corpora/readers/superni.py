"""Reader of Super-NaturalInstructions: task files with a definition, examples and instances; SAPT's folders of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha1
from pathlib import Path
from typing import Annotated, Any

from ..examples import CorpusError, Example
from ..files import files_in, read_json
from ..formats import Dropped, Reading, gather, register_format
from ..parts import evenly, parted, with_others_prompts

PARTS = ("train", "dev", "test")
LABELS = 20  # more different outputs than this are not labels to choose from
TEMPLATE = "{definition}\n{shots}\nInput: {input}\nOutput:"


def _looks(path: Path) -> bool:
    file = path if path.is_file() else next(_files(path), None)
    if file is None or file.suffix != ".json":
        return False
    try:
        with file.open(encoding="utf-8") as text:
            head = text.read(20_000)
    except (OSError, UnicodeDecodeError):
        return False
    return '"Definition"' in head or '"Positive Examples"' in head


@register_format(
    "superni",
    title="Super-NaturalInstructions: tasks/taskN_*.json, or TASK/train.json and test.json (SAPT)",
    source="https://github.com/allenai/natural-instructions",
    licence="Apache-2.0 (the instances keep their own terms)",
    looks=_looks,
)
def read_superni(
    path: Path,
    *,
    shots: Annotated[int, "Positive examples to show in the prompt."] = 0,
    most: Annotated[int | None, "Instances to take from a file, evenly spread; all by default."] = None,
    template: Annotated[str, "Prompt, with {definition}, {shots} and {input} in it."] = TEMPLATE,
) -> Reading:
    """Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705): a task's file, `tasks/`, or the repository.

    Also the layout that SAPT (Zhao et al. 2024, arXiv 2401.08295) cut from it for continual learning: a folder per task
    with `train.json` and `test.json`, which become the tag `split`; the task files alone make no split. The task is the
    group. A task whose outputs are at most 20 texts, each used five times on average, has them as choices; other tasks
    have none. Of several right outputs the first is the answer. The control gives another instance's input: it controls
    for the definition and the form, not for getting the output from the input. Dropped: instances without input or
    output, and what `most` leaves out is not counted as read. Raises CorpusError for files without these fields.
    """
    if "{input}" not in template:
        raise CorpusError(f"the template {template!r} has no {{input}} in it")
    files = list(_files(path)) if path.is_dir() else files_in(path)
    if not files:
        raise CorpusError(f"{path}: no tasks/*.json, task*.json or TASK/train.json in it")
    tasks: dict[str, list[tuple[Path, str | None]]] = {}
    for file in files:
        part = file.stem if file.stem in PARTS else None
        tasks.setdefault(file.parent.name if part else file.stem, []).append((file, part))
    rows = (row for task, found in tasks.items() for row in _task(task, found, shots, most, template))
    examples, dropped = parted(rows)
    several = sum("outputs" in row.tags for row in examples)
    notes = [f"{several} instances have more than one right output; the first is the answer (tag 'outputs')"] * bool(
        several
    )
    return gather(with_others_prompts(examples), name=path.stem, dropped=dropped, notes=notes)


def _files(path: Path) -> Iterator[Path]:
    """Task files and parts of tasks, in the folder or up to two below."""
    for pattern in (
        "tasks/task*.json",
        "task*.json",
        "train.json",
        "*/train.json",
        "*/*/train.json",
        "*/*/*/train.json",
    ):
        found = sorted(path.glob(pattern))
        if pattern.endswith("train.json"):
            found = [other for file in found for part in PARTS if (other := file.with_name(f"{part}.json")).is_file()]
        if found:
            yield from found
            return


def _task(
    task: str, files: Iterable[tuple[Path, str | None]], shots: int, most: int | None, template: str
) -> Iterator[Example | Dropped]:
    read = [(file, part, _whole(file)) for file, part in files]
    outputs = [output for _, _, whole in read for row in whole["Instances"] if (output := _outputs(row))]
    labels = tuple(sorted({output[0] for output in outputs}))
    labels = labels if 1 < len(labels) <= LABELS and len(outputs) >= 5 * len(labels) else ()
    for file, part, whole in read:
        shown = _shots(whole, shots, file)
        frame = {"definition": _joined(whole["Definition"]).strip(), "shots": shown}
        for number, row in evenly(list(enumerate(whole["Instances"], start=1)), most):
            where, found = f"{file}, instance {number}", _outputs(row)
            if not found or not isinstance(row.get("input"), str) or not row["input"].strip():
                yield Dropped(where, "no input or no output")
                continue
            prompt = template.format(**frame, input=row["input"].strip())
            tags = _tags(whole, task, part) | ({"outputs": str(len(found))} if len(found) > 1 else {})
            choices = tuple(f" {label}" for label in labels)
            place = labels.index(found[0]) if labels else None
            id = "/".join(filter(None, (task, part, str(row.get("id", number)))))
            tags["item"] = f"{task}/{sha1(row['input'].strip().encode()).hexdigest()[:12]}"
            yield Example(id, task, prompt, f" {found[0]}", choices, place, tags=tags)


def _whole(file: Path) -> Mapping[str, Any]:
    whole = read_json(file)
    for name in ("Definition", "Positive Examples", "Instances"):
        if not isinstance(whole, Mapping) or name not in whole:
            raise CorpusError(
                f"{file}: expected a task with the field {name!r}; is it a Super-NaturalInstructions file?"
            )
    if not isinstance(whole["Instances"], list) or not all(isinstance(row, Mapping) for row in whole["Instances"]):
        raise CorpusError(f"{file}: expected a list of objects under 'Instances'")
    return whole


def _outputs(row: Mapping[str, Any]) -> list[str]:
    """The right outputs that are not empty; a single text counts as a list of one."""
    output = row.get("output")
    given = [output] if isinstance(output, str) else output if isinstance(output, list) else []
    return [one.strip() for one in given if isinstance(one, str) and one.strip()]


def _shots(whole: Mapping[str, Any], num: int, file: Path) -> str:
    shown = whole["Positive Examples"][:num]
    if len(shown) < num:
        raise CorpusError(f"{file}: {len(shown)} positive examples, expected {num} to show; give fewer shots")
    return "".join(
        f"\nInput: {_joined(one['input']).strip()}\nOutput: {_joined(one['output']).strip()}\n" for one in shown
    )


def _tags(whole: Mapping[str, Any], task: str, part: str | None) -> dict[str, str]:
    tags = {
        "task": task,
        "language": _joined(whole.get("Input_language"), ","),
        "topic": _joined(whole.get("Categories"), ", "),
    }
    target = _joined(whole.get("Output_language"), ",")
    tags |= {"target": target} if target != tags["language"] else {}
    return {name: value for name, value in tags.items() if value} | ({"split": part} if part else {})


def _joined(value: Any, mark: str = " ") -> str:
    return value if isinstance(value, str) else mark.join(map(str, value or ()))
