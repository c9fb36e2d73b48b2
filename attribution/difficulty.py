"""Instruction-following difficulty: how much a prompt helps a model to its answer, and the score of a small and a large model.

After Star-Agents (Zhou et al. 2024, arXiv 2411.14497), Eq 4 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields
from ..neurons.subject import Subject
from .encoding import (
    Encoded,
    answer_log_probs,
    collate,
    encode_example,
    forward,
    has_tokens,
    pad_id,
    plan_batches,
)

REFEREE = {"base": 0.0, "tie": 0.5, "generated": 1.0}  # Eq 6
Rows = list[tuple[int, float, float]]


@dataclass(frozen=True, eq=False)
class Difficulty:
    """The difficulty of examples under one subject.

    `given` and `alone` [example] are the mean negative log-likelihoods, in nats per token, of the answer's tokens after the prompt
    and without it; `tokens` [example] says over how many tokens. NaN and 0 where an example has no score; `missing` says why by id.
    """

    subject: str
    ids: tuple[str, ...]
    given: Float[Tensor, " example"]
    alone: Float[Tensor, " example"]
    tokens: Int[Tensor, " example"]
    missing: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "missing", MappingProxyType(dict(self.missing)))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @property
    def ifd(self) -> Float[Tensor, " example"]:
        """exp(given - alone), Eq 4: below 1 where the prompt makes the answer likelier, NaN where there is no score."""
        return (self.given - self.alone).exp()

    def to_record(self, name: str = "difficulty") -> Record:
        """The scores as a record of the atlas."""
        arrays = {key: getattr(self, key).numpy() for key in ("given", "alone", "tokens")}
        meta = {
            "subject": self.subject, "ids": list(self.ids), "missing": dict(self.missing), "origin": dict(self.origin),
        }  # fmt: skip
        return Record("difficulty", name, arrays, meta)


@record_type("difficulty")
def difficulty_from_record(record: Record) -> Difficulty:
    """Difficulty back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return Difficulty(**{**record.meta, **arrays})


def difficulty(
    subject: Subject,
    corpus: Corpus,
    *,
    max_tokens: int = 4096,
    known: Mapping[int, tuple[float, float]] | None = None,
    keep: Callable[[Rows], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Difficulty:
    """IFD(I, R) = exp(-1/|R| Σ log P(w | I)) / exp(-1/|R| Σ log P(w)) of every example under a subject (Eq 4).

    Both means are over the same tokens, those that the answer has behind its prompt (a token across the border is the answer's),
    each after the answer's tokens before it. Without its prompt, the first of them stands after what the tokenizer puts before
    every text (Llama's `<s>`); where it puts nothing (GPT-2), after its token for the beginning or end of a text; and where it
    has none, the first token is left out of both means, since nothing says how likely it is. A chat prompt is rendered with the
    template for the first mean, and all of the template is left out for the second.

    An example has no score, and `missing` says why, when it has no token to score or more tokens than the subject takes.
    `keep` is called with (row, given, alone) of the rows of a batch when it is done; `known` are those of an earlier run, whose
    batches are not computed again where all of their rows are there. Raises CorpusError when no example has a score.
    """
    pairs, missing = _encoded(subject, corpus)
    given = torch.full((len(corpus),), torch.nan, dtype=torch.float64)
    alone, tokens = given.clone(), torch.zeros(len(corpus), dtype=torch.long)
    rows = sorted(pairs)
    for row in rows:
        tokens[row] = len(pairs[row][0].answer)
    done, known = 0, known or {}
    for chosen in plan_batches([pairs[row][0] for row in rows], max_tokens=max_tokens):
        batch = [rows[place] for place in chosen]
        if all(row in known for row in batch):
            found = [(row, *known[row]) for row in batch]
        else:
            means = [_means(subject, [pairs[row][side] for row in batch]) for side in (0, 1)]
            found = [(row, *both) for row, *both in zip(batch, *(one.tolist() for one in means), strict=True)]
            if keep is not None:
                keep(found)
        for row, one, other in found:
            given[row], alone[row] = one, other
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    bad = [row for row in rows if not bool((given[row] + alone[row]).isfinite())]
    missing |= {corpus[row].id: "its loss is not a finite number" for row in bad}
    given[bad], alone[bad] = torch.nan, torch.nan
    return Difficulty(
        subject.fingerprint,
        tuple(one.id for one in corpus),
        given,
        alone,
        tokens,
        missing,
        {"corpus": corpus.hash, "name": subject.name},
    )


def dual_scores(small: Float[Tensor, " example"], large: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """(IFD_small - IFD_large) / max (IFD_small - IFD_large), over all examples given (Eq 5); NaN where either has none.

    1 is the example whose prompt helps the large model most beyond what it helps the small one. Raises CorpusError when the
    largest difference is 0 or less: the scale of Eq 5 would turn the order round, or be no number.
    """
    difference = small.double() - large.double()
    known = difference[~difference.isnan()]
    if not len(known):
        raise CorpusError("no example has a difficulty under both models; a dual score needs one at least")
    if float(known.max()) <= 0:
        raise CorpusError(
            "no prompt helps the large model more than the small one (the largest IFD_small - IFD_large is "
            f"{float(known.max()):.3g}), so Eq 5 has no scale; are the models the right way round?"
        )
    return difference / known.max()


def refereed(dual: Float[Tensor, " example"], verdicts: Sequence[str | None]) -> Float[Tensor, " example"]:
    """pi = pi_llm * pi_dual (Eq 7), with pi_llm 0 for "base", 0.5 for "tie" and 1 for "generated" (Eq 6); NaN without a verdict.

    Raises CorpusError for another verdict.
    """
    unknown = [one for one in verdicts if one is not None and one not in REFEREE]
    if unknown:
        raise CorpusError(f"the referee's verdict is {unknown[0]!r}; expected {', '.join(REFEREE)}")
    factors = [float("nan") if one is None else REFEREE[one] for one in verdicts]
    return dual * torch.tensor(factors, dtype=dual.dtype)


def opening(subject: Subject) -> tuple[int, ...]:
    """What stands before the first token of a text on its own: the tokenizer's own tokens, else its beginning or end of text."""
    tokenizer = subject.tokenizer
    words = chain(["a"], (tokenizer.decode([token]) for token in range(64)))
    sample = next((one for one in words if has_tokens(subject, one)), "a")  # not every tokenizer knows the letter
    plain, whole = (tokenizer(sample, add_special_tokens=special)["input_ids"] for special in (False, True))
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain and place:
            return tuple(whole[:place])
    for name in ("bos_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return (int(token),)
    return ()


def _encoded(subject: Subject, corpus: Corpus) -> tuple[dict[int, tuple[Encoded, Encoded]], dict[str, str]]:
    """By row the tokens with the prompt and without it, and by id why a row has none."""
    start = opening(subject)
    pairs: dict[int, tuple[Encoded, Encoded]] = {}
    missing: dict[str, str] = {}
    for row, example in enumerate(corpus):
        try:
            whole = encode_example(subject, example)
        except CorpusError as error:
            missing[example.id] = str(error)
            continue
        if start:
            pairs[row] = whole, Encoded((*start, *whole.answer), len(start))
        elif len(whole.answer) > 1:
            pairs[row] = Encoded(whole.ids, whole.start + 1), Encoded(whole.answer, 1)
        else:
            missing[example.id] = "its answer is one token, and the tokenizer has none to put before it"
    if not pairs:
        raise CorpusError(f"no example can be scored under {subject.name}: {next(iter(missing.values()))}")
    return pairs, missing


def _means(subject: Subject, encoded: Sequence[Encoded]) -> Float[Tensor, " example"]:
    """Mean negative log-likelihood of the answers' tokens."""
    batch = collate(encoded, range(len(encoded)), pad_id=pad_id(subject))
    with subject.scoring(), torch.no_grad():
        sums = answer_log_probs(forward(subject, batch), batch.targets).double().sum(dim=1)
    return -sums.cpu() / torch.tensor([len(one.answer) for one in encoded])
