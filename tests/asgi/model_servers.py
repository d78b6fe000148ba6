"""Model servers that follow a script, as Starlette and as FastAPI apps, and either with the guard inside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fastapi
import httpx
import openai
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from guardtrace_proxy.asgi import GuardTraceMiddleware
from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.wire.dialects import BY_ROUTE
from tests.server.running import CHUNKS
from tests.server.scripted import Script, Server, by_word, judging, model_server
from tests.structlog_state import no_structlog

Frames = Callable[[dict[str, Any]], list[bytes]]
MODELS = {"object": "list", "data": [{"id": "thinker", "object": "model"}]}


@dataclass
class Model:
    """What the server's handlers do, and what they saw. ``pause``: seconds between two frames."""

    frames: Frames
    pause: float = 0.0
    whole: bytes = b"{}"
    sent: int = 0
    ended: str = ""
    """How the last stream ended: ``whole`` or the exception's type."""
    running: int = 0
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    worked_on: bool = False
    """Whether what stands after a reply's end was done."""

    async def chat(self, request: Request) -> Response:
        body = await self._note(request)
        asked = json.loads(body)
        if asked.get("stream"):
            return StreamingResponse(self._stream(asked), media_type="text/event-stream", background=_Later(self))
        await asyncio.sleep(self.pause)
        return Response(self.whole, media_type="application/json", headers={"x-secret": "inner"})

    async def other(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse({"path": request.url.path, "state": getattr(request.state, "loaded", None)})

    async def models(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse(MODELS)

    async def websocket(self, socket: WebSocket) -> None:
        self.paths.append(socket.url.path)
        await socket.accept()
        await socket.send_text("open")
        await socket.close()

    async def _note(self, request: Request) -> bytes:
        self.paths.append(request.url.path)
        self.heads.append(dict(request.headers))
        self.bodies.append(await request.body())
        return self.bodies[-1]

    async def _stream(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            for frame in self.frames(asked):
                yield frame
                self.sent += 1
                await asyncio.sleep(self.pause)
            self.ended = "whole"
        except BaseException as error:
            self.ended = type(error).__name__
            raise
        finally:
            self.running -= 1


class _Later:
    def __init__(self, model: Model) -> None:
        self._model = model

    async def __call__(self) -> None:
        await asyncio.sleep(0.05)
        self._model.worked_on = True


OTHERS = ("/v1/rerank", "/v1/embeddings", "/tokenize", "/health", "/metrics", "/docs-of-ours")


def starlette_app(model: Model) -> Any:
    routes = [
        *(Route(path, model.chat, methods=["POST"]) for path in BY_ROUTE),
        Route("/v1/models", model.models),
        *(Route(path, model.other, methods=["GET", "POST"]) for path in OTHERS),
        WebSocketRoute("/v1/realtime", model.websocket),
    ]
    return Starlette(routes=routes, lifespan=loading)


def fastapi_app(model: Model) -> Any:
    app = fastapi.FastAPI(lifespan=loading)

    async def chat(request: fastapi.Request) -> Response:
        return await model.chat(request)

    for path in BY_ROUTE:
        app.post(path)(chat)

    @app.get("/v1/models")
    async def models(request: fastapi.Request) -> Response:
        return await model.models(request)

    async def other(request: fastapi.Request) -> Response:
        return await model.other(request)

    for path in OTHERS:
        app.api_route(path, methods=["GET", "POST"])(other)

    @app.websocket("/v1/realtime")
    async def realtime(socket: fastapi.WebSocket) -> None:
        await model.websocket(socket)

    return app


@asynccontextmanager
async def loading(app: Any) -> AsyncIterator[dict[str, Any]]:
    yield {"loaded": "by the app's lifespan"}


APPS = {"starlette": starlette_app, "fastapi": fastapi_app}


@dataclass
class Guarded:
    url: str
    auditor: Server

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="EMPTY", max_retries=0, timeout=30)

    def raw(self, body: Any, **options: Any) -> httpx.Response:
        """POST to chat completions; a dict goes as JSON, bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", "/v1/chat/completions", content=content, **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        with httpx.Client(timeout=30, trust_env=False) as client:
            return client.request(method, self.url + path, **options)


def write_settings(folder: Path, auditor: str, policy: dict[str, Any], more: dict[str, Any]) -> Path:
    """``more`` is merged over small defaults."""
    settings: dict[str, Any] = {
        "auditor": {"base_url": auditor, "model": "guard", "depth": "annotate", "timeout_ms": 3000},
        "tenants": {"all": {"policy": "test"}},
        "anonymous_tenant": "all",
        "logging": {"level": "error"},
    }
    for key, value in more.items():
        old = settings.get(key)
        settings[key] = {**old, **value} if isinstance(old, dict) and key != "tenants" else value
    (folder / "policies").mkdir()
    content = {"version": 1, "extends": "balanced", **CHUNKS, **policy}
    (folder / "policies" / "test.yaml").write_text(yaml.safe_dump(content), "utf-8")
    path = folder / "guardtrace.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return path


AS_MODEL_SERVERS: dict[str, Any] = {"http": "httptools", "ws": "auto"}
"""They run uvicorn as it is."""


@contextmanager
def guarded(
    app: Any,
    auditor: Script | None = None,
    *,
    policy: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    mounted: Callable[[Any], Any] = lambda app: app,
    own_auditor: Auditor | None = None,
    **options: Any,
) -> Iterator[Guarded]:
    """Serve ``app`` with the guard inside: added as its middleware, or put before it if it takes none. ``mounted``
    makes of it what is served; ``own_auditor`` is asked in the place of one that follows the script."""
    with ExitStack() as stack:
        stack.enter_context(no_structlog())
        auditor_server = stack.enter_context(model_server(auditor or judging(by_word)))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        path = write_settings(folder, auditor_server.url, policy or {}, config or {})
        options = {"environ": {}, "auditor": own_auditor, **options, "config": path}
        if hasattr(app, "add_middleware"):
            app.add_middleware(GuardTraceMiddleware, **options)
        else:
            app = GuardTraceMiddleware(app, **options)
        yield Guarded(stack.enter_context(served(mounted(app), **AS_MODEL_SERVERS)), auditor_server)
