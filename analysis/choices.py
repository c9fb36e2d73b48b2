"""Choice questions: the loss of every choice, and whether the right one has the lowest.

The choices of one question share their prompt, so the prompt runs once with a key-value cache and the choices' tokens
run on top of it. That is exact for decoders with a cache; each subject proves it on a few of its questions before it is
used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, Encoded, answer_log_probs, batches, encode, forward, pad_id
from ..corpora.examples import Corpus, CorpusError
from ..neurons.errors import SubjectError
from ..neurons.subject import Subject

TIE = 1e-5  # losses closer than this (relative, at least absolute) are equal: rounding differs by batch shape


@dataclass(frozen=True, eq=False)
class _Part:
    """Prompts of some questions, padded on the left, and what their choices add, padded on the right.

    Pair i is a choice: it belongs to prompt `owner[i]` and to cell `cell[i]` of the flat [example, choice] table.
    `first` is its first token after the shared prefix, IGNORED where that token is not the answer's. `tail_pair` says
    which pairs have further tokens: they are predicted from `tail_ids`, and scored against `tail_targets`.
    """

    prompt: Int[Tensor, "prompt token"]
    real: Bool[Tensor, "prompt token"]
    owner: Int[Tensor, " pair"]
    cell: Int[Tensor, " pair"]
    first: Int[Tensor, " pair"]
    tail_pair: Int[Tensor, " tail"]
    tail_ids: Int[Tensor, "tail token"]
    tail_targets: Int[Tensor, "tail token"]


@dataclass(frozen=True, eq=False)
class EncodedChoices:
    """A corpus's choice questions, tokenised and batched once, to be scored again under every intervention.

    `ids` are the examples' ids, `answer` [example] the right choices, `lengths` [example, choice] the numbers of answer
    tokens (0 where an example has fewer choices). `shared` says whether prompts run once for all their choices.
    """

    subject: str
    ids: tuple[str, ...]
    answer: Int[Tensor, " example"]
    lengths: Int[Tensor, "example choice"]
    shared: bool
    parts: tuple[_Part, ...]
    plain: tuple[Batch, ...]

    def __len__(self) -> int:
        return len(self.ids)


def encode_choices(
    subject: Subject, corpus: Corpus, *, max_tokens: int = 4096, share: bool | None = None
) -> EncodedChoices:
    """Tokenise and batch the choices of a corpus once; batches hold at most `max_tokens` tokens, one question at least.

    `share`: run each prompt once for all its choices (True), every choice with its own prompt (False), or share where a
    trial on a few questions gives the same losses both ways (None).

    Raises CorpusError when an example has fewer than two choices or more tokens than the subject takes.
    """
    rows = [_encode_row(subject, example) for example in corpus]
    width = max(len(row) for row in rows)
    lengths = torch.tensor([[len(e.answer) for e in row] + [0] * (width - len(row)) for row in rows])

    def plan(chosen: Sequence[int], shared: bool) -> EncodedChoices:
        prefixes = {i: _prefix(rows[i]) if shared else 0 for i in chosen}
        alone = [i for i in chosen if prefixes[i] == 0]
        together = sorted((i for i in chosen if prefixes[i]), key=lambda i: (-prefixes[i], i))
        return EncodedChoices(
            subject.fingerprint,
            tuple(example.id for example in corpus),
            torch.tensor([example.answer_index for example in corpus]),
            lengths,
            shared,
            tuple(_part(subject, rows, g, prefixes, width) for g in _grouped(together, rows, prefixes, max_tokens)),
            tuple(_plain_batches(subject, rows, alone, width, max_tokens)),
        )

    if share is None:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0].ids))
        trial = sorted({order[0], order[len(order) // 2], order[-1]})
        share = _agree(subject, plan(trial, True), plan(trial, False))
    return plan(range(len(rows)), share)


def choice_losses(
    subject: Subject, corpus: Corpus | EncodedChoices, *, max_tokens: int = 4096, normalise: bool = False
) -> Float[Tensor, "example choice"]:
    """Negative log-likelihood of every choice after its prompt: the sum over its tokens, with `normalise` their mean.

    NaN where an example has fewer choices than others. An active intervention holds at every position. Give the result
    of `encode_choices` instead of a corpus to score the same questions many times.

    Raises SubjectError that names the example when a loss is not finite.
    """
    plan = _planned(subject, corpus, max_tokens)
    losses = _raw_losses(subject, plan)
    there = plan.lengths > 0
    if not bool(losses[there].isfinite().all()):
        row, column = (there & ~losses.isfinite()).nonzero()[0].tolist()
        raise SubjectError(
            f"example {plan.ids[row]!r}: the loss of choice {column} is {losses[row, column].item()}; expected a "
            f"finite number. Is {subject.name} damaged, or does {subject.dtype} overflow? Try dtype=torch.float32"
        )
    losses = losses / plan.lengths.clamp(min=1) if normalise else losses
    return losses.masked_fill(~there, torch.nan)


def answer_correct(
    subject: Subject, corpus: Corpus | EncodedChoices, *, max_tokens: int = 4096, normalise: bool = False
) -> Bool[Tensor, " example"]:
    """Whether the right choice alone has the lowest loss; a tie (within rounding, `TIE`) is wrong."""
    plan = _planned(subject, corpus, max_tokens)
    losses = choice_losses(subject, plan, normalise=normalise).nan_to_num(nan=torch.inf)
    right = losses.gather(1, plan.answer[:, None])
    others = losses.scatter(1, plan.answer[:, None], torch.inf).amin(dim=1)
    right = right.squeeze(1)
    return others - right > TIE * right.abs().clamp(min=1)


def _planned(subject: Subject, corpus: Corpus | EncodedChoices, max_tokens: int) -> EncodedChoices:
    if isinstance(corpus, Corpus):
        return encode_choices(subject, corpus, max_tokens=max_tokens)
    if corpus.subject != subject.fingerprint:
        raise SubjectError(
            f"the choices were encoded for subject {corpus.subject}, {subject.name!r} is {subject.fingerprint}; "
            "encode again"
        )
    return corpus


def _encode_row(subject: Subject, example: Any) -> list[Encoded]:
    name = f"example {example.id!r}"
    if len(example.choices) < 2:
        raise CorpusError(
            f"{name} has {len(example.choices)} choices; accuracy by lowest loss needs 'choices' (at least two) and "
            "'answer_index' in every row"
        )
    row = [encode(subject, example.prompt, choice, name=name) for choice in example.choices]
    limit, longest = getattr(subject.config, "max_position_embeddings", None), max(len(e.ids) for e in row)
    if limit and longest > limit:
        raise CorpusError(f"{name} has {longest} tokens, {subject.name} takes {limit}; shorten or drop it")
    return row


def _prefix(row: Sequence[Encoded]) -> int:
    """Tokens that all choices share before the first answer token of any."""
    limit = min(e.start for e in row)
    same = (len(set(column)) == 1 for column in zip(*(e.ids[:limit] for e in row), strict=True))
    return next((place for place, equal in enumerate(same) if not equal), limit)


def _grouped(
    order: Sequence[int], rows: Sequence[Sequence[Encoded]], prefixes: dict[int, int], max_tokens: int
) -> Iterator[list[int]]:
    """Neighbours in order whose prompts and choices, padded, stay under max_tokens."""
    group: list[int] = []
    tail = choices = 0
    for i in order:
        tail = max(tail, max(len(e.ids) for e in rows[i]) - prefixes[i] - 1)
        choices = max(choices, len(rows[i]))
        if group and (len(group) + 1) * (prefixes[group[0]] + choices * tail) > max_tokens:
            yield group
            group = []
            tail, choices = max(len(e.ids) for e in rows[i]) - prefixes[i] - 1, len(rows[i])
        group.append(i)
    if group:
        yield group


def _part(
    subject: Subject, rows: Sequence[Sequence[Encoded]], group: Sequence[int], prefixes: dict[int, int], width: int
) -> _Part:
    filler, longest = pad_id(subject), max(prefixes[i] for i in group)
    prompt = torch.full((len(group), longest), filler)
    real = torch.zeros((len(group), longest), dtype=torch.bool)
    pairs: list[tuple[int, int, int]] = []
    tails: list[tuple[int, tuple[int, ...], int]] = []  # pair, tokens after the prefix, how many of them are not scored
    for place, i in enumerate(group):
        size = prefixes[i]
        prompt[place, longest - size :] = torch.tensor(rows[i][0].ids[:size])
        real[place, longest - size :] = True
        for choice, e in enumerate(rows[i]):
            if len(e.ids) > size + 1:
                tails.append((len(pairs), e.ids[size:], e.start - size))
            pairs.append((place, i * width + choice, e.ids[size] if e.start == size else IGNORED))
    length = max((len(tokens) - 1 for _, tokens, _ in tails), default=0)
    tail_ids = torch.zeros((len(tails), length), dtype=torch.long)
    targets = torch.full((len(tails), length), IGNORED)
    for place, (_, tokens, skipped) in enumerate(tails):
        tail_ids[place] = tokens[
            -1
        ]  # what stands behind the tail disturbs nothing; a padding token would raise a warning
        tail_ids[place, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        first = max(skipped, 1)
        targets[place, first - 1 : len(tokens) - 1] = torch.tensor(tokens[first:])
    columns = [torch.tensor(column) for column in zip(*pairs, strict=True)]
    tensors = (
        prompt,
        real,
        *columns,
        torch.tensor([pair for pair, _, _ in tails], dtype=torch.long),
        tail_ids,
        targets,
    )
    return _Part(*(tensor.to(subject.device) for tensor in tensors))


def _plain_batches(
    subject: Subject, rows: Sequence[Sequence[Encoded]], chosen: Sequence[int], width: int, max_tokens: int
) -> Iterator[Batch]:
    cells = [(i * width + choice, e) for i in chosen for choice, e in enumerate(rows[i])]
    for batch in batches([e for _, e in cells], max_tokens=max_tokens, pad_id=pad_id(subject)):
        yield Batch(
            torch.tensor([cells[row][0] for row in batch.rows.tolist()]),
            batch.input_ids, batch.real, batch.targets, batch.keep,
        )  # fmt: skip


def _raw_losses(subject: Subject, plan: EncodedChoices) -> Float[Tensor, "example choice"]:
    """Sums of token losses; NaN where nothing was scored."""
    dtype = torch.float64 if subject.dtype == torch.float64 else torch.float32
    flat = torch.full((plan.lengths.numel(),), torch.nan, dtype=dtype)
    with subject.quiet(), torch.no_grad():
        for batch in plan.plain:
            flat[batch.rows] = -answer_log_probs(forward(subject, batch), batch.targets).sum(dim=1).to("cpu", dtype)
        for part in plan.parts:
            flat[part.cell.cpu()] = -_part_log_probs(subject, part).to("cpu", dtype)
    return flat.view(plan.lengths.shape)


def _part_log_probs(subject: Subject, part: _Part) -> Float[Tensor, " pair"]:
    model, accepted = subject.model, inspect.signature(subject.model.forward).parameters
    padded = not bool(part.real.all())
    further = len(part.tail_pair) > 0
    arguments: dict[str, Any] = {"input_ids": part.prompt, "use_cache": further}
    if padded:
        arguments |= _padding(part.real, part.prompt.shape[1], accepted)
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = 1
    output = model(**arguments)
    spread = output.logits[:, -1:].log_softmax(dim=-1, dtype=_wide(output.logits))
    scored = spread[part.owner, 0].gather(1, part.first.clamp(min=0)[:, None]).squeeze(1)
    scored = scored.masked_fill(part.first == IGNORED, 0.0)
    if not further:
        return scored
    owner, cache = part.owner[part.tail_pair], output.past_key_values
    cache.batch_select_indices(owner)
    arguments = {"input_ids": part.tail_ids, "past_key_values": cache, "use_cache": True}
    if padded:  # the tail's own padding stands behind what it could disturb
        real = torch.cat([part.real[owner], torch.ones_like(part.tail_ids, dtype=torch.bool)], dim=1)
        arguments |= _padding(real, part.tail_ids.shape[1], accepted)
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
