"""Tasks of lm-evaluation-harness by name, file or dictionary, with their data; the hub is left alone where it can be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from .evaluation import HarnessError

_LOCAL = ("json", "csv", "parquet", "text", "arrow")  # dataset builders of `datasets` that read files as they are


def the_harness() -> Any:
    """The package `lm_eval`. Raises HarnessError that says how to get it."""
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise HarnessError("tasks need lm-evaluation-harness; pip install 'neuropolis[harness]'") from error
    return lm_eval


def loaded_tasks(asked: Sequence[Any], include: Sequence[Path], stack: ExitStack) -> list[Any]:
    """The tasks and groups asked for, with their data; the hub is out of reach where all data are local."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    for folder in include:
        if not folder.is_dir():
            raise HarnessError(f"no folder {folder} to include; expected one that holds tasks' YAML files")
    folders: list[Any] = [str(folder) for folder in include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    files = [spec for spec in asked if not isinstance(spec, Mapping) and Path(spec).suffix in (".yaml", ".yml")]
    names = [str(spec) for spec in asked if not isinstance(spec, Mapping) and spec not in files]
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
        for name in names:
            if name not in manager.all_tasks:
                near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, n=3)) or "nothing"
                raise HarnessError(
                    f"no task {name!r} in lm-evaluation-harness (near it: {near}); give a name that 'lm_eval ls tasks' "
                    "lists or the path of a task's YAML file (npl.harness_task writes one)"
                )
    written = {str(file): _registered(Path(file), manager) for file in files}
    specs = [dict(spec) if isinstance(spec, Mapping) else written.get(str(spec), str(spec)) for spec in asked]
    if all(_is_local(spec, manager.task_index) for spec in specs):
        stack.enter_context(_without_hub())
    try:
        loaded = manager.load(specs)
    except (OSError, ValueError, KeyError) as error:
        raise HarnessError(
            f"the harness cannot load {', '.join(str(spec) for spec in specs)}: {error}. Check the YAML and that its data can "
            "be reached; tasks on local files are written by npl.harness_task"
        ) from error
    groups = loaded.get("groups", {})
    inner = {name for group in groups.values() for name in group.child_names}
    whole = [group for name, group in groups.items() if name not in inner]
    return whole + [task for name, task in loaded["tasks"].items() if name not in inner]


def _registered(file: Path, manager: Any) -> str:
    """The name of the task or group in a YAML file, made known to the manager, which takes only tasks by their path."""
    from lm_eval.tasks._index import TaskIndex  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks._yaml_loader import load_yaml  # pyright: ignore[reportMissingImports]
    from yaml import YAMLError

    if not file.is_file():
        raise HarnessError(f"no task file {file}; expected a YAML file of lm-evaluation-harness")
    try:
        config = load_yaml(file.resolve(), resolve_func=False)
        name = config["group"] if "group" in config else config["task"]
        manager.task_index.pop(name, None)
        TaskIndex.process_cfg(config, file.resolve(), manager.task_index)
    except (KeyError, TypeError, ValueError, YAMLError) as error:
        raise HarnessError(
            f"{file} is no task of lm-evaluation-harness ({error}); expected 'task' or 'group' in it"
        ) from error
    return str(name)


def _is_local(spec: str | Mapping[str, Any], index: Mapping[str, Any]) -> bool:
    """Whether a task's or a group's data are files that are here."""
    if isinstance(spec, str):
        entry = index.get(spec)
        if entry is None or not entry.cfg:
            return False
        return _is_local(entry.cfg, index)
    members = spec.get("task")
    if isinstance(members, list):
        return all(_is_local(member if isinstance(member, str) else {**spec, **member}, index) for member in members)
    source, options = str(spec.get("dataset_path")), spec.get("dataset_kwargs") or {}
    return (source in _LOCAL and "://" not in str(options)) or Path(source).exists()


@contextmanager
def _without_hub() -> Iterator[None]:
    """While the block runs, nothing is asked of the hub: what is needed is there, and a network may not be."""
    switches: list[Any] = [import_module(name) for name in ("huggingface_hub.constants", "datasets.config")]
    kept = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, before in zip(switches, kept, strict=True):
            switch.HF_HUB_OFFLINE = before
