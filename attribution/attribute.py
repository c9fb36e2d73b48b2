"""`attribute`: scores of every group in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import library_versions
from ..neurons.scores import Scores
from ..neurons.subject import Subject, tokenizer_fingerprint
from .encoding import PaddingSide, encode_corpus
from .engine import TOKEN_REDUCTIONS, NotFinite, Progress, Sums, TokenReduction, one_pass
from .methods import method_named
from .objectives import ObjectiveName, objective_named, prepare


def attribute(
    subject: Subject,
    corpus: Corpus,
    *,
    method: str = "taylor",
    site: str = "mlp",
    objective: ObjectiveName = "loss",
    tokens: TokenReduction = "sum",
    controls: bool = False,
    split: str | None = "auto",
    min_examples: int = 2,
    max_tokens: int = 4096,
    padding_side: PaddingSide = "right",
    progress: Progress | None = None,
) -> Scores:
    """Score how much each group of a corpus depends on each neuron of a site, all groups in one pass.

    The score of an example is the method's contribution reduced over tokens: `sum` (signed, the default: for `taylor` the
    first-order effect of silencing the neuron everywhere), `abs` (sum of absolute values), `mean`, or `max` (over real
    tokens, as CULNIG does). `values` is the mean over a group's examples of its absolute value, `signed` the mean with the
    sign, positive where the neuron helps.

    With `controls`, the control twins are scored in the same pass, for selection by contrast against them.
    `split="auto"` takes the examples tagged `split: train` where the corpus has splits, so that effects can be measured
    on others; None takes all of them.

    Raises CorpusError for a group of fewer than `min_examples` examples, and when an example's objective is not finite.
    """
    corpus = corpus.part(split, auto="train")
    for group, count in corpus.counts.items():
        if count < min_examples:
            raise CorpusError(
                f"group {group!r} has {count} example{'s' if count > 1 else ''}, expected at least {min_examples}; "
                "add examples, leave the group out, or lower min_examples"
            )
    if tokens not in TOKEN_REDUCTIONS:
        raise ValueError(f"unknown token reduction {tokens!r}; reductions are {', '.join(TOKEN_REDUCTIONS)}")
    goal, contribution, place = objective_named(objective), method_named(method), subject.site(site)
    scored = Corpus((*corpus, *corpus.controls()), name=corpus.name) if controls else corpus
    encoded, contrasts = prepare(subject, scored, encode_corpus(subject, scored), goal)
    rows = _group_rows(corpus, controls)
    try:
        sums = one_pass(
            subject, encoded, rows, site=place, objective=goal, contrasts=contrasts, contribution=contribution,
            tokens=tokens, max_tokens=max_tokens, padding_side=padding_side, progress=progress,
        )  # fmt: skip
    except NotFinite as error:
        names = ", ".join(repr(scored[row].id) for row in error.rows[:5])
        raise CorpusError(
            f"the {objective} of {len(error.rows)} example(s) is not finite (NaN or Inf): {names}; "
            "check the model's weights and dtype on these examples, or leave them out"
        ) from error
    origin = {
        "corpus": corpus.name, "corpus_hash": corpus.hash, "examples": [e.id for e in corpus], "split": split,
        "tokens": tokens, "example_reduction": "mean of |score|", "dtype": str(subject.dtype),
        "subject_name": subject.name, "tokenizer": tokenizer_fingerprint(subject.tokenizer), "versions": library_versions(),
    }  # fmt: skip
    return _scores(sums, corpus, site, subject, method, objective, origin, controls)


def _group_rows(corpus: Corpus, controls: bool) -> Tensor:
    """Group of every example; a control twin's is its question's plus the number of groups."""
    number = {group: index for index, group in enumerate(corpus.groups)}
    rows = torch.tensor([number[e.group] for e in corpus])
    return torch.cat([rows, rows + len(number)]) if controls else rows


def _scores(
    sums: Sums,
    corpus: Corpus,
    site: str,
    subject: Subject,
    method: str,
    objective: str,
    origin: dict[str, Any],
    controls: bool,
) -> Scores:
    counts = sums.counts.to(sums.signed.device)[:, None, None]
    values, signed, squares = ((part / counts).cpu() for part in (sums.absolute, sums.signed, sums.squares))
    if not bool(torch.isfinite(values).all()):
        raise CorpusError(
            "scores are not finite although the objective is; the backward overflowed: load a wider dtype"
        )
    number = len(corpus.groups)
    twin = {"control_values": values[number:], "control_signed": signed[number:]} if controls else {}
    return Scores(
        site, subject.fingerprint, corpus.groups, values[:number], signed[:number], squares[:number],
        sums.counts[:number], method=method, objective=objective, origin=origin, **twin,
    )  # fmt: skip
