"""lm-evaluation-harness over a subject: any of its tasks, intact, with sets ablated, tuned, and with matched controls."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..neurons.atlas import library_versions
from ..neurons.errors import SetError
from ..neurons.firing import intervene_watched
from ..neurons.interventions import Kind, Reference
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .ablate import control
from .evaluation import Evaluation, HarnessError
from .harness_results import gathered

if TYPE_CHECKING:
    from .harness_lm import Condition, SubjectLM

_OURS = ("model", "tasks", "limit", "num_fewshot", "bootstrap_iters", "log_samples", "task_manager", "use_cache")
_LOCAL = ("json", "csv", "parquet", "text", "arrow")  # dataset builders of `datasets` that read files as they are


class Change(Protocol):
    """What tuning changed, such as a `Delta`: `applied` puts it on the subject while a block runs."""

    subject: str

    def applied(self, subject: Subject) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class _Run:
    name: str
    condition: str
    off: NeuronSet | None = None
    delta: Change | None = None
    control_of: int = -1


def as_lm(
    subject: Subject,
    *,
    off: NeuronSet | None = None,
    delta: Change | None = None,
    kind: Kind = "zero",
    factor: float = 2.0,
    reference: Reference | None = None,
    seed: int = 0,
    batch_size: int = 8,
    bars: bool = True,
    **options: Any,
) -> SubjectLM:
    """The subject as a model of lm-evaluation-harness: `lm_eval.simple_evaluate(model=npl.as_lm(...), tasks=[...])`.

    It is the harness's HFLM over the subject's module and tokenizer; nothing is loaded again. While it answers requests
    of any type, the set `off` is ablated as `intervene` does with `kind`, `factor`, `reference` and `seed`, and `delta`
    is applied; between requests the subject is untouched. `options` go to HFLM (`max_length`, `add_bos_token`, ...).

    Raises HarnessError without `lm_eval`; SetError or DeltaError for a set or delta of another subject; and, when
    requests are answered, SubjectError where a hook of the intervention did not fire.
    """
    _lm_eval()
    from .harness_lm import SubjectLM

    if off is not None:
        off.check(subject)
    if delta is not None and delta.subject != subject.fingerprint:
        raise SetError(f"the delta belongs to subject {delta.subject}, but {subject.name!r} is {subject.fingerprint}")
    how = {"kind": kind, "factor": factor, "reference": reference, "seed": seed}
    return SubjectLM(
        subject, condition=_condition(subject, off, delta, how), bars=bars, batch_size=batch_size, **options
    )


def evaluate(
    subject: Subject,
    tasks: str | Path | Mapping[str, Any] | Sequence[Any],
    *,
    off: NeuronSet | Mapping[str, NeuronSet] | None = None,
    deltas: Mapping[str, Change] | None = None,
    kind: Kind = "zero",
    factor: float = 2.0,
    reference: Reference | None = None,
    controls: int = 0,
    seed: int = 0,
    intact: bool = True,
    include: Sequence[str | Path] = (),
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    bootstrap_iters: int = 1000,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Run tasks of lm-evaluation-harness on a subject: intact, with each set off, with each delta, and with controls.

    `tasks` are the harness's names, YAML files (see `harness_task`), or configs as dictionaries; `include` are further
    folders of YAML files. Every set of `off` and every delta has a run of its own; each set also has `controls` runs of
    random sets matched to it by layer and site. `kind`, `factor` and `reference` are those of `intervene`, `seed` that of
    the controls and of the interventions' draws. `limit`, `num_fewshot`, `bootstrap_iters` and `options` are those of
    `lm_eval.simple_evaluate`. `progress(done, total)` counts requests. Where every task's data are local files, the hub
    is not asked. The subject and the random states of Python, numpy and torch are left as they were.

    Raises HarnessError without `lm_eval`, for unknown tasks and for data that cannot be had; SetError for a set of another
    subject; SubjectError where a hook of an intervention did not fire.
    """
    harness = _lm_eval()
    if refused := sorted(set(_OURS[:2] + _OURS[5:]) & set(options)):
        raise HarnessError(
            f"{refused[0]!r} is not to be given: evaluate sets it itself, and answers are not cached, since a cache "
            "would give the intact subject's answers to an ablated one"
        )
    runs = _runs(subject, off, deltas, controls, seed, intact)
    how = {"kind": kind, "factor": factor, "reference": reference, "seed": seed}
    asked = [tasks] if isinstance(tasks, str | Path | Mapping) else list(tasks)
    with _as_before(), ExitStack() as stack:
        loaded = _loaded(asked, [Path(folder) for folder in include], stack)
        count = _Count(len(runs), progress)
        results = []
        for run in runs:
            lm = as_lm(subject, off=run.off, delta=run.delta, batch_size=batch_size, bars=progress is None, **how)
            count.follow(lm)
            try:
                found = harness.simple_evaluate(
                    model=lm, tasks=list(loaded), limit=limit, num_fewshot=num_fewshot, log_samples=True,
                    bootstrap_iters=bootstrap_iters, **options,
                )  # fmt: skip
            except AssertionError as error:
                raise HarnessError(f"the harness cannot run these tasks on {subject.name!r}: {error}") from error
            results.append(found)
    names = [run.name for run in runs]
    cells, arrays = gathered(results, names)
    return Evaluation(
        subject.fingerprint, tuple(names), tuple(run.condition for run in runs),
        torch.tensor([run.control_of for run in runs]), cells, **arrays,
        origin={
            "kind": kind, "factor": factor if kind in ("scale", "noise") else None,
            "reference": None if reference is None else reference.name, "controls": controls, "seed": seed,
            "limit": limit, "batch_size": batch_size, "options": {key: str(value) for key, value in options.items()},
            "sets": {run.name: run.off.digest for run in runs if run.off is not None},
            "tasks": {name: str(config.get("dataset_path")) for name, config in results[0]["configs"].items()},
            "versions": library_versions() | {"lm_eval": results[0].get("lm_eval_version")},
        },
    )  # fmt: skip


def _runs(
    subject: Subject,
    off: NeuronSet | Mapping[str, NeuronSet] | None,
    deltas: Mapping[str, Change] | None,
    controls: int,
    seed: int,
    intact: bool,
) -> list[_Run]:
    """Every run with its condition, a set's controls behind it."""
    if controls < 0:
        raise SetError(f"controls is {controls}; expected how many random sets to draw for each set, 0 or more")
    sets = {str(off.origin.get("group", "off")): off} if isinstance(off, NeuronSet) else dict(off or {})
    tuned = dict(deltas or {})
    taken = [*sets, *tuned, "intact"]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise SetError(f"two runs would be called {twice[0]!r}; give the set or the delta another name")
    runs = [_Run("intact", "intact")] if intact else []
    for name, neurons in sets.items():
        neurons.check(subject)
        owner = len(runs)
        runs.append(_Run(name, "off", off=neurons))
        for repeat in range(controls):
            drawn = control(neurons, name=name, repeat=repeat, seed=seed)
            runs.append(_Run(f"{name} control {repeat + 1}", "control", off=drawn, control_of=owner))
    runs += [_Run(name, "delta", delta=delta) for name, delta in tuned.items()]
    if not runs:
        raise SetError("nothing to run; leave intact=True, or give sets (off) or deltas")
    return runs


def _condition(subject: Subject, off: NeuronSet | None, delta: Change | None, how: Mapping[str, Any]) -> Condition:
    @contextmanager
    def condition() -> Iterator[None]:
        with ExitStack() as stack:
            if delta is not None:
                stack.enter_context(delta.applied(subject))
            if off is not None:
                stack.enter_context(intervene_watched(subject, off, **how))
            yield

    return condition


class _Count:
    """Answered requests of all runs, as (done, total); the total is an estimate until the first run ends."""

    def __init__(self, runs: int, progress: Callable[[int, int], None] | None) -> None:
        self.runs, self.progress, self.done, self.begun, self.run = runs, progress, 0, 0, 0

    def follow(self, lm: SubjectLM) -> None:
        if self.progress is None:
            return
        from .harness_lm import Answered

        self.run += 1
        lm.set_cache_hook(Answered(self._one))
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(lm, name, self._announced(getattr(lm, name)))

    def _announced(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def announced(requests: list[Any], **how: Any) -> Any:
            self.begun += len(requests)
            return answer(requests, **how)

        return announced

    def _one(self) -> None:
        assert self.progress is not None
        self.done += 1
        self.progress(min(self.done, self.begun), self.begun * self.runs // self.run)


def _loaded(asked: Sequence[Any], include: Sequence[Path], stack: ExitStack) -> list[Any]:
    """The tasks and groups asked for, with their data; the hub is out of reach where all data are local."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    for folder in include:
        if not folder.is_dir():
            raise HarnessError(f"no folder {folder} to include; expected one that holds tasks' YAML files")
    folders = [str(folder) for folder in include]
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
        spec = entry.cfg
    members = spec.get("task")  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(members, list):
        return all(_is_local(member if isinstance(member, str) else {**spec, **member}, index) for member in members)  # pyright: ignore[reportGeneralTypeIssues]
    source, options = str(spec.get("dataset_path")), spec.get("dataset_kwargs") or {}  # pyright: ignore[reportAttributeAccessIssue]
    return (source in _LOCAL and "://" not in str(options)) or Path(source).exists()


@contextmanager
def _without_hub() -> Iterator[None]:
    """While the block runs, nothing is asked of the hub: what is needed is there, and a network may not be."""
    import datasets
    import huggingface_hub.constants as hub

    kept = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE  # pyright: ignore[reportAttributeAccessIssue]
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = kept  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _as_before() -> Iterator[None]:
    """The harness seeds every generator, prints, and starts processes to resample; here it does none of it for good."""
    import numpy as np

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = single


def _lm_eval() -> Any:
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise HarnessError("tasks need lm-evaluation-harness; pip install 'neuropolis[harness]'") from error
    return lm_eval
