"""Generators: what says something to chat messages, in batches, with a seed for every row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpora.examples import Messages
from ..corpora.survey import plain_prompt
from ..neurons.subject import Subject
from .encoding import tokenised
from .generation import continued

NUCLEUS = 1024  # as many tokens as a nucleus usually has; a larger one is sorted in full


class GeneratorError(ValueError):
    """A generator cannot be used, or says too little of use."""


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn: from the smallest set of tokens with `top_p` of the probability at `temperature`; 0 is greedy."""

    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_new_tokens >= 1):
            raise GeneratorError(f"expected temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1, got {self}")


@dataclass(frozen=True)
class Reply:
    """What was said, or why nothing was: exactly one of the two is given."""

    text: str | None = None
    failed: str = ""


class Generator(Protocol):
    """Says something to each of several prompts. A prompt that fails is a reply that says why; nothing is made up."""

    @property
    def name(self) -> str:
        """What the replies come from, as it is to stand in files."""
        ...

    def __call__(self, prompts: Sequence[Messages], *, sampling: Sampling, seeds: Sequence[int]) -> list[Reply]:
        """A reply for each prompt, in their order, drawn with that prompt's seed."""
        ...


def row_seed(*parts: object) -> int:
    """A seed that depends on these alone, the same on every machine; below 2^31, as servers want it."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True, eq=False)
class LocalGenerator:
    """A subject as a generator: batches with a key-value cache, padded on the left.

    Messages go through the tokenizer's chat template; where it has none they are put below one another, ending in
    "Answer:". Where it refuses a system message, that stands at the beginning of the user's. A row is drawn with its own
    random numbers, so that what it says does not depend on the rows beside it but through rounding: in float32 a draw
    changes about once in a million tokens, in bfloat16 more often. It is `called` by the model's name and fingerprint, or
    otherwise where something was tuned into it.
    """

    subject: Subject
    batch_size: int = 32
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or f"{self.subject.name} ({self.subject.fingerprint})"

    def __call__(self, prompts: Sequence[Messages], *, sampling: Sampling, seeds: Sequence[int]) -> list[Reply]:
        ids = [self._ids(prompt) for prompt in prompts]
        limit = getattr(self.subject.config, "max_position_embeddings", None)
        room = (limit or 1 << 60) - sampling.max_new_tokens
        fitting = [row for row, one in enumerate(ids) if len(one) <= room]

        def choose(rows: Sequence[int], length: int) -> RowSampler:
            return RowSampler(sampling, [seeds[fitting[row]] for row in rows], length)

        said = continued(
            self.subject, [ids[row] for row in fitting], max_new_tokens=sampling.max_new_tokens,
            batch_size=self.batch_size, choose=None if sampling.temperature == 0 else choose,
        )  # fmt: skip
        texts = dict(zip(fitting, said, strict=True))
        return [
            Reply(texts[row])
            if row in texts
            else Reply(failed=f"the prompt has {len(one)} tokens, with {sampling.max_new_tokens} new ones {limit} fit")
            for row, one in enumerate(ids)
        ]

    def _ids(self, prompt: Messages) -> list[int]:
        tokenizer = self.subject.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return list(tokenised(self.subject, plain_prompt(prompt), name="a prompt")["input_ids"])
        text = rendered(tokenizer, prompt)
        return list(tokenised(self.subject, text, name="a prompt", add_special_tokens=False)["input_ids"])


def rendered(tokenizer: Any, prompt: Messages) -> str:
    """Chat messages through a tokenizer's template, up to where the reply begins."""
    from jinja2 import TemplateError

    messages = [dict(message) for message in prompt]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        if len(messages) < 2 or messages[0]["role"] != "system":
            raise GeneratorError(f"the tokenizer's chat template refuses the messages: {error}") from error
        system, first, *rest = messages
        return rendered(tokenizer, ({**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest))


class RowSampler:
    """A logits processor that leaves one token a row, drawn with that row's own random numbers."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], length: int) -> None:
        count = sampling.max_new_tokens
        self.sampling, self.length = sampling, length
        self.uniform = torch.stack(
            [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds], dim=1
        )

    def __call__(self, input_ids: Int[Tensor, "row token"], scores: Float[Tensor, "row vocabulary"]) -> Tensor:
        uniform = self.uniform[input_ids.shape[1] - self.length].to(scores.device)
        chosen = drawn(scores, uniform, temperature=self.sampling.temperature, top_p=self.sampling.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def drawn(
    scores: Float[Tensor, "row vocabulary"], uniform: Float[Tensor, " row"], *, temperature: float, top_p: float
) -> Int[Tensor, " row"]:
    """One token a row from its nucleus (Holtzman et al. 2020, arXiv 1904.09751), by the inverse of its distribution.

    The nucleus is the shortest run of the most probable tokens with at least `top_p` of the probability.
    """
    probabilities = (scores.float() / temperature).softmax(dim=-1)
    if top_p >= 1:
        return _place(probabilities, uniform, top_p)
    ordered, tokens = probabilities.topk(min(NUCLEUS, scores.shape[1]))
    chosen = tokens.gather(1, _place(ordered, uniform, top_p)[:, None]).squeeze(1)
    for row in (ordered.sum(dim=-1) < top_p).nonzero().flatten().tolist():  # a nucleus wider than the short list
        ordered, tokens = probabilities[row].sort(descending=True)
        chosen[row] = tokens[_place(ordered[None], uniform[row : row + 1], top_p)[0]]
    return chosen


def _place(ordered: Float[Tensor, "row token"], uniform: Float[Tensor, " row"], top_p: float) -> Int[Tensor, " row"]:
    """Where in the run of tokens that reaches `top_p` a draw falls."""
    below = ordered.cumsum(dim=-1)
    kept = (below - ordered < top_p).sum(dim=-1, keepdim=True)
    mass = below.gather(1, kept - 1)
    return (below <= uniform[:, None] * mass).sum(dim=-1, keepdim=True).minimum(kept - 1).squeeze(1)
