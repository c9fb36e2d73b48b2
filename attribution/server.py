"""A server that speaks OpenAI's chat protocol (vLLM, llama.cpp, Ollama, hosted ones) as a generator.

One POST of JSON is all that is needed of the protocol, so the standard library does it and nothing is to be installed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..corpora.examples import Messages
from .generators import GeneratorError, Reply, Sampling

USELESS = {401: "refuses the key", 403: "forbids it", 404: "has no such address or model", 405: "takes no POST there"}
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LARGEST = 1 << 24  # bytes of a reply
LONGEST_WAIT = 60.0


class _AskAgain(Exception):
    """A failure that may pass: what it was, and how long the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Fails(Exception):
    """A failure of one row that will not pass."""


@dataclass(frozen=True)
class ServerGenerator:
    """A model behind `url` (up to and with `/v1`). `key` is sent as a bearer token and kept nowhere.

    `workers` requests are under way at once. A request that gets no whole reply in `timeout` seconds, an error that may
    pass (408, 409, 425, 429, 5xx) or an answer that is not of the protocol is sent again, `attempts` times in all, after
    `wait`, 2 `wait`, 4 `wait` ... seconds or as long as the server asks, a minute at most; then the row has failed, with
    the last reason. Rows carry their seed, which a server may or may not heed.

    Raises GeneratorError for what holds for every row: a refused key, a wrong address or an unknown model.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    workers: int = 8
    timeout: float = 60.0
    attempts: int = 4
    wait: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise GeneratorError(f"the server's address is {self.url!r}; expected http://... or https://..., up to /v1")
        if min(self.workers, self.attempts) < 1 or self.timeout <= 0 or self.wait < 0:
            raise GeneratorError("expected workers and attempts of 1 or more, timeout above 0 and wait of 0 or more")

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    def __call__(self, prompts: Sequence[Messages], *, sampling: Sampling, seeds: Sequence[int]) -> list[Reply]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="server")
        try:
            asked = [pool.submit(self._reply, self._body(p, sampling, s)) for p, s in zip(prompts, seeds, strict=True)]
            return [one.result() for one in asked]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _body(self, prompt: Messages, sampling: Sampling, seed: int) -> bytes:
        return json.dumps(
            {
                "model": self.model, "messages": [dict(message) for message in prompt], "seed": seed,
                "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens,
            }
        ).encode()  # fmt: skip

    def _reply(self, body: bytes) -> Reply:
        """One row's reply, after as many attempts as it takes and is allowed."""
        reason = ""
        for attempt in range(self.attempts):
            try:
                return Reply(_said(self._posted(body)))
            except _Fails as error:
                return Reply(failed=str(error))
            except _AskAgain as error:
                reason = str(error)
                if attempt + 1 < self.attempts:
                    time.sleep(min(LONGEST_WAIT, max(error.wait, self.wait * 2**attempt)))
        return Reply(failed=f"{reason} ({self.attempts} attempts)")

    def _posted(self, body: bytes) -> bytes:
        """The bytes of the answer. Raises what says whether to ask again."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = Request(f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        end = time.monotonic() + self.timeout
        try:
            with urlopen(request, timeout=self.timeout) as response:
                return _whole(response, end)
        except HTTPError as error:
            with error:
                said = _beginning(error, end).decode("utf-8", "replace")
                self._refused(error.code, error.headers.get("Retry-After"), said)
        except TimeoutError:
            raise _AskAgain(f"no whole reply in {self.timeout:g} s") from None
        except URLError as error:
            reason = f"no whole reply in {self.timeout:g} s" if isinstance(error.reason, TimeoutError) else error.reason
            raise _AskAgain(f"cannot reach {self.url}: {reason}") from None
        except (HTTPException, OSError) as error:
            raise _AskAgain(f"the connection broke off: {error!r:.200}") from None
        raise AssertionError("every way out above returns or raises")

    def _refused(self, status: int, wait: str | None, said: str) -> None:
        """Raise what a status means."""
        if status in USELESS:
            raise GeneratorError(f"{self.name} {USELESS[status]} (HTTP {status}: {said:.200})")
        if status in AGAIN or status >= 500:
            raise _AskAgain(f"HTTP {status}: {said:.200}", float(wait) if wait and wait.isdecimal() else 0.0)
        raise _Fails(f"HTTP {status}: {said:.200}")


def _whole(response: HTTPResponse, end: float) -> bytes:
    """All of a reply; a server that sends it byte by byte does not get more time for that."""
    pieces: list[bytes] = []
    while piece := response.read1(1 << 16):
        pieces.append(piece)
        if time.monotonic() > end:
            raise TimeoutError
        if sum(map(len, pieces)) > LARGEST:
            raise _AskAgain(f"the reply is longer than {LARGEST >> 20} MiB")
    if response.length:
        raise _AskAgain(f"the connection broke off {response.length} bytes before the reply's end")
    return b"".join(pieces)


def _beginning(error: HTTPError, end: float) -> bytes:
    """What a server says of an error, as far as it comes; a body that hangs or breaks off does not hide the status."""
    said = b""
    with suppress(HTTPException, OSError):
        while len(said) < 500 and time.monotonic() < end and (piece := error.read1(500)):
            said += piece
    return said


def _said(answer: bytes) -> str:
    """The text of a reply as the protocol has it. Raises _AskAgain for anything else."""
    try:
        parsed: Any = json.loads(answer)
        text = parsed["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _AskAgain(f"not a chat completion: {answer[:120].decode('utf-8', 'replace')!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise _AskAgain(f"a chat completion without text: {str(parsed)[:200]}")
    return text
