"""An auditor that is out: its fallback judges, the breaker opens, and with both out nothing unaudited leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from guardtrace_proxy.auditor.health import FIRST_PAUSE_SECONDS
from tests.server.running import Running, ask, proxy
from tests.server.scripted import SSE_HEAD, Script, Server, by_word, http, judging, model_server, stream

CUT = "This response was stopped by policy."
UNCHECKED = "This response was stopped because it could not be checked."
BENIGN = [SSE_HEAD, *stream("All of this is quite fine and so is what follows.", "Two and two make four.")]
HARMFUL = [SSE_HEAD, *stream("All of this is quite fine but then comes HARM in full.", "No.")]
OVERLOADED = http(503, "{}")


class Auditor:
    """Judges by word, or does as ``sick`` says."""

    def __init__(self) -> None:
        self.sick: Script | None = None

    def __call__(self, request: dict[str, Any]) -> Iterable[bytes]:
        return self.sick(request) if self.sick else judging(by_word)(request)


def overloaded(_: dict[str, Any]) -> list[bytes]:
    return [OVERLOADED]


@contextmanager
def with_fallback(reply: list[bytes], **auditor: Any) -> Iterator[tuple[Running, Auditor, Auditor, Server]]:
    first, second = Auditor(), Auditor()
    with model_server(second) as fallback:
        settings = {"fallback": {"base_url": fallback.url, "model": "second"}, **auditor}
        with proxy(lambda _: reply, first, config={"auditor": settings}) as running:
            yield running, first, second, fallback


def circuit(running: Running) -> str:
    return httpx.get(running.url + "/readyz", trust_env=False).json()["auditor"]["circuit"]


def test_the_fallback_judges_where_the_first_is_out():
    with with_fallback(HARMFUL) as (running, first, _, fallback):
        first.sick = overloaded
        text = running.raw(ask(stream=True)).text
    assert CUT in text
    assert "HARM" not in text
    assert {body["model"] for body in fallback.bodies} == {"second"}


def test_a_benign_reply_is_whole_under_the_fallback_and_the_first_gets_its_streams_back():
    with with_fallback(BENIGN) as (running, first, _, fallback):
        first.sick = overloaded
        assert running.raw(ask(stream=True)).content == b"".join(BENIGN[1:])
        first.sick = None
        time.sleep(FIRST_PAUSE_SECONDS)
        fallback.requests.clear()
        assert running.raw(ask(stream=True)).content == b"".join(BENIGN[1:])
        assert fallback.requests == []
        assert circuit(running) == "closed"


def test_with_both_out_it_fails_closed_and_the_breaker_opens_until_one_is_back():
    now = 100.0
    with with_fallback(BENIGN, breaker_failures=2) as (running, first, second, fallback):
        running.app.service.breaker._clock = lambda: now
        first.sick = second.sick = overloaded
        for expected in ("closed", "open"):
            text = running.raw(ask(stream=True)).text
            assert (UNCHECKED in text, "fine" in text) == (True, False)
            assert circuit(running) == expected
        running.auditor.requests.clear()
        fallback.requests.clear()
        assert UNCHECKED in running.raw(ask(stream=True)).text
        assert running.auditor.requests == fallback.requests == []  # not asked at all
        second.sick = None
        now += FIRST_PAUSE_SECONDS
        assert circuit(running) == "half_open"
        assert running.raw(ask(stream=True)).content == b"".join(BENIGN[1:])
        assert circuit(running) == "closed"


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_balancer_says_late_opens_the_breaker_so_that_nobody_waits_for_it_again(status: int):
    asked: list[Any] = []

    def late(request: dict[str, Any]) -> Iterator[bytes]:
        asked.append(request)
        time.sleep(0.5)
        yield http(status, "<html>sorry</html>", "text/html")

    with proxy(lambda _: BENIGN, late, config={"auditor": {"breaker_failures": 2}}) as running:
        running.app.service.breaker._clock = lambda: 100.0  # its pause doesn't end
        for expected in ("closed", "open"):
            assert UNCHECKED in running.raw(ask(stream=True)).text
            assert circuit(running) == expected
        before = len(asked)
        assert UNCHECKED in running.raw(ask(stream=True)).text
        assert len(asked) == before


def test_while_the_breaker_is_open_replies_are_cut_without_waiting_for_the_timeout():
    let_go = threading.Event()

    def hang(_: dict[str, Any]) -> Iterator[bytes]:
        let_go.wait(60)
        yield b""

    with proxy(lambda _: BENIGN, hang, config={"auditor": {"timeout_ms": 2000, "breaker_failures": 1}}) as running:
        running.app.service.breaker._clock = lambda: 100.0  # its pause doesn't end
        began = time.monotonic()
        assert UNCHECKED in running.raw(ask(stream=True)).text
        assert time.monotonic() - began >= 2
        running.auditor.requests.clear()
        began = time.monotonic()
        assert UNCHECKED in running.raw(ask(stream=True)).text
        assert time.monotonic() - began < 2
        assert running.auditor.requests == []
        let_go.set()
