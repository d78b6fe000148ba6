"""Two auditor servers, one of them sick: the reply ends with the right verdicts, and nothing unaudited leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from guardtrace_proxy.auditor.replicas import ranked
from tests.server.running import Running, ask, proxy
from tests.server.scripted import SSE_HEAD, Server, by_word, completion, http, judging, model_server, stream
from tests.waiting import eventually

CUT = "This response was stopped by policy."
UNCHECKED = "This response was stopped because it could not be checked."
BENIGN = stream("All of this is quite fine and so is what follows it here.", "Two and two make four.")
HARMFUL = stream("All of this is quite fine but then comes HARM spelt out in full.", "No.")
TIMEOUT = {"timeout_ms": 4000}


@dataclass
class Pair:
    """Two auditor servers; ``home`` is where the request's stream belongs. ``sick`` is what its script does once told to;
    ``turn_sick`` does so, and ``kill`` closes its socket."""

    home: Server
    other: Server
    kill: Callable[[], None]
    request_id: str
    sick: Callable[[dict[str, Any]], Iterable[bytes]] | None = None
    both: bool = False
    let_go: threading.Event = field(default_factory=threading.Event)

    def hang(self, _: dict[str, Any]) -> Iterator[bytes]:
        self.let_go.wait(60)
        yield b""

    def asked(self, server: Server) -> int:
        return sum("Please help" in body["messages"][-1]["content"] for body in server.bodies)


def refuse(_: dict[str, Any]) -> Iterable[bytes]:
    return [http(500, "{}")]


def break_off(_: dict[str, Any]) -> Iterable[bytes]:
    return [http(200, "{}" * 100)[:-50]]


@contextmanager
def two_auditors() -> Iterator[Pair]:
    with ExitStack() as stack:
        pairs: list[Pair] = []

        def script(number: int) -> Callable[[dict[str, Any]], Iterable[bytes]]:
            def answer(request: dict[str, Any]) -> Iterable[bytes]:
                pair = pairs[0]
                if pair.sick and (pair.both or servers[number] is pair.home):
                    return pair.sick(request)
                return judging(by_word)(request)

            return answer

        own = [stack.enter_context(ExitStack()) for _ in range(2)]
        servers = [own[number].enter_context(model_server(script(number))) for number in range(2)]
        request_id = "stream-7"
        first = ranked([server.url for server in servers], request_id)[0]
        home = next(number for number in range(2) if servers[number].url == first)
        pairs.append(Pair(servers[home], servers[1 - home], own[home].close, request_id))
        try:
            yield pairs[0]
        finally:
            pairs[0].let_go.set()


def until_asked(pair: Pair) -> None:
    """The home replica has judged some of the reply."""
    assert eventually(lambda: pair.asked(pair.home)), "it was never asked"


def in_halves(frames: list[bytes], pair: Pair, between: Callable[[], None]) -> Callable[[Any], Iterator[bytes]]:
    """An upstream that goes on only when the first half is being audited, and something has happened then."""

    def script(_: Any) -> Iterator[bytes]:
        yield SSE_HEAD
        yield from frames[:7]
        until_asked(pair)
        between()
        yield from frames[7:]

    return script


def settings(pair: Pair) -> dict[str, Any]:
    return {"auditor": {"base_url": [pair.home.url, pair.other.url], **TIMEOUT}}


def sent(running: Running, pair: Pair) -> bytes:
    return running.raw(ask(stream=True), headers={"x-request-id": pair.request_id}).content


HOW = ["killed", "hangs", "refuses", "breaks off"]


def make_sick(pair: Pair, how: str) -> Callable[[], None]:
    if how == "killed":
        return pair.kill

    def turn() -> None:
        pair.sick = {"hangs": pair.hang, "refuses": refuse, "breaks off": break_off}[how]

    return turn


@pytest.mark.parametrize("how", HOW)
def test_a_benign_reply_survives_whole(how: str) -> None:
    with two_auditors() as pair, proxy(in_halves(BENIGN, pair, make_sick(pair, how)), config=settings(pair)) as running:
        assert sent(running, pair) == b"".join(BENIGN)
    assert pair.asked(pair.home) >= 1
    assert pair.asked(pair.other) >= 1
    # The one that took over saw all of the reply, not only what came after.
    last = pair.other.bodies[-1]["messages"][-1]["content"]
    assert "All of this is quite fine and so is what follows" in last
    assert "Two and two make four." in last


@pytest.mark.parametrize("how", HOW)
def test_harm_is_cut_by_the_one_that_took_over(how: str) -> None:
    with (
        two_auditors() as pair,
        proxy(in_halves(HARMFUL, pair, make_sick(pair, how)), config=settings(pair)) as running,
    ):
        text = sent(running, pair).decode()
    assert "HARM" not in text
    assert "auditor_failure" not in text
    assert CUT in text
    assert pair.asked(pair.other) >= 1


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_where_all_are_sick_the_reply_is_cut(how: str) -> None:
    with two_auditors() as pair:
        pair.both = True
        with proxy(in_halves(BENIGN, pair, make_sick(pair, how)), config=settings(pair)) as running:
            text = sent(running, pair).decode()
    assert "what follows" not in text
    assert UNCHECKED in text
    assert '"content_filter"' in text


def test_or_it_is_held_until_one_is_back() -> None:
    with two_auditors() as pair:
        pair.both = True
        tries: list[int] = []

        def refuse_for_a_while(request: dict[str, Any]) -> Iterable[bytes]:
            tries.append(1)
            return refuse(request) if len(tries) < 7 else judging(by_word)(request)

        def turn() -> None:
            pair.sick = refuse_for_a_while

        policy = {"on_auditor_failure": "hold"}
        with proxy(in_halves(BENIGN, pair, turn), config=settings(pair), policy=policy) as running:
            assert sent(running, pair) == b"".join(BENIGN)
        assert len(tries) >= 7


def test_or_it_is_released_and_says_so() -> None:
    with two_auditors() as pair:
        pair.both = True
        policy = {"on_auditor_failure": "release"}
        upstream = in_halves(BENIGN, pair, make_sick(pair, "refuses"))
        with proxy(upstream, config=settings(pair), policy=policy) as running:
            text = sent(running, pair).decode()
    assert "auditor_failure" in text
    assert "[DONE]" in text


def test_all_choices_of_a_request_share_a_replica_and_requests_are_spread() -> None:
    whole = [
        {"index": n, "message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"} for n in (0, 1)
    ]

    def reply(_: Any) -> list[bytes]:
        return [completion(None, "", choices=whole)]

    with two_auditors() as pair, proxy(reply, config=settings(pair)) as running:
        assert running.raw(ask(n=2), headers={"x-request-id": pair.request_id}).status_code == 200
        assert (pair.asked(pair.home), pair.asked(pair.other)) == (2, 0)
        for _ in range(40):  # each has an id of its own, so all but one in 10**10 times both get some
            running.raw(ask(n=2))
        assert pair.asked(pair.other) >= 2
