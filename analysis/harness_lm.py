"""The subject as a model of lm-evaluation-harness. Importing this file imports `lm_eval`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lm_eval.api.model import CacheHook  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

from ..neurons.subject import Subject

Condition = Callable[[], AbstractContextManager[Any]]
_HFLM: Any = HFLM  # its registering decorator hides its type


class SubjectLM(_HFLM):
    """The harness's own HFLM over a subject's module and tokenizer, with a condition on in every request.

    The condition (an intervention, a delta) is entered for each call of `loglikelihood`, `loglikelihood_rolling` and
    `generate_until`, the harness's three request types (its multiple choice is made of the first), and left after it:
    between calls the subject is untouched. A condition that checks its hooks does so at the end of every call.
    """

    def __init__(
        self, subject: Subject, *, condition: Condition, bars: bool = True, batch_size: int = 8, **options: Any
    ) -> None:
        self.subject, self.condition, self.bars = subject, condition, bars
        with subject.quiet(), _as_it_is(subject.model), _without_advice():
            super().__init__(
                pretrained=subject.model, tokenizer=_paddable(subject.tokenizer), backend="causal",
                batch_size=batch_size, **options,
            )  # fmt: skip
        self._device = subject.device  # the module's own may be "meta" when its weights are offloaded

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._under_condition(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        return self._under_condition(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return self._under_condition(super().generate_until, requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm or not self.bars, override_bs)

    def _under_condition(self, answer: Callable[..., Any], requests: list[Any], disable_tqdm: bool) -> Any:
        if not requests:
            return []
        with self.subject.quiet(), torch.no_grad(), self.condition():
            return answer(requests, disable_tqdm=disable_tqdm or not self.bars)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes about a model; its own version asks the hub."""
        return {
            "model_num_parameters": self.subject.num_parameters, "model_dtype": str(self.subject.dtype),
            "model_revision": "", "model_sha": self.subject.fingerprint,
        }  # fmt: skip


class Answered(CacheHook):
    """Counts answered requests, in the place where the harness would keep them."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__(None)
        self.note = note

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.note()


def _paddable(tokenizer: Any) -> Any:
    """The tokenizer itself, or a copy where the harness would give it a padding token."""
    return tokenizer if getattr(tokenizer, "pad_token_id", None) is not None else copy.deepcopy(tokenizer)


@contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """HFLM ties the weights of the module that it is given; a subject's stay as they are."""
    own = "tie_weights" in vars(model)
    kept = vars(model).get("tie_weights")
    model.tie_weights = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        if own:
            model.tie_weights = kept
        else:
            del model.tie_weights


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without HFLM's warnings about a module that it did not load itself."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
