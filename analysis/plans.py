"""Plans: the choices of a corpus as batches, tokenised once and scored many times.

The choices of one question share their prompt. A plan keeps a prompt once and, beside it, what each choice adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..attribution.encoding import IGNORED, Batch, Encoded, batches, encode, pad_id
from ..corpora.examples import Corpus, CorpusError, Example
from ..neurons.subject import Subject


@dataclass(frozen=True, eq=False)
class Part:
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

    def first_prompts(self, count: int) -> Part:
        """The same for the first prompts alone."""
        here = self.owner < count
        further = here[self.tail_pair]
        numbers = here.long().cumsum(dim=0) - 1
        return Part(
            self.prompt[:count], self.real[:count], self.owner[here], self.cell[here], self.first[here],
            numbers[self.tail_pair[further]], self.tail_ids[further], self.tail_targets[further],
        )  # fmt: skip


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
    parts: tuple[Part, ...]
    plain: tuple[Batch, ...]

    def __len__(self) -> int:
        return len(self.ids)


def encode_rows(subject: Subject, corpus: Corpus) -> list[list[Encoded]]:
    """Prompt + choice as tokens, for every choice of every example.

    Raises CorpusError when an example has fewer than two choices or more tokens than the subject takes.
    """
    return [_encode_row(subject, example) for example in corpus]


def plan_choices(
    subject: Subject,
    corpus: Corpus,
    rows: Sequence[Sequence[Encoded]],
    *,
    chosen: Sequence[int],
    shared: bool,
    max_tokens: int,
) -> EncodedChoices:
    """A plan that scores the chosen examples, with their prompts shared where they can be."""
    width = max(len(row) for row in rows)
    prefixes = {i: _prefix(rows[i]) if shared else 0 for i in chosen}
    alone = [i for i in chosen if prefixes[i] == 0]
    together = sorted((i for i in chosen if prefixes[i]), key=lambda i: (-prefixes[i], i))
    return EncodedChoices(
        subject.fingerprint,
        tuple(example.id for example in corpus),
        torch.tensor([example.answer_index for example in corpus]),
        torch.tensor([[len(e.answer) for e in row] + [0] * (width - len(row)) for row in rows]),
        shared,
        tuple(_part(subject, rows, g, prefixes, width) for g in _grouped(together, rows, prefixes, max_tokens)),
        tuple(_plain_batches(subject, rows, alone, width, max_tokens)),
    )


def _encode_row(subject: Subject, example: Example) -> list[Encoded]:
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
) -> Part:
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
    return Part(*(tensor.to(subject.device) for tensor in tensors))


def _plain_batches(
    subject: Subject, rows: Sequence[Sequence[Encoded]], chosen: Sequence[int], width: int, max_tokens: int
) -> Iterator[Batch]:
    cells = [(i * width + choice, e) for i in chosen for choice, e in enumerate(rows[i])]
    for batch in batches([e for _, e in cells], max_tokens=max_tokens, pad_id=pad_id(subject)):
        yield Batch(
            torch.tensor([cells[row][0] for row in batch.rows.tolist()]),
            batch.input_ids, batch.real, batch.targets, batch.keep,
        )  # fmt: skip
