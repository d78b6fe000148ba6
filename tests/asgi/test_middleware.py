"""The guard inside Starlette and FastAPI model servers, over real sockets."""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import socket
import threading
import time
from typing import Any

import httpx
import openai
import pytest
import websockets.exceptions
import websockets.sync.client
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount

from guardtrace_proxy.asgi import GuardTraceMiddleware
from guardtrace_proxy.demo.serving import ServerDidNotStart, served
from tests.asgi.model_servers import APPS, AS_MODEL_SERVERS, MODELS, Model, guarded, starlette_app
from tests.server.running import ask
from tests.server.scripted import DONE, chunk, completion, judging, stream
from tests.structlog_state import no_structlog
from tests.waiting import eventually

FINE = stream("All is fine here, I think.", "Four.")
HARM = [*stream("All is fine here, then HARM in steps.", "No.")[:-2], *[chunk({"reasoning": "more "})] * 2000]
HARM += [chunk({}, "stop"), DONE]
WHOLE = completion("All is fine.", "Four.").partition(b"\r\n\r\n")[2]
MONITOR = {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}}

apps = pytest.mark.parametrize("make", APPS.values(), ids=APPS)


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


TENANTS = {"tenants": {"acme": {"keys": [digest("gt-acme")], "policy": "test"}}, "anonymous_tenant": None}


@apps
def test_a_harmless_stream_passes_byte_for_byte(make):
    model = Model(lambda _: FINE)
    with guarded(make(model)) as running:
        reply = running.raw(ask(stream=True))
    assert (reply.status_code, reply.content) == (200, b"".join(FINE))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert (model.ended, model.worked_on) == ("whole", True)
    assert len(running.auditor.requests) > 3


@apps
def test_a_whole_reply_passes_byte_for_byte_with_the_guards_own_headers(make):
    with guarded(make(Model(lambda _: FINE, whole=WHOLE))) as running:
        reply = running.raw(ask())
    assert (reply.status_code, reply.content) == (200, WHOLE)
    assert reply.headers["x-guardtrace-action"] == "pass"
    assert "x-secret" not in reply.headers


@apps
def test_another_api_is_audited_under_its_own_route(make):
    """Completions stand for all: what a dialect reads and writes has its own tests."""
    piece = b'data: {"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"%s","finish_reason":%s}]}\n\n'
    frames = [piece % (b"All is fine. ", b"null"), piece % (b"HARM ", b"null"), piece % (b"", b'"stop"'), DONE]
    model = Model(lambda asked: frames if asked["prompt"] == "harm" else [frames[0], *frames[2:]])
    with guarded(make(model)) as running:
        asked = {"model": "m", "prompt": "fine", "stream": True}
        assert running.ask("POST", "/v1/completions", json=asked).content == b"".join([frames[0], *frames[2:]])
        cut = running.ask("POST", "/v1/completions", json={**asked, "prompt": "harm"}).content
    assert b"content_filter" in cut
    assert b"HARM" not in cut
    assert model.paths == ["/v1/completions"] * 2


@apps
def test_a_cut_ends_the_stream_and_cancels_the_apps_handler(make):
    model = Model(lambda _: HARM, pause=0.01)
    with guarded(make(model)) as running:
        shown = list(running.client.chat.completions.create(**ask(stream=True)))
        assert eventually(lambda: model.running == 0)
    text = "".join(getattr(choice.delta, "reasoning", None) or "" for part in shown for choice in part.choices)
    assert "HARM" not in text
    assert text.startswith("All is")
    assert shown[-1].choices[0].finish_reason == "content_filter"
    assert model.ended in ("CancelledError", "GeneratorExit")
    assert model.sent < 1000


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


@apps
def test_a_generator_that_is_about_to_send_at_the_cut_does_not_wait_for_the_garbage_collector(make, no_collector):
    model = Model(lambda _: HARM, pause=0.001)
    with guarded(make(model)) as running:
        assert b"content_filter" in running.raw(ask(stream=True)).content
        assert eventually(lambda: model.running == 0)
    assert model.ended in ("CancelledError", "whole")


@apps
def test_what_a_client_leaves_is_cancelled(make):
    model = Model(lambda _: HARM, pause=0.01)
    with guarded(make(model), policy=MONITOR) as running:
        with httpx.stream(
            "POST", running.url + "/v1/chat/completions", json=ask(stream=True), trust_env=False
        ) as reply:
            parts = reply.iter_raw()  # held: where it goes, the connection goes
            next(parts)
            assert model.running == 1
        assert eventually(lambda: model.running == 0)
    assert model.sent < 1000
    assert model.ended in ("CancelledError", "GeneratorExit")


def test_a_client_that_leaves_before_the_head_has_come_is_told_to_the_app():
    left = threading.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await receive()
        if (await receive())["type"] == "http.disconnect":
            left.set()

    with guarded(app) as running:
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.3, trust_env=False) as client:
            client.post(running.url + "/v1/chat/completions", json=ask(stream=True))
        assert left.wait(10)


def test_a_slow_client_slows_the_app_down_and_still_gets_everything():
    enough = threading.Event()
    frame = chunk({"reasoning": "x"}, ballast=[7] * 20_000)

    def endless(_: Any) -> Any:
        while not enough.is_set():
            yield frame
        yield from [chunk({}, "stop"), DONE]

    model = Model(endless)
    with guarded(starlette_app(model), policy=MONITOR) as running:
        address = httpx.URL(running.url)
        with socket.create_connection((address.host, address.port), 30) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            stalled = last = -1
            while (stalled := stalled + 1 if model.sent == last > 0 else 0) < 20:
                last = model.sent
                time.sleep(0.02)
            assert last * len(frame) < 24 * 2**20
            enough.set()
            data = b""
            while more := client.recv(1 << 20):
                data += more
    assert data.count(b"ballast") == model.sent - 2
    assert DONE in data


@apps
def test_every_other_route_is_closed(make):
    model = Model(lambda _: FINE)
    with guarded(make(model)) as running:
        asked = [("POST", "/v1/rerank"), ("POST", "/v1/embeddings"), ("POST", "/tokenize"), ("GET", "/docs")]
        asked += [("GET", "/openapi.json"), ("GET", "/v1/chat/completions"), ("POST", "/v1/chat/completions/")]
        asked += [("POST", "//v1/chat/completions"), ("POST", "/health"), ("POST", "/v1/models"), ("GET", "/health/")]
        asked += [("PUT", "/metrics"), ("POST", "/v1/chat%2Fcompletions/x"), ("GET", "/metrics%2F..%2Fv1")]
        for method, path in asked:
            reply = running.ask(method, path, headers={"authorization": "Bearer EMPTY"})
            assert (method, path, reply.status_code, reply.json()["error"]["code"]) == (
                method,
                path,
                404,
                "unknown_url",
            )
    assert model.paths == []


@apps
def test_websockets_are_closed(make):
    model = Model(lambda _: FINE)
    with (
        served(make(model), **AS_MODEL_SERVERS) as url,
        websockets.sync.client.connect(url.replace("http", "ws") + "/v1/realtime") as open_,
    ):
        assert open_.recv() == "open"
    model = Model(lambda _: FINE)
    with guarded(make(model)) as running:
        for path in ("/v1/realtime", "/v1/chat/completions", "/health"):
            with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
                websockets.sync.client.connect(running.url.replace("http", "ws") + path)
            assert caught.value.response.status_code == 403
    assert model.paths == []


@apps
def test_the_servers_probes_pass_and_the_guard_has_its_own(make):
    with guarded(make(Model(lambda _: FINE)), config=TENANTS) as running:
        assert running.ask("GET", "/health").json() == {"path": "/health", "state": "by the app's lifespan"}
        assert running.ask("HEAD", "/metrics").status_code in (200, 405)  # FastAPI's routes take no HEAD
        assert running.ask("GET", "/healthz").json() == {"status": "ok"}
        assert eventually(lambda: running.ask("GET", "/readyz").json()["auditor"]["probe"] == "ok")
        assert running.ask("GET", "/v1/models").status_code == 401
        assert running.ask("GET", "/v1/models", headers={"authorization": "Bearer gt-acme"}).json() == MODELS


def test_listed_routes_pass_with_a_tenants_key_in_whose_place_the_app_gets_its_own():
    model = Model(lambda _: FINE)
    config = {
        **TENANTS,
        "server": {"passthrough": ["/v1/embeddings"]},
        "upstreams": {"default": {"api_key_env": "SERVER_KEY"}},
    }
    with guarded(starlette_app(model), config=config, environ={"SERVER_KEY": "inner"}) as running:
        assert running.ask("POST", "/v1/embeddings", content=b"x").status_code == 401
        assert running.ask("POST", "/v1/embeddings", headers={"authorization": "Bearer inner"}).status_code == 401
        assert model.paths == []
        known = {"authorization": "Bearer gt-acme", "x-own": "1"}
        assert running.ask("POST", "/v1/embeddings?a=b", content=b"x", headers=known).json()["path"] == "/v1/embeddings"
        assert (model.heads[-1]["authorization"], model.heads[-1]["x-own"], model.bodies[-1]) == (
            "Bearer inner",
            "1",
            b"x",
        )
        assert running.ask("POST", "/v1/rerank", headers=known).status_code == 404


def test_a_listed_route_without_a_key_is_told_by_its_request_id(capsys):
    config = {**TENANTS, "server": {"passthrough": ["/v1/embeddings"]}, "logging": {"level": "info"}}
    with no_structlog(), guarded(starlette_app(Model(lambda _: FINE)), config=config) as running:
        assert running.ask("POST", "/v1/embeddings", headers={"x-request-id": "abc.1"}).status_code == 401
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    [line] = [line for line in lines if line["event"] == "request refused"]
    assert (line["request_id"], line["status"], line["tenant"], line["route"]) == ("abc.1", 401, None, "other")


def test_tenants_are_known_by_their_keys_and_the_app_gets_few_headers_and_its_own_key():
    model = Model(lambda _: FINE, whole=WHOLE)
    config = {**TENANTS, "upstreams": {"default": {"api_key_env": "SERVER_KEY"}}}
    with guarded(starlette_app(model), config=config, environ={"SERVER_KEY": "inner"}) as running:
        with pytest.raises(openai.AuthenticationError):
            running.client.chat.completions.create(**ask())
        with pytest.raises(openai.AuthenticationError):
            running.client.with_options(api_key="inner").chat.completions.create(**ask())
        assert model.heads == []
        known = running.client.with_options(api_key="gt-acme", default_headers={"x-request-id": "abc.1", "x-more": "1"})
        assert known.chat.completions.create(**ask()).choices[0].message.content == "Four."
    (head,) = model.heads
    assert head.pop("host").startswith("127.0.0.1:")
    assert head.pop("x-request-id").startswith("abc.1-")
    assert head == {
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(model.bodies[0])),
        "authorization": "Bearer inner",
    }


def test_the_auditor_sees_the_image_that_the_model_sees():
    model = Model(lambda _: FINE, whole=WHOLE)
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    body = ask(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    with guarded(starlette_app(model)) as running:
        assert running.raw(body).status_code == 200
        remote = running.raw({**body, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]}]})  # fmt: skip
        assert (remote.status_code, remote.json()["error"]["code"]) == (400, "invalid_image")
        assert len(model.bodies) == 1
    assert url.encode() in model.bodies[0]
    assert any(url in str(request) for request in running.auditor.bodies)


def test_one_policys_cut_of_a_whole_reply():
    harm = completion("Then HARM in steps.", "Four.").partition(b"\r\n\r\n")[2]
    with guarded(starlette_app(Model(lambda _: FINE, whole=harm))) as running:
        choice = running.client.chat.completions.create(**ask()).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("content_filter", "This response was stopped by policy.")


def test_an_auditor_that_is_down_cuts():
    with guarded(starlette_app(Model(lambda _: FINE)), judging(lambda _: "nonsense")) as running:
        reply = running.raw(ask(stream=True))
    assert b"content_filter" in reply.content
    assert b"fine" not in reply.content


def mounted(app: Any) -> Any:
    return Starlette(routes=[Mount("/llm", app=app)])


@apps
def test_mounted_below_a_path_it_starts_with_the_first_request(make):
    model = Model(lambda _: FINE)
    with guarded(make(model), mounted=mounted) as running:
        assert running.ask("GET", "/llm/readyz").json()["auditor"]["probe"] == "ok"
        assert running.ask("POST", "/llm/v1/chat/completions", json=ask(stream=True)).content == b"".join(FINE)
        assert running.ask("GET", "/llm/v1/models").json() == MODELS
        assert running.ask("GET", "/llm/health").json()["path"] == "/llm/health"
        assert running.ask("POST", "/llm/v1/rerank").status_code == 404
        assert running.ask("GET", "/llm/llm/health").status_code == 404
    assert "/llm/v1/chat/completions" in model.paths


def test_mounted_with_settings_that_cannot_be_used_it_serves_nothing():
    model = Model(lambda _: FINE, whole=WHOLE)
    with served(mounted(GuardTraceMiddleware(starlette_app(model), environ={})), **AS_MODEL_SERVERS) as url:
        for _ in range(2):
            reply = httpx.post(url + "/llm/v1/chat/completions", json=ask(), trust_env=False)
            assert (reply.status_code, reply.json()["error"]["code"]) == (500, "guard_not_started")
            assert httpx.post(url + "/llm/v1/embeddings", trust_env=False).status_code == 500
        assert model.paths == []
        # The server's own probe passes all the same; the guard's tells.
        assert httpx.get(url + "/llm/readyz", trust_env=False).status_code == 500
        assert httpx.get(url + "/llm/health", trust_env=False).status_code == 200


def test_an_app_that_fails_to_start_is_told_as_without_the_guard():
    def failing(app: Any) -> Any:
        raise ValueError("no weights")

    app = Starlette(lifespan=failing)
    with pytest.raises(ServerDidNotStart), guarded(app):
        pass


def test_an_app_without_a_lifespan_is_served():
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": WHOLE})

    with guarded(app) as running:
        assert running.raw(ask()).content == WHOLE
        assert eventually(lambda: running.ask("GET", "/readyz").json()["auditor"]["probe"] == "ok")


class ClosingAuditor:
    """Wraps nothing: it is never asked for a verdict here."""

    name = "closing"
    warnings = ()
    escalate_at = None

    def __init__(self) -> None:
        self.told: list[str] = []

    async def start(self) -> None:
        self.told.append("start")

    async def open(self, query: Any) -> Any:
        raise AssertionError

    async def aclose(self) -> None:
        self.told.append("aclose")


@pytest.mark.parametrize("how", ["starlette", "bare"])
def test_the_auditor_lives_as_long_as_the_server(how):
    auditor = ClosingAuditor()

    async def bare(scope, receive, send):
        raise NotImplementedError

    app = bare if how == "bare" else starlette_app(Model(lambda _: FINE))
    with guarded(app, own_auditor=auditor) as running:
        assert running.ask("GET", "/healthz").status_code == 200
        assert auditor.told == ["start"]
    assert auditor.told == ["start", "aclose"]


def test_the_log_holds_no_word_of_what_the_app_raised(capfd):
    class Failing(Model):
        async def chat(self, request: Any) -> Any:
            raise ValueError(f"wombat-private {await self._note(request)!r}")

    with guarded(starlette_app(Failing(lambda _: FINE)), config={"logging": {"level": "debug"}}) as running:
        assert running.raw(ask()).status_code == 500
    said = capfd.readouterr()
    assert "the server's app raised" in said.err
    assert "ValueError" in said.err
    assert "wombat-private" not in said.err + said.out
    assert "Please help" not in said.err + said.out
