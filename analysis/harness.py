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
from ..neurons.interventions import Kind, References, check_words
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .ablate import others_in_turn
from .controls import Drawing, Match, Sizes, activation_sizes, score_norms
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
    reference: References | None = None,
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
    reference: References | None = None,
    controls: int = 0,
    match: Match = "layer",
    scores: Scores | Sequence[Scores] | None = None,
    others: Mapping[str, NeuronSet] | None = None,
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
    random sets matched to it by layer and site. `match` asks for more, as in `ablate`: neurons of like `activation` (over
    `reference`, which this needs with every kind), of like `score` (of `scores`), or the sets of other `groups` (of
    `others`, by default of `off`). `kind`, `factor` and `reference` are those of `intervene`, `seed` that of the controls
    and of the interventions' draws; there is no `on`, since the harness puts prompt and answer into one pass. `limit`,
    `num_fewshot`, `bootstrap_iters` and `options` are those of
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
    check_words(kind)
    if limit is not None and limit <= 0:
        raise HarnessError(
            f"limit is {limit:g}; expected a number of documents of each task, 1 or more, or a share below 1"
        )
    sets = _named(off)
    controls, drawing = _drawing(sets, controls, match, scores=scores, others=others, reference=reference, seed=seed)
    runs = _runs(subject, sets, deltas, controls, drawing, others, intact)
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
            "reference": _names(reference), "controls": controls, "match": match, "seed": seed,
            "limit": limit, "batch_size": batch_size, "options": {key: str(value) for key, value in options.items()},
            "sets": {run.name: run.off.digest for run in runs if run.off is not None},
            "tasks": {name: str(config.get("dataset_path")) for name, config in results[0]["configs"].items()},
            "versions": library_versions() | {"lm_eval": version("lm_eval")},
        },
    )  # fmt: skip


def _named(off: NeuronSet | Mapping[str, NeuronSet] | None) -> dict[str, NeuronSet]:
    return {str(off.origin.get("group", "off")): off} if isinstance(off, NeuronSet) else dict(off or {})


def _names(reference: References | None) -> str | None:
    """What a reference is called, or those of several sites."""
    known = list(reference.values()) if isinstance(reference, Mapping) else [] if reference is None else [reference]
    return ", ".join(dict.fromkeys(one.name for one in known)) or None


def _drawing(
    sets: Mapping[str, NeuronSet],
    controls: int,
    match: Match,
    *,
    scores: Scores | Sequence[Scores] | None,
    others: Mapping[str, NeuronSet] | None,
    reference: References | None,
    seed: int,
) -> tuple[int, Drawing]:
    """How many controls a set has, and how they are drawn."""
    if controls < 0:
        raise SetError(f"controls is {controls}; expected how many random sets to draw for each set, 0 or more")
    sites = list(dict.fromkeys(one.site for one in sets.values()))
    sizes: Sizes | None = None
    if controls and match == "activation":
        known = reference if isinstance(reference, Mapping) else dict.fromkeys(sites, reference)
        sizes = activation_sizes({site: one for site, one in known.items() if one is not None})
    elif controls and match == "score":
        given = [scores] if isinstance(scores, Scores) else list(scores or ())
        sizes = score_norms([one for one in given if one.site in sites])
    if missing := [site for site in sites if sizes is not None and site not in sizes]:
        lacking = (
            "a reference: reference=npl.reference(...)"
            if match == "activation"
            else "scores: scores=npl.attribute(...)"
        )
        raise SetError(f"match={match!r} at site {missing[0]!r} needs {lacking}")
    if controls and match == "groups":
        controls = others_in_turn(controls, _pool(sets, others))
    return controls, Drawing(match, seed, sizes)


def _pool(sets: Mapping[str, NeuronSet], others: Mapping[str, NeuronSet] | None) -> dict[str, tuple[NeuronSet]]:
    """Every set that can be another's control, once, by its digest."""
    return {one.digest: (one,) for one in (*sets.values(), *(others or {}).values())}


def _runs(
    subject: Subject,
    sets: Mapping[str, NeuronSet],
    deltas: Mapping[str, Change] | None,
    controls: int,
    drawing: Drawing,
    others: Mapping[str, NeuronSet] | None,
    intact: bool,
) -> list[_Run]:
    """Every run with its condition, a set's controls behind it."""
    tuned = dict(deltas or {})
    taken = [*sets, *tuned, "intact"]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise SetError(f"two runs would be called {twice[0]!r}; give the set or the delta another name")
    runs = [_Run("intact", "intact")] if intact else []
    for name, neurons in sets.items():
        neurons.check(subject)
        owner = len(runs)
        runs.append(_Run(name, "off", off=neurons))
        apart = {digest: one for digest, one in _pool(sets, others).items() if digest != neurons.digest}
        for repeat in range(controls):
            (drawn,) = drawing.control(apart | {name: (neurons,)}, name=name, repeat=repeat)
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
