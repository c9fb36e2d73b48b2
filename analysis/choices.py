"""Choice questions: the loss of every choice, and whether the right one has the lowest.

The choices of one question share their prompt, so the prompt runs once with a key-value cache and the choices' tokens
run on top of it. That is exact for decoders with a cache; each subject proves it on a few of its questions before it is
used.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, answer_log_probs, forward
from ..corpora.examples import Corpus
from ..neurons.errors import SubjectError
from ..neurons.subject import Subject
from .plans import EncodedChoices, Part, encode_rows, plan_choices
from .stages import Stage, Whole

TIE = 1e-5  # losses closer than this (relative, at least absolute) are equal: rounding differs by batch shape


def encode_choices(
    subject: Subject, corpus: Corpus, *, max_tokens: int = 4096, share: bool | None = None
) -> EncodedChoices:
    """Tokenise and batch the choices of a corpus once; batches hold at most `max_tokens` tokens, one question at least.

    `share`: run each prompt once for all its choices (True), every choice with its own prompt (False), or share where a
    trial on a few questions gives the same losses both ways (None).

    Raises CorpusError when an example has fewer than two choices or more tokens than the subject takes.
    """
    rows = encode_rows(subject, corpus)
    plan = partial(plan_choices, subject, corpus, rows, max_tokens=max_tokens)
    if share is None:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0].ids))
        trial = sorted({order[0], order[len(order) // 2], order[-1]})
        share = _agree(subject, plan(chosen=trial, shared=True), plan(chosen=trial, shared=False))
    return plan(chosen=range(len(rows)), shared=share)


def choice_losses(
    subject: Subject, corpus: Corpus | EncodedChoices, *, max_tokens: int = 4096, normalise: bool = False
) -> Float[Tensor, "example choice"]:
    """Negative log-likelihood of every choice after its prompt: the sum over its tokens, with `normalise` their mean.

    NaN where an example has fewer choices than others. An active intervention holds at every position. Give the result
    of `encode_choices` instead of a corpus to score the same questions many times.

    Raises SubjectError that names the example when a loss is not finite.
    """
    plan = planned(subject, corpus, max_tokens=max_tokens)
    return finished(subject, plan, _raw_losses(subject, plan), normalise=normalise)


def answer_correct(
    subject: Subject, corpus: Corpus | EncodedChoices, *, max_tokens: int = 4096, normalise: bool = False
) -> Bool[Tensor, " example"]:
    """Whether the right choice alone has the lowest loss; a tie (within rounding, `TIE`) is wrong."""
    plan = planned(subject, corpus, max_tokens=max_tokens)
    return right_lowest(plan, choice_losses(subject, plan, normalise=normalise))


def right_lowest(plan: EncodedChoices, losses: Float[Tensor, "example choice"]) -> Bool[Tensor, " example"]:
    """Whether the right choice alone has the lowest of these losses."""
    losses = losses.nan_to_num(nan=torch.inf)
    right = losses.gather(1, plan.answer[:, None])
    others = losses.scatter(1, plan.answer[:, None], torch.inf).amin(dim=1)
    right = right.squeeze(1)
    return others - right > TIE * right.abs().clamp(min=1)


def finished(
    subject: Subject, plan: EncodedChoices, losses: Float[Tensor, "example choice"], *, normalise: bool
) -> Float[Tensor, "example choice"]:
    """Sums of token losses as `choice_losses` gives them. Raises SubjectError that names an example without a finite one."""
    there = plan.lengths > 0
    if not bool(losses[there].isfinite().all()):
        row, column = (there & ~losses.isfinite()).nonzero()[0].tolist()
        raise SubjectError(
            f"example {plan.ids[row]!r}: the loss of choice {column} is {losses[row, column].item()}; expected a "
            f"finite number. Is {subject.name} damaged, or does {subject.dtype} overflow? Try dtype=torch.float32"
        )
    losses = losses / plan.lengths.clamp(min=1) if normalise else losses
    return losses.masked_fill(~there, torch.nan)


def planned(subject: Subject, corpus: Corpus | EncodedChoices, *, max_tokens: int) -> EncodedChoices:
    """The plan of a corpus, or the plan that was given. Raises SubjectError for one that another subject encoded."""
    if isinstance(corpus, Corpus):
        return encode_choices(subject, corpus, max_tokens=max_tokens)
    if corpus.subject != subject.fingerprint:
        raise SubjectError(
            f"the choices were encoded for subject {corpus.subject}, {subject.name!r} is {subject.fingerprint}; "
            "encode again"
        )
    return corpus


def _raw_losses(subject: Subject, plan: EncodedChoices) -> Float[Tensor, "example choice"]:
    """Sums of token losses; NaN where nothing was scored."""
    flat = torch.full((plan.lengths.numel(),), torch.nan, dtype=loss_dtype(subject))
    with subject.scoring(), torch.no_grad():
        for piece in (*plan.plain, *plan.parts):
            cells, losses = piece_losses(subject, piece, stage=Whole())
            flat[cells] = losses
    return flat.view(plan.lengths.shape)


def loss_dtype(subject: Subject) -> torch.dtype:
    """What losses are kept in."""
    return torch.float64 if subject.dtype == torch.float64 else torch.float32


def piece_losses(
    subject: Subject, piece: Batch | Part, *, stage: Stage
) -> tuple[Int[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Sums of token losses of one piece of a plan, and their cells in its flat [example, choice] table."""
    if isinstance(piece, Batch):
        with stage.during("prompt"):
            log_probs = answer_log_probs(forward(subject, piece), piece.targets).sum(dim=1)
        return piece.rows, -log_probs.to("cpu", loss_dtype(subject))
    return piece.cell.cpu(), -_part_log_probs(subject, piece, stage).to("cpu", loss_dtype(subject))


def _part_log_probs(subject: Subject, part: Part, stage: Stage) -> Float[Tensor, " pair"]:
    model, accepted = subject.model, inspect.signature(subject.model.forward).parameters
    padded = not bool(part.real.all())
    further = len(part.tail_pair) > 0
    arguments: dict[str, Any] = {"input_ids": part.prompt, "use_cache": further}
    if padded:
        arguments |= _padding(part.real, part.prompt.shape[1], accepted)
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = 1
    with stage.during("prompt"):
        output = model(**arguments)
    spread = output.logits[:, -1:].log_softmax(dim=-1, dtype=_wide(output.logits))
    scored = spread[part.owner, 0].gather(1, part.first.clamp(min=0)[:, None]).squeeze(1)
    scored = scored.masked_fill(part.first == IGNORED, 0.0)
    if not further:
        return scored
    owner, cache = part.owner[part.tail_pair], output.past_key_values
    stage.between(cache)
    cache.batch_select_indices(owner)
    arguments = {"input_ids": part.tail_ids, "past_key_values": cache, "use_cache": True}
    if padded:  # the tail's own padding stands behind what it could disturb
        real = torch.cat([part.real[owner], torch.ones_like(part.tail_ids, dtype=torch.bool)], dim=1)
        arguments |= _padding(real, part.tail_ids.shape[1], accepted)
    with stage.during("tail"):
        logits = model(**arguments).logits
    return scored.index_add(0, part.tail_pair, answer_log_probs(logits, part.tail_targets).sum(dim=1).to(scored.dtype))


def _padding(real: Bool[Tensor, "row token"], length: int, accepted: Any) -> dict[str, Tensor]:
    """The mask over all tokens, and the positions of the last `length` of them counted from each row's first token."""
    arguments = {"attention_mask": real.long()}
    if "position_ids" in accepted:
        arguments["position_ids"] = (real.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
    return arguments


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _agree(subject: Subject, shared: EncodedChoices, plain: EncodedChoices) -> bool:
    """Whether a trial gives the same losses with shared prompts as with every choice run by itself."""
    expected = _raw_losses(subject, plain)
    try:
        found = _raw_losses(subject, shared)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # a family without a cache of keys and values
    tolerance = 1e-4 if subject.dtype in (torch.float32, torch.float64) else 0.05
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
