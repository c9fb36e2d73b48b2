from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from neuropolis.attribution.generation import generated
from neuropolis.attribution.generators import (
    GeneratorError,
    LocalGenerator,
    Reply,
    Sampling,
    drawn,
    rendered,
    row_seed,
)
from neuropolis.attribution.server import ServerGenerator
from neuropolis.corpora.examples import Corpus

MAIN = {"role": "user", "content": "Where to?"}
PROMPTS = [({"role": "user", "content": "tea and rice " * count},) for count in (3, 1, 5, 2)]


def test_a_token_is_drawn_from_the_nucleus_by_hand() -> None:
    scores = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(6, 4)
    # the nucleus of 0.7 is {1, 3}; of its mass 0.75 the first two thirds are token 1's
    uniform = torch.tensor([0.0, 0.6, 0.66, 0.67, 0.9, 0.999999])
    assert drawn(scores, uniform, temperature=1.0, top_p=0.7).tolist() == [1, 1, 1, 3, 3, 3]
    assert drawn(scores, uniform, temperature=1.0, top_p=0.4).tolist() == [1] * 6
    whole = torch.tensor([0.05, 0.2, 0.65, 0.8, 0.9, 0.999999])  # of everything, in the vocabulary's order
    assert drawn(scores, whole, temperature=1.0, top_p=1.0).tolist() == [0, 1, 2, 3, 3, 3]
    # at half the temperature probabilities are squared: 0.25 of 0.345
    sharp = torch.tensor([0.72, 0.73]) * 0.999
    assert drawn(scores[:2], sharp, temperature=0.5, top_p=1.0).tolist() == [1, 1]


def test_a_nucleus_wider_than_the_short_list_is_sorted_in_full() -> None:
    scores = torch.zeros(1, 5000)
    scores[0, 7] = 1e-3
    assert drawn(scores, torch.tensor([0.0]), temperature=1.0, top_p=0.9).item() == 7
    seen = {int(drawn(scores, torch.tensor([u]), temperature=1.0, top_p=0.9)) for u in torch.linspace(0, 0.99, 50)}
    assert len(seen) > 40


def test_what_a_row_says_does_not_depend_on_its_neighbours(make_subject: Any) -> None:
    subject = make_subject("llama")
    sampling = Sampling(1.0, 0.95, 12)
    together = LocalGenerator(subject, batch_size=4)(PROMPTS, sampling=sampling, seeds=[5, 6, 7, 8])
    alone = [
        LocalGenerator(subject)([p], sampling=sampling, seeds=[s])[0]
        for p, s in zip(PROMPTS, [5, 6, 7, 8], strict=True)
    ]
    assert together == alone
    other = LocalGenerator(subject)(PROMPTS, sampling=sampling, seeds=[15, 16, 17, 18])
    assert [one != two for one, two in zip(together, other, strict=True)].count(True) >= 3


def test_greedy_says_what_generation_over_a_corpus_says(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    plain = [({"role": "user", "content": str(example.prompt)},) for example in corpus]
    shown = Corpus(tuple(type(e)(e.id, e.group, f"{e.prompt}\n\nAnswer:", e.answer) for e in corpus))
    said = LocalGenerator(subject)(plain, sampling=Sampling(0, 1, 8), seeds=range(len(corpus)))
    assert [str(reply.text).strip() for reply in said] == generated(subject, shown, max_new_tokens=8, stops=())


def test_a_prompt_that_does_not_fit_fails_and_the_others_do_not(make_subject: Any) -> None:
    subject = make_subject("llama")
    subject.model.config.max_position_embeddings = 60
    replies = LocalGenerator(subject)(PROMPTS, sampling=Sampling(0.5, 0.9, 4), seeds=range(4))
    assert [reply.text is None for reply in replies] == [False, False, True, False]
    assert replies[2].failed.endswith("tokens, with 4 new ones 60 fit")


def test_a_template_without_system_messages_gets_one_message() -> None:
    from jinja2 import TemplateError

    class Refusing:
        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            if messages[0]["role"] == "system":
                raise TemplateError("no system role")
            return "|".join(message["content"] for message in messages)

    system = {"role": "system", "content": "Be kind."}
    assert rendered(Refusing(), (system, MAIN)) == "Be kind.\n\nWhere to?"

    class Broken(Refusing):
        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            raise TemplateError("never")

    with pytest.raises(GeneratorError, match="refuses the messages: never"):
        rendered(Broken(), (system, MAIN))


def test_seeds_and_sampling_are_checked() -> None:
    assert row_seed(1, "a") == row_seed(1, "a") != row_seed(1, "b")
    assert 0 <= row_seed("x") < 2**31
    with pytest.raises(GeneratorError, match="0 < top_p <= 1"):
        Sampling(top_p=0)


Answer = Callable[[dict[str, Any], int], tuple[int, bytes, dict[str, str]]]


def good(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], tuple[str, list[dict[str, Any]]]]]:
    """A server on this machine whose answers a test decides from the request and the number of times it was asked."""
    servers = []

    def start(answer: Answer) -> tuple[str, list[dict[str, Any]]]:
        asked: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
                times = sum(one["messages"] == body["messages"] for one in asked)
                status, said, headers = answer(body, times)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(said))} | headers).items():
                    self.send_header(name, value)
                with suppress(BrokenPipeError):  # the client had no time to wait
                    self.end_headers()
                    self.wfile.write(said)
                    threading.Event().wait(float(headers.get("Hangs", 0)))

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1", asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(url: str, *texts: str, **options: Any) -> list[Reply]:
    generator = ServerGenerator(url, "m", **{"wait": 0.01, "timeout": 0.5, **options})
    prompts = [({"role": "user", "content": text},) for text in texts]
    return generator(prompts, sampling=Sampling(0.6, 0.9, 16), seeds=range(7, 7 + len(texts)))


def test_a_server_is_asked_as_the_protocol_has_it(serve: Any) -> None:
    url, asked = serve(lambda body, _: (200, good(body["messages"][0]["content"].upper()), {}))
    assert ask(url + "/", "a", "b", "c", key="s3cret") == [Reply("A"), Reply("B"), Reply("C")]
    one = next(body for body in asked if body["messages"][0]["content"] == "b")
    assert one == {
        "model": "m", "messages": [{"role": "user", "content": "b"}], "temperature": 0.6, "top_p": 0.9, "max_tokens": 16,
        "seed": 8, "path": "/v1/chat/completions", "key": "Bearer s3cret",
    }  # fmt: skip
    assert "s3cret" not in repr(ServerGenerator(url, "m", key="s3cret"))


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (500, b"oops", "HTTP 500: oops"),
        (429, b"", "HTTP 429"),
        (200, b'{"choices": [{"mess', "not a chat completion"),
        (200, b"<html>", "not a chat completion"),
        (200, b"[]", "not a chat completion"),
        (200, good(" "), "a chat completion without text"),
    ],
)
def test_what_may_pass_is_asked_again_and_what_does_not_pass_fails_with_its_reason(
    serve: Any, status: int, said: bytes, reason: str
) -> None:
    def answer(body: dict[str, Any], times: int) -> tuple[int, bytes, dict[str, str]]:
        bad = times < 3 or body["messages"][0]["content"] == "bad"
        return (status, said, {}) if bad else (200, good("2"), {})

    url, asked = serve(answer)
    fine, failed = ask(url, "fine", "bad", attempts=3)
    assert fine == Reply("2")
    assert failed.text is None
    assert failed.failed.startswith(reason)
    assert failed.failed.endswith("(3 attempts)")
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("status", "said", "headers"),
    [
        (500, b"", {"Content-Length": "100", "Hangs": "0.3"}),
        (500, b"oops", {"Content-Length": "100", "Hangs": "0.3"}),
        (503, b"zz\r\nbroken", {"Transfer-Encoding": "chunked"}),
        (503, b"", {"Retry-After": "\u00b2"}),
    ],
)
def test_an_error_whose_body_hangs_or_breaks_off_fails_like_any_other(
    serve: Any, status: int, said: bytes, headers: dict[str, str]
) -> None:
    url, asked = serve(lambda *_: (status, said, headers))
    (reply,) = ask(url, "a", attempts=2, timeout=0.1)
    assert reply.failed == f"HTTP {status}: {'oops' if said == b'oops' else ''} (2 attempts)"
    assert len(asked) == 2


def test_a_row_that_the_server_refuses_fails_at_once(serve: Any) -> None:
    url, asked = serve(lambda *_: (400, b"too long", {}))
    assert ask(url, "a") == [Reply(failed="HTTP 400: too long")]
    assert len(asked) == 1


def test_a_wrong_key_or_address_is_said_at_once(serve: Any) -> None:
    url, _ = serve(lambda *_: (401, b"who?", {}))
    with pytest.raises(GeneratorError, match=r"m at http.* refuses the key \(HTTP 401: who\?\)"):
        ask(url, "a", "b")
    with pytest.raises(GeneratorError, match="expected http://"):
        ServerGenerator("localhost:8000", "m")


def test_a_server_that_does_not_answer_in_time_fails(serve: Any) -> None:
    def late(*_: Any) -> tuple[int, bytes, dict[str, str]]:
        time.sleep(0.3)
        return 200, good("late"), {}

    url, asked = serve(late)
    assert ask(url, "a", timeout=0.05, attempts=2)[0].failed.endswith("no whole reply in 0.05 s (2 attempts)")
    assert len(asked) == 2


def test_a_reply_that_breaks_off_and_a_server_that_is_gone(serve: Any) -> None:
    url, _ = serve(lambda *_: (200, good("12")[:20], {"Content-Length": "900"}))
    assert "broke off" in ask(url, "a", attempts=1)[0].failed
    assert ask("http://127.0.0.1:9/v1", "a", attempts=1)[0].failed.startswith("cannot reach http://127.0.0.1:9/v1")


def test_a_server_is_given_the_time_that_it_asks_for(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("neuropolis.attribution.server.time.sleep", waited.append)
    url, _ = serve(lambda *_: (503, b"", {"Retry-After": "7"}))
    ask(url, "a", attempts=4, wait=2.0)
    assert waited == [7, 7, 8]
