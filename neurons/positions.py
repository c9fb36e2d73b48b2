"""Positions: which tokens of a running forward are the prompt's, and which the answer's.

Whoever scores examples knows where their answers stand, and says so (`answers_at`). Otherwise a forward's own arguments
tell: what comes in with nothing cached is the prompt, what comes on top of a cache of keys and values is the answer, as
in `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

from jaxtyping import Bool
from torch import Tensor, nn

from .errors import SetError

On = Literal["both", "prompt", "answer"]
PLACES: tuple[str, ...] = get_args(On)
Where = Callable[[], "bool | Bool[Tensor, 'batch token']"]
_SAID: ContextVar[Callable[[], Tensor] | None] = ContextVar("answers", default=None)


@contextmanager
def answers_at(places: Callable[[], Bool[Tensor, "batch token"]]) -> Iterator[None]:
    """While the block runs, `places()` says which input tokens of a forward are answers'; asked only when needed."""
    token = _SAID.set(places)
    try:
        yield
    finally:
        _SAID.reset(token)


def check_place(on: str) -> None:
    """Raise SetError for a word that is no place."""
    if on not in PLACES:
        raise SetError(f"unknown on={on!r}; interventions stand on {', '.join(PLACES)}")


@contextmanager
def watched(model: nn.Module, on: On) -> Iterator[Where | None]:
    """Yields what says, inside a forward, at which positions to intervene: all (True), none (False), or a mask.

    None for `on="both"`: then there is nothing to ask. Raises SetError for another word, and when a forward without a cache
    reads the tokens of the one before again and one more, as `generate(use_cache=False)` does: which of them the model has
    written cannot be told.
    """
    check_place(on)
    if on == "both":
        yield None
        return
    cached, before = False, None

    def look(_module: nn.Module, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        nonlocal cached, before
        cached = _length(given.get("past_key_values")) > 0
        tokens = given.get("input_ids", args[0] if args else None)
        if given.get("use_cache") is False and _SAID.get() is None and _grown(before, tokens):
            raise SetError(
                f"on={on!r} cannot tell what the model has written from the prompt when it reads both again; expected a cache "
                "(generate with use_cache=True)"
            )
        before = tokens

    def where() -> bool | Tensor:
        said = _SAID.get()
        if said is None:
            return cached == (on == "answer")
        answers = said()
        return answers if on == "answer" else ~answers

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield where
    finally:
        handle.remove()


def _grown(before: Any, tokens: Any) -> bool:
    """Whether the tokens are those of before and one more."""
    if not (isinstance(before, Tensor) and isinstance(tokens, Tensor)) or before.dim() != 2 or tokens.dim() != 2:
        return False
    longer = tokens.shape == (before.shape[0], before.shape[1] + 1)
    return longer and bool((tokens[:, :-1] == before).all())


def _length(cache: Any) -> int:
    """Tokens in a cache; 0 for none."""
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else len(cache or ())
