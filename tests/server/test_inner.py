"""Apps behind the middleware that fail, hang, flood or don't listen: bare ASGI ones, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from guardtrace_proxy.server import inner_reply
from tests.asgi.model_servers import guarded
from tests.asgi.test_middleware import FINE, HARM, MONITOR, WHOLE, eventually
from tests.server.running import ask
from tests.server.scripted import DONE, by_word, chunk, judging

SSE = (b"content-type", b"text/event-stream")
JSON = (b"content-type", b"application/json")


def head(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [*headers]}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def replaying(*messages: dict[str, Any] | Exception, pause: float = 0.0) -> Callable[..., Any]:
    """An app that sends the messages, and raises what is an exception among them."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        for message in messages:
            if isinstance(message, Exception):
                raise message
            await send(message)
            await asyncio.sleep(pause)

    return app


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("messages", [[ValueError("private")], []], ids=["raises", "returns"])
def test_an_app_that_fails_before_its_reply_is_a_500_that_tells_nothing(messages, streamed):
    with guarded(replaying(*messages)) as running:
        reply = running.raw(ask(stream=streamed))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "upstream_failed")
    assert "private" not in reply.text


@pytest.mark.parametrize("end", [[ValueError("private")], []], ids=["raises", "returns"])
def test_a_stream_that_breaks_off_is_never_made_to_look_finished(end):
    with guarded(replaying(head(200, SSE), *(body(frame, True) for frame in FINE[:-2]), *end)) as running:
        reply = running.raw(ask(stream=True))
        with pytest.raises(openai.APIError):
            list(running.client.chat.completions.create(**ask(stream=True)))
    assert DONE not in reply.content
    assert reply.content.startswith(b"".join(FINE[:-2]))
    assert b"upstream_error" in reply.content
    assert b"private" not in reply.content


def test_a_whole_reply_that_breaks_off_is_a_502():
    with guarded(replaying(head(200, JSON), body(WHOLE[:20], True))) as running:
        assert running.raw(ask()).status_code == 502


def test_the_apps_own_error_passes_without_more():
    error = {
        "error": {"message": "No such model.", "type": "NotFoundError", "param": "model", "code": 404},
        "text": "x",
    }
    with guarded(replaying(head(404, JSON, (b"retry-after", b"3"), (b"x-own", b"1")), body(json.dumps(error).encode()))) as running:  # fmt: skip
        reply = running.raw(ask(stream=True))
    assert (reply.status_code, reply.json()) == (404, {"error": error["error"]})
    assert reply.headers["retry-after"] == "3"
    assert "x-own" not in reply.headers


@pytest.mark.parametrize(
    ("messages", "status", "told"),
    [
        ([head(422, JSON), body(b'{"detail": "x"}')], 422, "without an error object"),
        ([head(302, (b"location", b"/x")), body(b"")], 502, "HTTP 302"),
        ([head(200, (b"content-type", b"text/html")), body(b"<p>")], 502, "text/html"),
        ([head(200, SSE, (b"content-encoding", b"gzip")), body(gzip.compress(b"".join(FINE)))], 502, "gzip"),
        ([head(503, JSON), ValueError("private")], 503, "HTTP 503"),
        ([body(b"x")], 500, "failed"),
        ([{"type": "http.response.pathsend", "path": "/etc/hostname"}], 500, "failed"),
        ([head(200, JSON), head(200, JSON)], 502, "application/json where an event stream"),
    ],
)
def test_what_cannot_be_audited_is_refused(messages, status, told):
    with guarded(replaying(*messages)) as running:
        reply = running.raw(ask(stream=True))
    assert reply.status_code == status
    assert told in reply.json()["error"]["message"]


def test_a_list_of_models_that_is_none_is_a_502():
    with guarded(replaying(head(200, JSON), body(b"[]"))) as running:
        assert running.ask("GET", "/v1/models").status_code == 502


def test_a_silent_app_is_a_504_or_breaks_the_stream_off_and_is_told():
    told = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        asked = json.loads((await receive())["body"])
        if asked["n"] == 2:
            await send(head(200, SSE))
            await send(body(FINE[1], True))
        told.append((await receive())["type"])

    with guarded(app, config={"upstreams": {"default": {"read_timeout_ms": 200}}}) as running:
        silent = running.raw(ask(stream=True, n=1))
        assert (silent.status_code, silent.json()["error"]["code"]) == (504, "upstream_timeout")
        broken = running.raw(ask(stream=True, n=2))
        assert (broken.status_code, DONE in broken.content, b"upstream_error" in broken.content) == (200, False, True)
        assert eventually(lambda: told == ["http.disconnect"] * 2)


def test_an_app_is_not_silent_while_it_is_not_read():
    """What is held waits for a verdict, longer than the app may be silent."""
    frames = [chunk({"reasoning": "word "}, ballast=[7] * 60_000) for _ in range(8)]

    def slow(request):
        time.sleep(0.4)
        return judging(by_word)(request)

    config = {"upstreams": {"default": {"read_timeout_ms": 300}}, "server": {"max_stream_bytes": 2**20}}
    app = replaying(head(200, SSE), *(body(frame, True) for frame in frames), body(b"".join(FINE)))
    with guarded(app, slow, config=config, policy={"boundary": {"first": 100, "max": 100}}) as running:
        assert running.raw(ask(stream=True)).content == b"".join([*frames, *FINE])


@pytest.fixture
def bounds(monkeypatch):
    monkeypatch.setattr(inner_reply, "DISCONNECT_SECONDS", 0.2)
    monkeypatch.setattr(inner_reply, "CANCEL_SECONDS", 0.3)


def deaf(ended: list[str], *, resists: bool = False) -> Callable[..., Any]:
    """An app that never asks whether its client is there and, after a few frames, doesn't send."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send(head(200, SSE))
        for frame in HARM[:40]:
            await send(body(frame, True))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            if resists:
                await asyncio.sleep(1)
            ended.append("ended")
            raise

    return app


@pytest.mark.parametrize("resists", [False, True])
def test_an_app_that_does_not_listen_is_cancelled_within_a_bound(bounds, resists):
    ended: list[str] = []
    with guarded(deaf(ended, resists=resists)) as running:
        began = time.monotonic()
        reply = running.raw(ask(stream=True))
        assert time.monotonic() - began < 20
        assert b"content_filter" in reply.content
        assert eventually(lambda: "cancelled" in ended)
        # The next request isn't kept waiting by what resists.
        assert running.ask("GET", "/healthz").status_code == 200
        assert eventually(lambda: "ended" in ended)


def test_the_app_is_told_at_the_cut_and_not_when_the_client_has_read_it():
    told = threading.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await receive()
        await send(head(200, SSE))
        for frame in HARM[:40]:
            await send(body(frame, True))
        if (await receive())["type"] == "http.disconnect":
            told.set()

    with guarded(app) as running:
        with httpx.stream(
            "POST", running.url + "/v1/chat/completions", json=ask(stream=True), trust_env=False, timeout=30
        ):
            assert told.wait(20)


def test_sending_on_after_the_cut_raises_as_for_a_client_that_has_left():
    raised = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send(head(200, SSE))
        try:
            for frame in HARM:
                await send(body(frame, True))
                await asyncio.sleep(0.002)
        except OSError as error:
            raised.append(error)
            raise

    with guarded(app) as running:
        assert b"content_filter" in running.raw(ask(stream=True)).content
        assert eventually(lambda: raised)


def test_an_app_that_never_waits_is_read_piece_by_piece():
    ahead = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send(head(200, SSE))
        for number in range(400):
            await send(body(chunk({"reasoning": "x"}, ballast=[7] * 3300), True))
            ahead.append(number)
        await send(body(b"".join([chunk({}, "stop"), DONE])))

    judged = threading.Event()

    def waiting(request):
        if "Please help" in request["messages"][-1]["content"]:
            assert judged.wait(20)
        return judging(by_word)(request)

    config = {"server": {"max_stream_bytes": 2**20}, "auditor": {"timeout_ms": 30_000}}
    with guarded(app, waiting, config=config) as running:
        asking = threading.Thread(target=running.raw, args=(ask(stream=True),))
        asking.start()
        assert eventually(lambda: len(ahead) > 90)
        time.sleep(0.3)
        assert len(ahead) < 130  # 1 MiB held, 64 KiB unread
        judged.set()
        asking.join(30)
        assert len(ahead) == 400


def test_the_app_goes_on_after_its_whole_reply():
    done = threading.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await receive()
        await send(head(200, SSE))
        await send(body(b"".join(FINE)))
        assert (await receive())["type"] == "http.disconnect"
        await asyncio.sleep(0.4)
        done.set()

    with guarded(app, policy=MONITOR) as running:
        assert running.raw(ask(stream=True)).content == b"".join(FINE)
        assert done.wait(20)
