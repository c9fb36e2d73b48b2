"""lm-evaluation-harness over a subject: any of its tasks, intact, with sets ablated, tuned, and with matched controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
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
from .harness_loading import loaded_tasks, the_harness
from .harness_process import Count, as_before
from .harness_results import gathered

if TYPE_CHECKING:
    from .harness_lm import Condition, SubjectLM

_OURS = ("model", "log_samples", "task_manager", "use_cache")


class Change(Protocol):
    """What tuning changed, such as a `Delta`: `applied` puts it on the subject while a block runs."""

    @property
    def subject(self) -> str: ...

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
    the_harness()
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
    harness = the_harness()
    if refused := sorted(set(_OURS) & set(options)):
        raise HarnessError(
            f"{refused[0]!r} is not to be given: evaluate sets it itself, and answers are not cached, since a cache "
            "would give the intact subject's answers to an ablated one"
        )
    runs = _runs(subject, off, deltas, controls, seed, intact)
    how = {"kind": kind, "factor": factor, "reference": reference, "seed": seed}
    asked = [tasks] if isinstance(tasks, str | Path | Mapping) else list(tasks)
    with as_before(), ExitStack() as stack:
        loaded = loaded_tasks(asked, [Path(folder) for folder in include], stack)
        count = Count(len(runs), progress)
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
            "versions": library_versions() | {"lm_eval": version("lm_eval")},
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
