"""Fine-tuning on a corpus: one short way for a set's slice and for all parameters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from ..attribution.encoding import encode_corpus
from ..corpora.examples import Corpus
from ..neurons.atlas import library_versions
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .checkpoints import Checkpointing, Resume, Run
from .delta import Delta
from .errors import TuneError
from .loop import Progress, fit, train
from .losses import Penalty, answer_loss
from .recipe import Recipe, Settings
from .trainable import Trainable, trainable_full, trainable_slice

__all__ = ["Penalty", "Progress", "Recipe", "Training", "answer_loss", "finetune", "finetune_full", "train"]


class Training(Settings, total=False):
    """Keyword arguments of `finetune` and `finetune_full`: the fields of `Recipe`, and these.

    `split` names the examples to train on by their tag `split`: "auto" (the default) takes those tagged "train" where
    the corpus has that tag at all, None takes every example. `eval_split` names held-out ones whose loss is followed.
    `progress` is called with (steps done, steps). `checkpoint` is a file that keeps the run every `checkpoint_every`
    steps (50) and at the end; where it is there already, the run goes on from it (see `Checkpointing` for `resume`).
    """

    split: str | None
    eval_split: str | None
    progress: Progress | None
    checkpoint: str | Path | None
    checkpoint_every: int
    resume: Resume


def finetune(subject: Subject, corpus: Corpus, neurons: NeuronSet, **training: Unpack[Training]) -> Delta:
    """Train the slice of a set on a corpus; the subject is bit for bit the same afterwards, and so is the global RNG.

    The loss of a step is the negative log-likelihood in nats of its answers' tokens, meaned over those tokens; prompts
    are not trained on. Dropout is off. The arguments are those of `Recipe` and `Training`; `lr` is 3e-4 by default.
    The delta's `history` is the loss of every step; its origin holds the held-out losses and their best step.

    Raises TuneError for an empty set, an argument out of range, a loss that diverges or a checkpoint of another run,
    SetError for a set of another subject, CorpusError when the corpus lacks the split.
    """
    with trainable_slice(subject, neurons) as trainable:
        return _tuned("finetune", subject, corpus, neurons, trainable, {"lr": 3e-4, **training})


def finetune_full(subject: Subject, corpus: Corpus, **training: Unpack[Training]) -> Delta:
    """Train every parameter with the loop and the arguments of `finetune`, for comparison; `lr` is 3e-5 by default.

    The delta holds the whole model twice.
    """
    with trainable_full(subject) as trainable:
        return _tuned("finetune_full", subject, corpus, None, trainable, {"lr": 3e-5, **training})


def _tuned(
    made: str, subject: Subject, corpus: Corpus, neurons: NeuronSet | None, trainable: Trainable, training: Training
) -> Delta:
    unknown = sorted(set(training) - set(Training.__annotations__) - set(Settings.__annotations__))
    if unknown:
        known = ", ".join([*Settings.__annotations__, *Training.__annotations__])
        raise TypeError(f"{made}() got an unexpected argument {unknown[0]!r}; arguments are {known}")
    recipe = Recipe(**{key: value for key, value in training.items() if key in Recipe.__dataclass_fields__})  # pyright: ignore[reportArgumentType]
    rows = corpus.part(training.get("split", "auto"), auto="train")
    held_out = _held_out(corpus, rows, training.get("eval_split"))
    about = {"made": made, "corpus": rows.hash, "neurons": None if neurons is None else neurons.digest}
    path = training.get("checkpoint")
    kept = None if path is None else Checkpointing(
        Path(path), training.get("checkpoint_every", 50), training.get("resume", "same"), about
    )  # fmt: skip
    run = fit(
        subject, encode_corpus(subject, rows), trainable, recipe, checkpoint=kept, progress=training.get("progress"),
        held_out=[] if held_out is None else encode_corpus(subject, held_out),
    )  # fmt: skip
    origin = _origin(made, rows, recipe, run, held_out)
    return Delta(subject.fingerprint, neurons, trainable.values(), trainable.base_values(), tuple(run.history), origin)


def _held_out(corpus: Corpus, rows: Corpus, split: str | None) -> Corpus | None:
    """The examples of a split that is followed but not trained on."""
    if split is None:
        return None
    held_out = corpus.only(split=split)
    if shared := {example.id for example in held_out} & {example.id for example in rows}:
        raise TuneError(
            f"eval_split {split!r} and the training rows share {len(shared)} examples, such as {min(shared)!r}; "
            "name a split that is not trained on"
        )
    return held_out


def _origin(made: str, corpus: Corpus, recipe: Recipe, run: Run, held_out: Corpus | None) -> dict[str, Any]:
    origin: dict[str, Any] = {
        "made": made, "corpus": corpus.name, "corpus_hash": corpus.hash, "groups": list(corpus.groups),
        "num_examples": len(corpus), "recipe": asdict(recipe), "versions": library_versions(),
    }  # fmt: skip
    if held_out is not None:
        origin["held_out"] = {
            "corpus_hash": held_out.hash, "num_examples": len(held_out), "best_step": run.best_step,
            "losses": [[step, loss] for step, loss in run.evals],
        }  # fmt: skip
    if run.changes:
        origin["resumed"] = run.changes
    return origin
