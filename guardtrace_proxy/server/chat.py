"""``POST /v1/chat/completions``: the request is read, its images are resolved, the reply goes through the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import aiohttp
import structlog

from guardtrace_proxy.auditor.prompt import Query, Turn
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, DoesNotFit, Session
from guardtrace_proxy.gate import StreamGate
from guardtrace_proxy.images import FetchError, ImageError, ImageLimits, RequestImage, is_remote, resolve_images
from guardtrace_proxy.outgoing import TROUBLE
from guardtrace_proxy.server.asgi_io import JSON, Headers, Send, respond
from guardtrace_proxy.server.errors import ApiError, upstream_unreadable
from guardtrace_proxy.server.exchange import AuditPlan, Exchange
from guardtrace_proxy.server.record import ReplyRecord
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.tenants import Tenant
from guardtrace_proxy.server.unopened import UnopenedSession
from guardtrace_proxy.server.upstream import UpstreamBroke, read_bounded
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.chat_images import replace_images
from guardtrace_proxy.wire.chat_request import ChatRequest, RequestError, read_request
from guardtrace_proxy.wire.events import Event, EventKind

log = structlog.get_logger("guardtrace")

SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def chat_completions(service: Service, tenant: Tenant, body: bytes, request_id: str, send: Send) -> None:
    """Answer one request. Raises ApiError for everything that goes wrong before the reply has begun."""
    request = _read(body)
    images = await _images(service, request, request_id)
    if any(is_remote(url) for url, _ in request.images):
        body = replace_images(body, [image.data_url for image in images])  # the model gets what was fetched here
    query = Query([Turn(role, text) for role, text in request.turns], images)
    auditor = service.auditor

    async def open_session() -> Session:
        return await auditor.open(query)

    session = await _first_session(auditor, query)
    policy = service.policies[tenant.policy].policy
    upstream = service.upstreams[tenant.upstream]
    dialect = ChatStream(
        upstream.thinking,
        include_usage=request.include_usage,
        max_event_bytes=service.config.server.max_stream_bytes,
        model=request.model,
    )
    gate = StreamGate(
        policy,
        dialect,
        capacity=session.capacity,
        max_stream_bytes=service.config.server.max_stream_bytes,
        choices=request.n,
    )
    plan = AuditPlan(open_session, service.depth, service.config.auditor.timeout_ms, request.prefill or "")
    record = ReplyRecord(tenant.name, tenant.policy, policy, auditor.name, request.stream, request_id, service.observer)
    async with upstream.chat(body, request_id) as response:

        async def close_upstream() -> None:
            response.close()

        exchange = Exchange(
            gate,
            plan,
            session,
            close_upstream=close_upstream,
            on_decided=record.add,
        )
        with service.budget.counting(lambda: gate.held_bytes):
            try:
                if request.stream:
                    await _stream(exchange, response, dialect, record, send)
                else:
                    await _whole(exchange, response, dialect, service, record, send)
            finally:
                record.close(gate)


def _read(body: bytes) -> ChatRequest:
    try:
        return read_request(body)
    except RequestError as error:
        raise ApiError(400, error.message, param=error.param, code=error.code) from None


async def _images(service: Service, request: ChatRequest, request_id: str) -> Sequence[RequestImage]:
    settings = service.config.images
    limits = ImageLimits(settings.max_count, settings.max_bytes, settings.max_pixels)
    try:
        return await resolve_images(request.images, limits, service.image_fetcher)
    except ImageError as error:
        if isinstance(error, FetchError):
            log.info("image not fetched", request_id=request_id, field=error.field, reason=error.reason)
        raise ApiError(400, str(error), param=error.field, code="invalid_image") from None


async def _first_session(auditor: Auditor, query: Query) -> Session:
    try:
        return await auditor.open(query)
    except DoesNotFit as error:
        raise ApiError(400, str(error), param=error.field, code="does_not_fit_auditor") from None
    except AuditorFailure as failure:
        return UnopenedSession(failure)


async def _stream(
    exchange: Exchange, response: aiohttp.ClientResponse, dialect: ChatStream, record: ReplyRecord, send: Send
) -> None:
    content_type = response.headers.get("content-type", "")
    if "text/event-stream" not in content_type:
        raise upstream_unreadable(f"{content_type[:80] or 'no content type'} where an event stream was asked for")
    await send({"type": "http.response.start", "status": 200, "headers": [*SSE_HEADERS, *record.headers()]})

    async def forward(data: bytes, more: bool) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    await exchange.run(_events(response, dialect), forward)


async def _events(response: aiohttp.ClientResponse, dialect: ChatStream) -> AsyncIterator[list[Event]]:
    read = response.content.readany
    try:
        while data := await read():
            events = dialect.feed(data)
            if events:
                yield events
    except TROUBLE as error:
        # What waits for the rest of a tag is judged before the stream is broken off.
        yield dialect.end()
        raise UpstreamBroke(type(error).__name__) from error
    yield dialect.end()


async def _whole(
    exchange: Exchange,
    response: aiohttp.ClientResponse,
    dialect: ChatStream,
    service: Service,
    record: ReplyRecord,
    send: Send,
) -> None:
    try:
        body = await read_bounded(response, service.config.server.max_stream_bytes)
    except TROUBLE as error:
        raise upstream_unreadable("a reply that broke off") from error
    reply = dialect.completion(body)
    if reply.kind is not EventKind.COMPLETION:
        raise upstream_unreadable(reply.detail or "a reply that isn't a chat completion")

    async def once() -> AsyncIterator[list[Event]]:
        yield [reply]

    parts: list[bytes] = []

    async def keep(data: bytes, more: bool) -> None:
        parts.append(data)

    await exchange.run(once(), keep)
    status = 200 if exchange.rejected is None else 400
    await respond(send, status, exchange.rejected or b"".join(parts), [JSON, *record.headers(final=True)])
