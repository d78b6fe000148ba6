"""The ASGI app: routes, tenants, errors. No framework on the hot path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import anyio
import structlog
from sniffio import current_async_library_cvar

from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.images import ImageFetcher
from guardtrace_proxy.server.answer import answer
from guardtrace_proxy.server.asgi_io import (
    JSON,
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    close_websocket,
    disconnect,
    header,
    read_body,
    respond,
    respond_error,
    respond_json,
    route_of,
)
from guardtrace_proxy.server.config import Config
from guardtrace_proxy.server.errors import ApiError, no_route, shutting_down, unauthorized
from guardtrace_proxy.server.forwarded import to_upstream, with_own_id
from guardtrace_proxy.server.one_response import OneResponse
from guardtrace_proxy.server.refusals import Refusals
from guardtrace_proxy.server.reload import Reloader, SettingsFiles
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.span_attributes import of_http
from guardtrace_proxy.server.tenants import Tenant, Tenants
from guardtrace_proxy.server.upstream import ModelServer, UpstreamForRequest
from guardtrace_proxy.telemetry.tracing import NO_TRACE, RequestTrace
from guardtrace_proxy.wire.dialects import BY_ROUTE, Dialect, speaking_at

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

log = structlog.get_logger("guardtrace")

CLOSE = (b"connection", b"close")
PROBE_REQUIRED = b"probe=required"
"""The only query of ``/readyz``."""


class GuardTraceApp:
    """The reverse proxy as an ASGI application.

    ``auditor`` replaces the one that the config names, ``image_fetcher`` the one for its ``images.allow_urls``;
    ``environ`` is where keys are looked up; ``observer`` is told of every decision. ``upstreams`` are asked in place of
    the config's, and spans go to ``tracer_provider`` in place of where the config says; ``metrics_port`` replaces the
    config's. ``files`` are those that it was read from: tenants and policies are read again when they change.
    """

    def __init__(
        self,
        config: Config,
        *,
        auditor: Auditor | None = None,
        environ: Mapping[str, str] | None = None,
        observer: Callable[[Decided], None] | None = None,
        image_fetcher: ImageFetcher | None = None,
        upstreams: Mapping[str, ModelServer] | None = None,
        tracer_provider: TracerProvider | None = None,
        metrics_port: int | None = None,
        files: SettingsFiles | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.service = Service(
            config,
            environ,
            auditor=auditor,
            observer=observer,
            image_fetcher=image_fetcher,
            upstreams=upstreams,
            tracer_provider=tracer_provider,
            metrics_port=metrics_port,
        )
        self.refusals = Refusals()
        self.startup_error: str | None = None
        self.reloader: Reloader | None = None
        if files is not None:
            self.reloader = Reloader(files, self.use, self.service.metrics.reloaded)
        self.use(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Otherwise sniffio asks for the running task whenever anyio asks which loop this is, some thirty times a reply,
        # and finds none in a timer's callback, which then couldn't start one.
        current_async_library_cvar.set("asyncio")
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await close_websocket(receive, send)

    def use(self, config: Config) -> None:
        """Tenants and policies of ``config`` for all requests from now on."""
        for name in config.tenants_without_key:
            log.warning("tenant without a key, so nobody is served as it", tenant=name)
        for name in config.tenants_with_a_known_key:
            log.warning("tenant with a key that anybody knows", tenant=name)
        for name, loaded in config.policies.items():
            for warning in loaded.warnings:
                log.warning("policy", policy=name, warning=warning)
        self._tenants = Tenants(config)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.service.start()
        except Exception as error:
            self.startup_error = str(error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.service.keep_probing)
            if self.reloader is not None:
                tasks.start_soon(self.reloader.watch)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            tasks.cancel_scope.cancel()
        await self.service.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        forwarded = to_upstream(scope)
        guarded = OneResponse(send, forwarded["x-request-id"], speaking_at(route_of(scope)).id_headers)
        request_id = forwarded["x-request-id"]
        with structlog.contextvars.bound_contextvars(request_id=request_id), self._traced(scope, forwarded) as trace:
            try:
                await self._route(scope, receive, guarded, forwarded, trace)
            except ClientGone:
                log.info("client left")
            except ApiError as error:
                await self._fail(scope, guarded, error)
            except Exception as error:
                # Whatever goes wrong inside, the client is told that, and no text of the request gets into the log.
                log.exception("internal error", error=type(error).__name__)
                failure = ApiError(500, "The proxy failed.", type="server_error", code="internal_error", is_logged=True)
                await self._fail(scope, guarded, failure)
            finally:
                trace.answered(guarded.status)

    def _traced(self, scope: Scope, forwarded: Mapping[str, str]) -> AbstractContextManager[RequestTrace]:
        method, route = scope["method"], route_of(scope)
        if method != "POST" or route not in BY_ROUTE:
            return nullcontext(NO_TRACE)
        about = of_http(method, route, forwarded["x-request-id"])
        return self.service.tracing.request(f"{method} {route}", forwarded, about)

    async def _fail(self, scope: Scope, send: OneResponse, error: ApiError) -> None:
        self.service.metrics.error(error.status)
        if send.began:
            # The reply is broken off so that it can't be taken for a finished one.
            raise error
        self.refusals.say(error, route_of(scope), send.tenant)
        shape = speaking_at(route_of(scope)).error
        # Whether a body still comes after `expect: 100-continue` was answered with an error is the client's choice.
        closing = [CLOSE] if header(scope, b"expect") is not None else None
        await respond_error(send, error, shape, send.request_id, closing)

    async def _route(
        self, scope: Scope, receive: Receive, send: OneResponse, forwarded: Mapping[str, str], trace: RequestTrace
    ) -> None:
        method, path = scope["method"], route_of(scope)
        # What HEAD gets is GET's answer; the server leaves its body out.
        reads = method in ("GET", "HEAD")
        if reads and path == "/healthz":
            await respond_json(send, 200, {"status": "ok"})
        elif reads and path == "/readyz":
            await self._ready(scope, send)
        elif reads and path == "/v1/models":
            await self._models(scope, receive, send, forwarded)
        elif method == "POST" and path in BY_ROUTE:
            await self._answer(BY_ROUTE[path], scope, receive, send, forwarded, trace)
        else:
            raise no_route(method, path)

    async def _models(self, scope: Scope, receive: Receive, send: OneResponse, forwarded: Mapping[str, str]) -> None:
        service, tenant = self.service, self.tenant_of(scope)
        send.tenant = tenant
        upstream = self._upstream(tenant, scope)

        async def reply(send: Send) -> None:
            models, limits = await upstream.models(with_own_id(forwarded))
            await respond(send, 200, models, [JSON, *limits])

        with service.shedding.request(), service.limits.request(tenant.name, tenant.limits) as use:
            await self._reply(reply, receive, send, use.end)

    async def _answer(
        self,
        dialect: Dialect[Any],
        scope: Scope,
        receive: Receive,
        send: OneResponse,
        forwarded: Mapping[str, str],
        trace: RequestTrace,
    ) -> None:
        service, server = self.service, self.service.config.server
        tenant = send.tenant = self.tenant_of(scope)
        for name in dialect.required_headers:
            if not header(scope, name.encode()):
                raise ApiError(400, f"{name}: this header is required.", param=name)
        with (
            service.shedding.request(),
            service.limits.request(tenant.name, tenant.limits) as use,
            service.budget.body() as came,
        ):
            with anyio.CancelScope() as reading, service.drain.request(reading.cancel):
                body = await read_body(scope, receive, server.max_body_bytes, server.client_timeout_ms / 1000, came)
            if reading.cancel_called:
                raise shutting_down()
            upstream = self._upstream(tenant, scope)

            async def reply(send: Send) -> None:
                await answer(service, tenant, upstream, dialect, body, forwarded, use, send, trace)

            await self._reply(reply, receive, send, use.end)

    async def _reply(
        self,
        reply: Callable[[Send], Awaitable[None]],
        receive: Receive,
        send: OneResponse,
        on_end: Callable[[], None],
    ) -> None:
        """``reply`` for as long as the client is there and takes what it is sent. ``on_end``: all of it was sent."""
        failure: ApiError | None = None
        is_watched = True
        seconds = self.service.config.server.client_timeout_ms / 1000
        async with anyio.create_task_group() as tasks:

            async def send_on(message: Message) -> None:
                await send.or_stop(message, leave)
                if send.ended:
                    on_end()

            def leave() -> None:
                log.info("client left")
                tasks.cancel_scope.cancel()

            def let_go_of_deaf() -> None:
                log.warning("client takes nothing")
                tasks.cancel_scope.cancel()

            async def leave_with_client() -> None:
                nonlocal is_watched
                await disconnect(receive)
                is_watched = False
                # After the reply's end too a disconnect is reported, and the upstream may still close its own reply
                # properly, so that its connection is used again.
                if not send.ended:
                    leave()

            def refuse() -> None:
                nonlocal failure
                if not send.began:
                    failure = shutting_down()
                    tasks.cancel_scope.cancel()

            tasks.start_soon(leave_with_client)
            try:
                with send.must_be_taken(seconds, let_go_of_deaf), self.service.drain.request(refuse):
                    await reply(send_on)
            except ApiError as error:
                failure = error
            await asyncio.sleep(0)  # most servers report a disconnect now, and the task ends by itself, for less
            if is_watched:
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _upstream(self, tenant: Tenant, scope: Scope) -> UpstreamForRequest:
        return self.service.upstreams[tenant.upstream].for_request(scope)

    def tenant_of(self, scope: Scope) -> Tenant:
        """Whose key a request carries; raises ApiError 401 where it is nobody's."""
        tenant = self._tenants.of(header(scope, b"authorization"), header(scope, b"x-api-key"))
        if tenant is None:
            raise unauthorized()
        return tenant

    async def _ready(self, scope: Scope, send: Send) -> None:
        service = self.service
        # A rollout waits for an answer of the auditor's: that one was tried is enough to serve, not to replace those
        # that serve well.
        ready = service.probed == "ok" if _requires_probe(scope) else service.probed is not None
        auditor = {
            "name": service.auditor.name,
            "probe": service.probed,
            "circuit": service.breaker.circuit.value,
            "warnings": list(service.auditor.warnings),
        }
        status = "ready" if ready else "starting"
        content = {"status": status, "running": service.shedding.running, "auditor": auditor}
        await respond_json(send, 200 if ready else 503, content)


def _requires_probe(scope: Scope) -> bool:
    """Whether ``/readyz`` was asked with ``?probe=required``; raises ApiError 400 for any other query, since a misspelt
    one would let every process through."""
    query = scope.get("query_string", b"")
    if query not in (b"", PROBE_REQUIRED):
        raise ApiError(
            400,
            "probe: /readyz takes no query but ?probe=required, by which it is ready once the auditor has answered.",
            param="probe",
            code="invalid_value",
        )
    return bool(query)
