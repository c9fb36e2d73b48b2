"""`attribute`: scores of every group, by one method or several, in one pass wherever they can share it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from jaxtyping import Int
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import library_versions
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.sites import Site
from ..neurons.subject import Subject, tokenizer_fingerprint
from . import activity, coalition, entropy, exact, paths, relevance  # noqa: F401  (their methods are registered on import)
from .encoding import PaddingSide, encode_corpus
from .engine import Job, NotFinite, NotFiniteRule, Progress, Reading, one_pass
from .memory import TooLarge
from .methods import TOKEN_REDUCTIONS, Method, TokenReduction, method_named
from .objectives import ObjectiveName, objective_named, prepare
from .resume import Checkpoint, states
from .sums import Sums


class Settings(TypedDict, total=False):
    """The arguments of `attribute` that do not change what it returns."""

    objective: ObjectiveName
    tokens: TokenReduction
    controls: bool
    split: str | None
    min_examples: int
    max_tokens: int
    padding_side: PaddingSide
    on_not_finite: NotFiniteRule
    keep_rows: bool
    options: Mapping[str, Any] | None
    recompute: bool | None
    checkpoint: str | Path | Checkpoint | None
    checkpoint_every: float
    progress: Progress | None


@overload
def attribute(
    subject: Subject, corpus: Corpus, *, method: str = ..., site: str = ..., **settings: Unpack[Settings]
) -> Scores: ...


@overload
def attribute(
    subject: Subject,
    corpus: Corpus,
    *,
    methods: Sequence[str],
    site: str | Sequence[str] = ...,
    **settings: Unpack[Settings],
) -> dict[str, Scores]: ...


@overload
def attribute(
    subject: Subject, corpus: Corpus, *, method: str = ..., site: Sequence[str], **settings: Unpack[Settings]
) -> dict[str, Scores]: ...


def attribute(
    subject: Subject,
    corpus: Corpus,
    *,
    method: str = "taylor",
    methods: Sequence[str] | None = None,
    site: str | Sequence[str] = "mlp",
    objective: ObjectiveName = "loss",
    tokens: TokenReduction = "sum",
    controls: bool = False,
    split: str | None = "auto",
    min_examples: int = 2,
    max_tokens: int = 4096,
    padding_side: PaddingSide = "right",
    on_not_finite: NotFiniteRule = "stop",
    keep_rows: bool = False,
    options: Mapping[str, Any] | None = None,
    recompute: bool | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    checkpoint_every: float = 30.0,
    progress: Progress | None = None,
) -> Scores | dict[str, Scores]:
    """Score how much each group of a corpus depends on each neuron of a site, all groups in one pass.

    The score of an example is the method's contribution reduced over tokens: `sum` (signed, the default: for `taylor` the
    first-order effect of silencing the neuron everywhere), `abs` (sum of absolute values), `mean`, or `max` (over real
    tokens, as CULNIG does). `values` is the mean over a group's examples of its absolute value, `signed` the mean with the
    sign, positive where the neuron helps.

    `methods` and a sequence of sites score several at once and give a dict: keyed by method, by site, or by "method/site"
    where both are several. Methods that read from a forward or a backward share one pass, whatever the sites.
    `options` are further arguments of methods that take some.

    With `controls`, the control twins are scored in the same pass, for selection by contrast against them. `keep_rows`
    keeps every example's score (`Scores.rows`), which stability and permutation need.
    `split="auto"` takes the examples tagged `split: train` where the corpus has splits, so that effects can be measured
    on others; None takes all of them.

    `recompute` runs each block's forward again in the backward instead of keeping its activations (gradient checkpointing),
    for long contexts; an offloaded subject always does. Under `torchrun` or `accelerate launch` the shared pass splits its
    batches over the processes, and each of them returns the scores over all.

    `checkpoint` names a file that keeps the state of the pass, at most every `checkpoint_every` seconds. The same call goes on
    from there after an interruption, batch by batch, and gives the same scores; the file goes when the call is done. Where the
    methods need several passes, each has a file of its own (`run`, `run.2`, ...). Registered methods that read the subject
    start over.

    Raises CorpusError for a group of fewer than `min_examples` examples, and when an example's objective or score is not
    finite; with `on_not_finite="skip"` such examples are left out, and `origin["skipped"]` names them. Raises CheckpointError
    for a checkpoint that is damaged or of another run, and TooLarge for an example that does not fit in memory.
    """
    corpus = corpus.part(split, auto="train")
    _check_groups(corpus, min_examples)
    if tokens not in TOKEN_REDUCTIONS:
        raise ValueError(f"unknown token reduction {tokens!r}; reductions are {', '.join(TOKEN_REDUCTIONS)}")
    if isinstance(methods, str):
        raise ValueError(
            f"methods is {methods!r}; expected several names, such as [{methods!r}], or method={methods!r}"
        )
    chosen = [method_named(name) for name in ([method] if methods is None else methods)]
    sites = [subject.site(name) for name in ([site] if isinstance(site, str) else site)]
    if not chosen or not sites:
        raise ValueError("no method or no site is given; name at least one of each")
    _check_options(chosen, options or {})
    _check_methods(chosen, corpus, objective)
    goal = objective_named(objective)
    scored = Corpus((*corpus, *corpus.controls()), name=corpus.name) if controls else corpus
    encoded, contrasts = prepare(subject, scored, encode_corpus(subject, scored), goal)
    groups = _group_rows(corpus, controls)
    job = Job(
        subject, encoded, groups, len(corpus.groups) * (1 + controls), goal, contrasts,
        max_tokens=max_tokens, padding_side=padding_side, on_not_finite=on_not_finite, progress=progress, recompute=recompute,
        twins_from=len(corpus.groups), tokens=tokens, keep_rows=keep_rows,
    )  # fmt: skip
    asked = _Asked(
        subject, corpus, scored, groups, controls, min_examples, keep_rows,
        _origin(subject, corpus, split, tokens, options),
    )  # fmt: skip
    places = {(m.name, s.name): s if m.place is None else m.place(subject, s) for m in chosen for s in sites}
    readings = [
        Reading(m, places[m.name, s.name], tokens, keep_rows or m.rows is not None)
        for m in chosen
        for s in sites
        if m.shared
    ]
    keeper, ours = _keeper(checkpoint, checkpoint_every, chosen)
    passes = states(keeper, alone=bool(readings) + len(chosen) * len(sites) - len(readings) == 1)
    try:
        shared = iter(one_pass(job, readings, checkpoint=next(passes)) if readings else ())
        found = {}
        for m in chosen:
            for s in sites:
                sums = next(shared) if m.shared else _own_passes(m, job, s, asked, options or {}, passes)
                found[m.name, s.name] = _scores(sums, m, s, objective, asked)
    except NotFinite as error:
        raise _not_finite(error, scored) from error
    except TooLarge as error:
        error.args = (
            f"example {scored[error.row].id!r} does not fit in memory alone; shorten it, set recompute, load the subject in a "
            "narrower dtype, or offload it",
        )
        raise
    if keeper is not None and ours:
        keeper.remove()
    if methods is None and isinstance(site, str):
        return found[method, site]
    many = methods is not None and not isinstance(site, str)
    return {f"{m}/{s}" if many else m if methods is not None else s: one for (m, s), one in found.items()}


def _keeper(
    checkpoint: str | Path | Checkpoint | None, every: float, methods: Sequence[Method]
) -> tuple[Checkpoint | None, bool]:
    """Where the passes keep their states, and whether that is ours to remove when all methods are done."""
    if checkpoint is None:
        return None, False
    if all(method.reads == "subject" for method in methods):
        raise ValueError("there is nothing that a checkpoint could keep: these methods read the subject by themselves")
    if isinstance(checkpoint, Checkpoint):
        return checkpoint, not checkpoint.keep
    return Checkpoint(Path(checkpoint), every=every), True


@dataclass(frozen=True, eq=False)
class _Asked:
    """What was asked for, as the scores must know it."""

    subject: Subject
    corpus: Corpus
    scored: Corpus
    groups: Int[Tensor, " example"]
    controls: bool
    min_examples: int
    keep_rows: bool
    origin: dict[str, Any]


def _own_passes(
    method: Method,
    job: Job,
    site: Site,
    asked: _Asked,
    options: Mapping[str, Any],
    passes: Iterator[Checkpoint | None],
) -> Sums:
    """The sums of a method that does not share the pass."""
    if method.reads == "job":
        known = _options(method)
        given = {key: options[key] for key in known if key in options}
        return method.function(replace(job, options=_plain(known | given), checkpoint=next(passes)), site, **given)
    if asked.controls:
        raise ValueError(f"method {method.name!r} scores no control twins; leave controls out or take another method")
    wanted = {"site": site.name} if "site" in inspect.signature(method.function).parameters else {}
    values = method.function(asked.subject, asked.corpus, **wanted)
    shape = [len(asked.corpus.groups), site.num_layers, site.width]
    if not isinstance(values, Tensor) or list(values.shape) != shape:
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"method {method.name!r} gave {found}; expected a tensor [group, layer, neuron] {shape}")
    counts = torch.tensor(list(asked.corpus.counts.values()))
    weight, values = counts[:, None, None], values.detach().cpu().float()
    return Sums(
        values.abs() * weight, values * weight, values.square() * weight, counts, counts,
        torch.ones(len(asked.corpus), dtype=torch.bool),
    )  # fmt: skip


def _scores(sums: Sums, method: Method, site: Site, objective: str, asked: _Asked) -> Scores:
    values, signed, squares = sums.means(method.over)
    groups, number = asked.corpus.groups, len(asked.corpus.groups)
    counts = sums.counts[:number]
    for group, count in zip(groups, counts.tolist(), strict=True):
        if count < asked.min_examples:
            raise CorpusError(
                f"group {group!r} has {count} examples left after those that are not finite were skipped, expected at least "
                f"{asked.min_examples}; check the model's weights and dtype"
            )
    for group, count in zip(groups, sums.counts[number:].tolist(), strict=False):
        if count == 0:
            raise CorpusError(
                f"no control twin of group {group!r} is left after those that are not finite were skipped; check the model's "
                "weights and dtype, or leave controls out"
            )
    if method.finish is not None or method.rows is not None:
        # own groups and control twins apart: what compares groups must not see both
        signed = torch.cat(
            [_finished(method, sums, signed, part, site, asked) for part in _halves(len(signed), number)]
        )
        values, squares = signed.abs(), torch.full_like(signed, torch.nan)
    if not bool(torch.isfinite(values).all()):
        if method.reads == "subject":
            raise CorpusError(f"method {method.name!r} gave scores that are not finite; its function must give numbers")
        raise CorpusError(f"scores of {method.name!r} overflow although every example's is finite; load a wider dtype")
    extra: dict[str, Tensor] = {}
    if asked.controls:
        extra = {"control_values": values[number:], "control_signed": signed[number:]}
    own = sums.scored[: len(asked.corpus)]
    if sums.rows is not None and asked.keep_rows:
        numbers: dict[str, int] = {}
        items = torch.tensor([numbers.setdefault(e.item, len(numbers)) for e in asked.corpus])
        extra |= {
            "rows": sums.rows[: len(own)][own],
            "row_groups": asked.groups[: len(own)][own],
            "row_items": items[own],
        }
        if asked.controls:
            twins = sums.scored[len(own) :]
            extra |= {
                "control_rows": sums.rows[len(own) :][twins],
                "control_groups": asked.groups[: len(own)][twins],
                "control_items": items[twins],
            }
    left_out = [asked.scored[row].id for row in (~sums.scored).nonzero().flatten().tolist()]
    origin = asked.origin | sums.told() | ({"skipped": left_out} if left_out else {})
    return Scores(
        site.name, asked.subject.fingerprint, groups, values[:number], signed[:number], squares[:number], counts,
        method=method.name, objective=objective, origin=origin, **extra,
    )  # fmt: skip


def _halves(rows: int, number: int) -> list[range]:
    return [range(first, first + number) for first in range(0, rows, number)]


def _finished(method: Method, sums: Sums, signed: Tensor, part: range, site: Site, asked: _Asked) -> Tensor:
    """The method's own last step, on these groups."""
    if method.finish is not None:
        return method.finish(signed[part.start : part.stop], site)
    assert method.rows is not None
    assert sums.rows is not None
    inside = sums.scored & (asked.groups >= part.start) & (asked.groups < part.stop)
    return method.rows(sums.rows[inside], asked.groups[inside] - part.start, len(part))


def _check_groups(corpus: Corpus, min_examples: int) -> None:
    for group, count in corpus.counts.items():
        if count < min_examples:
            raise CorpusError(
                f"group {group!r} has {count} example{'s' if count > 1 else ''}, expected at least {min_examples}; "
                "add examples, leave the group out, or lower min_examples"
            )


def _check_methods(methods: Sequence[Method], corpus: Corpus, objective: str) -> None:
    for method in methods:
        if method.objective not in (None, objective):
            raise ValueError(
                f"method {method.name!r} is defined for objective {method.objective!r}, not {objective!r}; "
                f"give objective={method.objective!r}"
            )
        if len(corpus.groups) < method.min_groups:
            raise CorpusError(
                f"method {method.name!r} compares groups and needs at least {method.min_groups}, the corpus has "
                f"{', '.join(corpus.groups)} alone; add groups or take another method"
            )


def _options(method: Method) -> dict[str, Any]:
    """Keyword-only parameters of a method with passes of its own, and their defaults."""
    parameters = inspect.signature(method.function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} if method.reads == "job" else {}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they can be written down."""
    return {key: value.digest if isinstance(value, NeuronSet) else value for key, value in options.items()}


def _check_options(methods: Sequence[Method], options: Mapping[str, Any]) -> None:
    known = {name for method in methods for name in _options(method)}
    for key in options:
        if key not in known:
            names = ", ".join(method.name for method in methods)
            raise ValueError(f"{key!r} is no option of {names}; options are {', '.join(sorted(known)) or '(none)'}")


def _not_finite(error: NotFinite, scored: Corpus) -> CorpusError:
    names = ", ".join(repr(scored[row].id) for row in error.rows[:5])
    return CorpusError(
        f"the {error.what} of {len(error.rows)} example(s) is not finite (NaN or Inf): {names}; check the model's weights and "
        'dtype on these examples, leave them out, or let on_not_finite="skip" do so'
    )


def _origin(
    subject: Subject, corpus: Corpus, split: str | None, tokens: str, options: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "corpus": corpus.name, "corpus_hash": corpus.hash, "examples": [e.id for e in corpus], "split": split,
        "tokens": tokens, "example_reduction": "mean of |score|", "dtype": str(subject.dtype),
        "options": _plain(options or {}),
        "subject_name": subject.name, "tokenizer": tokenizer_fingerprint(subject.tokenizer), "versions": library_versions(),
    }  # fmt: skip


def _group_rows(corpus: Corpus, controls: bool) -> Int[Tensor, " example"]:
    """Group of every example; a control twin's is its question's plus the number of groups."""
    number = {group: index for index, group in enumerate(corpus.groups)}
    rows = torch.tensor([number[e.group] for e in corpus])
    return torch.cat([rows, rows + len(number)]) if controls else rows
