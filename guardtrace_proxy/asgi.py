"""The guard inside a model server: ``vllm serve MODEL --middleware guardtrace_proxy.asgi.GuardTraceMiddleware``, or
``app.add_middleware(GuardTraceMiddleware, config="guardtrace.yaml")`` in Starlette and FastAPI. See docs/doors.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog

from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.images import ImageFetcher
from guardtrace_proxy.policy.errors import ConfigError, Problem
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.asgi_io import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    close_websocket,
    respond_error,
    route_of,
)
from guardtrace_proxy.server.config import Config
from guardtrace_proxy.server.errors import ApiError, not_started
from guardtrace_proxy.server.forwarded import to_upstream
from guardtrace_proxy.server.inner import InnerApp
from guardtrace_proxy.server.inner_config import MODEL, load_inner_config
from guardtrace_proxy.server.one_response import OneResponse
from guardtrace_proxy.server.service import api_key_of
from guardtrace_proxy.telemetry.logs import configure_own_logging
from guardtrace_proxy.wire.dialects import speaking_at

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

log = structlog.get_logger("guardtrace")

VARIABLE = "GUARDTRACE_CONFIG"
PROBES = ("/health", "/metrics")
"""Routes of the server that pass without a key, by GET and HEAD: they tell of its state, not of anyone's text."""
LAST = ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed")


class GuardTraceMiddleware:
    """Audits what ``app`` answers in the known dialects; refuses every route, HTTP or websocket, that it doesn't audit.

    ``config`` is the settings' path; without it the environment variable ``GUARDTRACE_CONFIG`` names it. Settings that
    can't be used end the server's start, or, where it doesn't speak ASGI's lifespan, are a 500 for every request.
    The other parameters are those of `GuardTraceApp`.
    """

    def __init__(
        self,
        app: App,
        config: str | Path | None = None,
        *,
        auditor: Auditor | None = None,
        environ: Mapping[str, str] | None = None,
        observer: Callable[[Decided], None] | None = None,
        image_fetcher: ImageFetcher | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.app = app
        self.startup_error: str | None = None
        self.guard: GuardTraceApp | None = None
        """None until the settings were read and the auditor was started."""
        self._config = config
        self._auditor = auditor
        self._environ = os.environ if environ is None else environ
        self._observer = observer
        self._image_fetcher = image_fetcher
        self._tracer_provider = tracer_provider
        self._inner: InnerApp
        self._starting = anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await close_websocket(receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            raise RuntimeError(f"what a connection of type {scope['type']!r} carries isn't audited")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = route_of(scope)
        if route in PROBES and scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        guard = await self._started(late=True)
        if guard is None:
            await self._refuse(scope, send, not_started())
        elif route not in guard.service.config.server.passthrough:
            await guard(scope, receive, send)
        else:
            await self._pass(guard, scope, receive, send)

    async def _pass(self, guard: GuardTraceApp, scope: Scope, receive: Receive, send: Send) -> None:
        """A route that the operator listed: unaudited, but not without a tenant's key."""
        try:
            guard.tenant_of(scope)
        except ApiError as error:
            await self._refuse(scope, send, error, guard)
            return
        await self.app(self._inner.with_own_key(scope), receive, send)

    async def _refuse(self, scope: Scope, send: Send, error: ApiError, guard: GuardTraceApp | None = None) -> None:
        """``guard`` counts and logs it; that it didn't start was told at once."""
        dialect, request_id = speaking_at(route_of(scope)), to_upstream(scope)["x-request-id"]
        if guard is not None:
            guard.service.metrics.error(error.status)
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                guard.refusals.say(error, route_of(scope), None)
        named = OneResponse(send, request_id, dialect.id_headers)
        await respond_error(named, error, dialect.error, request_id)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard = await self._started(late=False)
        if guard is None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"GuardTraceMiddleware: {self.startup_error}"})
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guard.service.keep_probing)
            try:
                await self._run_lifespan(guard, scope, receive, send)
            except Exception as error:  # as it came, not in the group that the task group would make of it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _run_lifespan(self, guard: GuardTraceApp, scope: Scope, receive: Receive, send: Send) -> None:
        """The app's own lifespan, at whose end the guard closes; where the app has none, the guard's alone."""
        has_own, told = False, 0

        async def counted_receive() -> Message:
            nonlocal told
            told += 1
            return await receive()

        async def close_then_send(message: Message) -> None:
            nonlocal has_own
            has_own = True
            if message["type"] in LAST:
                await guard.service.aclose()
            await send(message)

        try:
            await self.app(scope, counted_receive, close_then_send)
        except Exception:
            if has_own:
                raise
        if has_own:
            return
        if not told:
            await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await close_then_send({"type": "lifespan.shutdown.complete"})

    async def _started(self, *, late: bool) -> GuardTraceApp | None:
        """The guard, started by the first who asks; None where it can't be. ``late``: no lifespan came before."""
        async with self._starting:
            if self.guard is None and self.startup_error is None:
                # A client that leaves doesn't stop what all others wait for.
                with anyio.CancelScope(shield=True):
                    await self._start(late)
        return self.guard

    async def _start(self, late: bool) -> None:
        try:
            config = self._read_config()
            model = config.upstreams[MODEL]
            self._inner = InnerApp(self.app, model, api_key_of(model, self._environ))
            guard = GuardTraceApp(
                config,
                auditor=self._auditor,
                environ=self._environ,
                observer=self._observer,
                image_fetcher=self._image_fetcher,
                upstreams={MODEL: self._inner},
                tracer_provider=self._tracer_provider,
            )
            await guard.service.start()
        except Exception as error:
            self.startup_error = str(error)
            if late:
                log.error("the guard didn't start", error=type(error).__name__, reason=self.startup_error)
            return
        for path in config.server.passthrough:
            log.warning("passes unaudited (server.passthrough)", path=path)
        if late:
            await guard.service.probe()
        self.guard = guard

    def _read_config(self) -> Config:
        path = self._config or self._environ.get(VARIABLE)
        if not path:
            message = "isn't set: name the settings' file in it, or pass config= to the middleware"
            raise ConfigError([Problem(VARIABLE, None, "", message)])
        config = load_inner_config(Path(path), self._environ)
        ours = configure_own_logging(config.logging.format, config.logging.level)
        if not ours and config.logging.model_fields_set:
            message = "this server has set up structlog itself: leave the section out"
            raise ConfigError([Problem(str(path), None, "logging", message)])
        return config
