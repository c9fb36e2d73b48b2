"""From examples to tensors: tokens, the border between prompt and answer, length-sorted batches, answer-only logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpora.examples import Corpus, CorpusError, Example, Messages
from ..neurons.errors import SubjectError
from ..neurons.positions import answers_at
from ..neurons.subject import Subject

PaddingSide = Literal["left", "right"]
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Tokens of prompt and answer; the answer's tokens are `ids[start:]`."""

    ids: tuple[int, ...]
    start: int

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.start :]


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples padded to one length, without the last answer token (its logits predict nothing that is scored).

    `targets` holds the answer's token ids where the kept logits predict them and IGNORED elsewhere. `keep` says which
    logits those are: how many last positions, or where answers end at different places, which positions of each example.
    """

    rows: Int[Tensor, " batch"]
    input_ids: Int[Tensor, "batch token"]
    real: Bool[Tensor, "batch token"]
    targets: Int[Tensor, "batch kept"]
    keep: int | Int[Tensor, "batch kept"]

    @property
    def left_padded(self) -> bool:
        return not bool(self.real[:, 0].all())


def encode(subject: Subject, prompt: str | Messages, answer: str, *, name: str = "example") -> Encoded:
    """Tokenise prompt + answer once and find the answer's tokens by offsets; a token across the border is the answer's.

    Raises CorpusError when the prompt leaves no token before the answer, or the answer has none.
    """
    tokenizer = subject.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise SubjectError(f"{subject.name}: its tokenizer gives no offsets; load the fast version (use_fast=True)")
    special = isinstance(prompt, str)
    text = prompt if isinstance(prompt, str) else _rendered(subject, prompt, name)
    coded = tokenised(
        subject, text + answer, name=name, add_special_tokens=special, return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )  # fmt: skip
    border, end = len(text), len(text) + len(answer)
    inside = [
        place
        for place, ((left, right), marker) in enumerate(
            zip(coded["offset_mapping"], coded["special_tokens_mask"], strict=True)
        )
        if not (marker and left == right) and right > border and left < end
    ]
    if not inside:
        raise CorpusError(f"{name}: the answer {answer!r} has no token under this tokenizer; give another answer")
    if inside[0] == 0:
        raise CorpusError(f"{name}: no token stands before the answer; give a longer prompt")
    return Encoded(tuple(coded["input_ids"][: inside[-1] + 1]), inside[0])


def tokenised(subject: Subject, text: str, *, name: str, **options: Any) -> Any:
    """What the subject's tokenizer makes of a text, called with these options.

    Raises CorpusError where it has no token for a word of it, nor one for what it does not know: a word-level tokenizer
    without [UNK].
    """
    try:
        return subject.tokenizer(text, **options)
    except Exception as error:
        if type(error) is not Exception:  # all that the tokenizers library raises is of this very class
            raise
        word = next((one for one in text.split() if not has_tokens(subject, one)), text)
        raise CorpusError(
            f"{name}: {subject.name} cannot tokenise {word[:60]!r} ({error}); drop the example, or give another model"
        ) from error


def has_tokens(subject: Subject, word: str) -> bool:
    """Whether the subject's tokenizer takes a word, and has a token for it."""
    try:
        return bool(subject.tokenizer(word, add_special_tokens=False)["input_ids"])
    except Exception:
        return False


def _rendered(subject: Subject, messages: Messages, name: str) -> str:
    """Chat messages as the text that the subject's chat template makes of them, up to where the answer begins."""
    if not getattr(subject.tokenizer, "chat_template", None):
        raise CorpusError(
            f"{name}: the prompt is a list of messages, but {subject.name} has no chat template; give prompts that are "
            "texts (culture-spa collect --plain and corpus wvs --no-chat write such)"
        )
    plain = [dict(message) for message in messages]
    return str(subject.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))


def encode_example(subject: Subject, example: Example) -> Encoded:
    """One example's prompt and right answer as tokens."""
    encoded = encode(subject, example.prompt, example.answer, name=f"example {example.id!r}")
    limit = getattr(subject.config, "max_position_embeddings", None)
    if limit and len(encoded.ids) > limit:
        raise CorpusError(
            f"example {example.id!r} has {len(encoded.ids)} tokens, {subject.name} takes {limit}; shorten or drop it"
        )
    return encoded


def encode_corpus(subject: Subject, corpus: Corpus) -> list[Encoded]:
    """Every example of a corpus as tokens, in its order."""
    return [encode_example(subject, example) for example in corpus]


def batches(
    encoded: Sequence[Encoded], *, max_tokens: int = 4096, padding_side: PaddingSide = "right", pad_id: int = 0
) -> Iterator[Batch]:
    """Batches of similar lengths, longest first, of at most `max_tokens` tokens with padding (one example at least)."""
    for chosen in plan_batches(encoded, max_tokens=max_tokens):
        yield collate([encoded[row] for row in chosen], chosen, padding_side=padding_side, pad_id=pad_id)


def plan_batches(encoded: Sequence[Encoded], *, max_tokens: int = 4096, even: bool = False) -> Iterator[list[int]]:
    """The rows of each of `batches`; with `even`, examples of a batch have one length and need no padding."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected the tokens of a batch, 1 or more")
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row].ids))
    while order:
        longest = len(encoded[order[0]].ids) - 1
        size = max(1, max_tokens // max(1, longest))
        if even:
            size = min(size, sum(len(encoded[row].ids) - 1 == longest for row in order[:size]))
        yield order[:size]
        order = order[size:]


def collate(
    encoded: Sequence[Encoded], rows: Sequence[int], *, padding_side: PaddingSide = "right", pad_id: int = 0
) -> Batch:
    """One padded batch."""
    length = max(len(e.ids) for e in encoded) - 1
    input_ids = torch.full((len(encoded), length), pad_id)
    targets = torch.full((len(encoded), length), IGNORED)
    real = torch.zeros((len(encoded), length), dtype=torch.bool)
    for row, one in enumerate(encoded):
        count = len(one.ids) - 1
        first = length - count if padding_side == "left" else 0
        input_ids[row, first : first + count] = torch.tensor(one.ids[:-1])
        real[row, first : first + count] = True
        targets[row, first + one.start - 1 : first + count] = torch.tensor(one.answer)
    wanted = targets != IGNORED
    tail = length - int(wanted.any(dim=0).int().argmax())
    most = int(wanted.sum(dim=1).max())
    if tail == most:
        return Batch(torch.tensor(rows), input_ids, real, targets[:, -tail:], tail)
    keep = wanted.int().argmax(dim=1, keepdim=True) + torch.arange(most)
    kept = targets.gather(1, keep.clamp(max=length - 1)).masked_fill(keep >= length, IGNORED)
    return Batch(torch.tensor(rows), input_ids, real, kept, keep.clamp(max=length - 1))


def forward(subject: Subject, batch: Batch) -> Float[Tensor, "batch kept vocabulary"]:
    """The logits that predict the answers, and no others where the model can leave the rest out.

    Padding changes nothing. On the right (the default) it comes after every token that counts, where a causal model does
    not look, so no mask is needed; on the left it is masked, and positions are counted from each example's first token.
    """
    device = subject.device
    arguments: dict[str, Any] = {"input_ids": batch.input_ids.to(device), "use_cache": False}
    accepted = _accepted(subject.model)
    if batch.left_padded:
        arguments["attention_mask"] = batch.real.long().to(device)
        if "position_ids" in accepted:
            positions = (batch.real.long().cumsum(dim=1) - 1).clamp(min=0)
            arguments["position_ids"] = positions.to(device)
    with answers_at(lambda: answer_places(batch)):
        if isinstance(batch.keep, int):
            if "logits_to_keep" in accepted:
                return subject.model(**arguments, logits_to_keep=batch.keep).logits
            return subject.model(**arguments).logits[:, -batch.keep :]
        return _at(subject, arguments, batch.keep.to(device))


def answer_places(batch: Batch) -> Bool[Tensor, "batch token"]:
    """Which input tokens are the answers': those after a position that predicts one (the last answer token is no input)."""
    scored, length = batch.targets != IGNORED, batch.input_ids.shape[1]
    keep = batch.keep
    places = torch.arange(length - keep, length).expand(len(scored), -1) if isinstance(keep, int) else keep
    found = torch.zeros((len(scored), length + 1), dtype=torch.bool)
    found[torch.arange(len(scored))[:, None].expand_as(places)[scored], places[scored] + 1] = True
    return found[:, :length]


def _at(
    subject: Subject, arguments: dict[str, Any], keep: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept vocabulary"]:
    """Logits at positions of each example's own, picked before the output projection where the model shows it."""
    head = getattr(subject.model, "get_output_embeddings", lambda: None)()
    picked: list[int] = []

    def pick(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:2] != arguments["input_ids"].shape:
            return None
        picked.append(1)
        return (_picked(args[0], keep), *args[1:])

    handle = None if head is None else head.register_forward_pre_hook(pick)
    try:
        logits = subject.model(**arguments).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits if picked else _picked(logits, keep)


def _picked(
    x: Float[Tensor, "batch token width"], keep: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept width"]:
    keep = keep.to(x.device)
    return x[torch.arange(len(keep), device=x.device)[:, None], keep]


def answer_log_probs(logits: Float[Tensor, "batch kept vocabulary"], targets: Int[Tensor, "batch kept"]) -> Tensor:
    """Log-probability of each target token, 0 where there is none: [batch, kept], at least float32."""
    targets = targets.to(logits.device)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    picked = wide.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1) - wide.logsumexp(dim=-1)
    return picked.masked_fill(targets == IGNORED, 0.0)


def pad_id(subject: Subject) -> int:
    """A token id to pad with; which one does not matter, since nothing looks at padding."""
    return int(getattr(subject.tokenizer, "pad_token_id", None) or 0)


def _accepted(model: Any) -> Iterable[str]:
    return inspect.signature(model.forward).parameters
