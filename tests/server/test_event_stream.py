"""Keepalive comments: sent while nothing else is, between events only, dropped by clients; what fails after them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPResponse

import openai
import pytest

from tests.server.running import Running, ask, connected, proxy
from tests.server.scripted import DONE, SSE_HEAD, chunk, http, judging, stream

COMMENT = b": keepalive\n\n"
OFTEN = {"server": {"keepalive_ms": 20}}
FRAMES = stream("All is fine here.", "Four.")


class Pause:
    """Where a script waits until the test has seen a comment."""

    def __init__(self) -> None:
        self.seen = threading.Event()

    def wait(self) -> Iterator[bytes]:
        assert self.seen.wait(20)
        yield from ()


def read_with_comment(running: Running, pause: Pause) -> tuple[HTTPResponse, bytes, bytes]:
    """The head, what came until the first comment, and what came after it, without later comments."""
    with connected(running) as client:
        reply = client.send_chat(ask(stream=True))
        before = read_to_comment(reply)
        pause.seen.set()
        after = reply.read()
    return reply, before, after.replace(COMMENT, b"")


def read_to_comment(reply: HTTPResponse) -> bytes:
    lines = []
    while (line := reply.readline()) != b": keepalive\n":
        assert line, "the reply ended without a comment"
        lines.append(line)
    assert reply.readline() == b"\n"
    return b"".join(lines)


@pytest.mark.parametrize("mode", ["hold", "monitor"])
def test_comments_come_while_the_upstream_is_silent_and_never_inside_an_event(mode):
    pause = Pause()
    whole = b"".join(FRAMES)
    half = whole.index(b'"here') + 3

    def halves(_):
        yield SSE_HEAD + whole[:half]
        yield from pause.wait()
        yield whole[half:]

    with proxy(halves, config=OFTEN, policy={"thinking": {"mode": mode}, "answer": {"mode": mode}}) as running:
        _, before, after = read_with_comment(running, pause)
    assert before + after == whole


def test_comments_come_while_an_audit_runs_and_nothing_unaudited_with_them():
    pause = Pause()

    def slow(request):
        yield from pause.wait()
        yield from judging(lambda _: "0")(request)

    with proxy(lambda _: [SSE_HEAD, *FRAMES], slow, config={**OFTEN, "auditor": {"timeout_ms": 60_000}}) as running:
        _, before, after = read_with_comment(running, pause)
    assert b"fine" not in before
    assert before + after == b"".join(FRAMES)


def test_the_head_leaves_with_the_first_comment_where_the_upstream_hasnt_answered():
    pause = Pause()

    def late(_):
        yield from pause.wait()
        yield SSE_HEAD + b"".join(FRAMES)

    with proxy(late, config=OFTEN) as running:
        reply, before, after = read_with_comment(running, pause)
    assert (reply.status, reply.headers["x-guardtrace-policy"], before) == (200, "test", b"")
    assert after == b"".join(FRAMES)


ERROR = json.dumps({"error": {"message": "Slow down.", "type": "rate_limit", "param": None, "code": None}})


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (http(429, ERROR), 429),
        (http(503, "<html>", "text/html"), "upstream_error"),
        (http(200, "{}"), "upstream_unreadable"),
        (b"", "upstream_unreachable"),
    ],
)
def test_what_fails_after_the_head_has_left_is_an_event_and_no_done(reply, code):
    pause = Pause()

    def late(_):
        yield from pause.wait()
        yield reply

    with proxy(late, config=OFTEN) as running:
        _, _, after = read_with_comment(running, pause)
    assert after.startswith(b"data: ")
    assert after.endswith(b"\n\n")
    assert json.loads(after.removeprefix(b"data: "))["error"]["code"] == code


def test_what_fails_before_that_keeps_its_status():
    for keepalive in (0, 60_000):
        with proxy(lambda _: [http(429, ERROR)], config={"server": {"keepalive_ms": keepalive}}) as running:
            assert running.raw(ask(stream=True)).status_code == 429


def test_the_official_client_drops_comments_and_raises_what_failed():
    pause = Pause()
    replies = [SSE_HEAD + b"".join(FRAMES), http(429, ERROR)]

    def late(_):
        yield from pause.wait()
        yield replies.pop(0)

    with proxy(late, config=OFTEN) as running:
        # `create` returns with the head, which leaves before the upstream has answered.
        events = running.client.chat.completions.create(**ask(stream=True))
        pause.seen.set()
        assert "".join(event.choices[0].delta.content or "" for event in events) == "Four. "
        pause.seen.clear()
        events = running.client.chat.completions.create(**ask(stream=True))
        pause.seen.set()
        with pytest.raises(openai.APIError, match="Slow down"):
            list(events)


def test_a_cut_after_comments_is_a_cut():
    pause = Pause()

    def late(_):
        yield SSE_HEAD + chunk({"role": "assistant", "content": ""})
        yield from pause.wait()
        yield b"".join([chunk({"reasoning": "HARM "}), chunk({}, "stop"), DONE])

    with proxy(late, config=OFTEN) as running:
        _, _, after = read_with_comment(running, pause)
    assert b"HARM" not in after
    assert b"content_filter" in after
    assert after.endswith(DONE)


def test_a_client_that_leaves_before_the_upstream_has_answered_is_noticed():
    arrived, gone = threading.Event(), threading.Event()

    def silent(_):
        arrived.set()
        assert gone.wait(20)
        while True:
            yield b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100

    with proxy(silent, config=OFTEN) as running:
        with connected(running) as client:
            read_to_comment(client.send_chat(ask(stream=True)))
            assert arrived.wait(20)
        gone.set()
        assert running.upstream.left.wait(10)


def test_a_reply_without_streaming_gets_none():
    pause = threading.Event()
    body = json.dumps({"error": {"message": "Slow down."}})

    def late(_):
        pause.wait(0.2)  # ten times the pause after which a stream gets a comment
        yield http(429, body)

    with proxy(late, config=OFTEN) as running:
        assert running.raw(ask()).status_code == 429
