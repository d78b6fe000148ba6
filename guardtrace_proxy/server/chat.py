"""``POST /v1/chat/completions``: the request is read, its images are resolved, the reply goes through the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext

import anyio
import structlog

from guardtrace_proxy.auditor.cascade import within
from guardtrace_proxy.auditor.prompt import Query, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, DoesNotFit, Session
from guardtrace_proxy.gate import StreamGate
from guardtrace_proxy.images import FetchError, ImageError, ImageLimits, RequestImage, is_remote, resolve_images
from guardtrace_proxy.policy.schema import Policy, ReasoningField
from guardtrace_proxy.server.asgi_io import JSON, Send, respond
from guardtrace_proxy.server.continued import ContinuedSession
from guardtrace_proxy.server.errors import ApiError, upstream_unreadable
from guardtrace_proxy.server.event_stream import EventStream
from guardtrace_proxy.server.exchange import Exchange
from guardtrace_proxy.server.record import ReplyRecord
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.tenants import Tenant
from guardtrace_proxy.server.unopened import UnopenedSession
from guardtrace_proxy.server.upstream_reply import UpstreamBroke, UpstreamReply, read_bounded
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.chat_fields import RequestError
from guardtrace_proxy.wire.chat_images import replace_images
from guardtrace_proxy.wire.chat_request import ChatRequest, body_for_upstream, read_request
from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.prefill import opening_of

log = structlog.get_logger("guardtrace")


async def chat_completions(
    service: Service, tenant: Tenant, body: bytes, forwarded: Mapping[str, str], send: Send
) -> None:
    """Answer one request. ``forwarded`` are the headers for the upstream, ``x-request-id`` among them.

    Raises ApiError for everything that goes wrong before the reply has begun.
    """
    upstream = service.upstreams[tenant.upstream]
    request = _read(body, service.config.upstreams[tenant.upstream].allow_fields)
    policy = _policy_for(request, service.policies[tenant.policy].policy)
    images = await _images(service, request)
    turns = [Turn(role, text) for role, text in request.turns]
    query = Query(turns, images, stream=forwarded["x-request-id"], tenant=tenant.name)
    prefill = request.prefill
    opening = None if prefill is None else opening_of(prefill, upstream.thinking)

    async def open_session() -> Session:
        session = await service.auditor.open(query)
        if prefill is None or opening is None:
            return session
        try:
            return ContinuedSession(session, opening, prefill.where)
        except DoesNotFit:
            await session.aclose()
            raise

    session = await _first_session(open_session, service.config.auditor.timeout_ms)
    dialect = ChatStream(
        upstream.thinking if opening is None else opening.style,
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
    record = ReplyRecord(
        tenant.name,
        tenant.policy,
        policy,
        service.auditor.name,
        request.stream,
        forwarded["x-request-id"],
        service.observer,
    )
    out = EventStream(send, record.headers(), service.config.server.keepalive_ms)
    body = _body_for_upstream(body, request, images)
    async with out.kept_alive() if request.stream else nullcontext(), upstream.chat(body, forwarded) as reply:
        exchange = Exchange(
            gate,
            service.plan_for(policy),
            session,
            open_session=open_session,
            close_upstream=reply.close,
            on_decided=record.add,
        )
        with service.budget.counting(lambda: gate.held_bytes):
            try:
                if request.stream:
                    await _stream(exchange, reply, dialect, out)
                else:
                    await _whole(exchange, reply, dialect, service, record, send)
            finally:
                record.close(gate)


def _read(body: bytes, allowed: Sequence[str]) -> ChatRequest:
    try:
        return read_request(body, allowed)
    except RequestError as error:
        raise ApiError(400, error.message, param=error.param, code=error.code) from None


def _policy_for(request: ChatRequest, policy: Policy) -> Policy:
    """The tenant's policy; where the client asks not to see the thinking, it is audited and then stripped."""
    if not request.hides_reasoning:
        return policy
    return policy.model_copy(update={"reasoning_field": ReasoningField.STRIP})


def _body_for_upstream(body: bytes, request: ChatRequest, images: Sequence[RequestImage]) -> bytes:
    """The body with the fields that are forced, and with the very images that were fetched here."""
    body = body_for_upstream(body, request)
    if any(is_remote(url) for url, _ in request.images):
        body = replace_images(body, [image.data_url for image in images])
    return body


async def _images(service: Service, request: ChatRequest) -> Sequence[RequestImage]:
    settings = service.config.images
    limits = ImageLimits(settings.max_count, settings.max_bytes, settings.max_pixels)
    try:
        return await resolve_images(request.images, limits, service.image_fetcher)
    except ImageError as error:
        if isinstance(error, FetchError):
            log.info("image not fetched", field=error.field, reason=error.reason)
        raise ApiError(400, str(error), param=error.field, code="invalid_image") from None


async def _first_session(open_session: Callable[[], Awaitable[Session]], timeout_ms: int) -> Session:
    try:
        with within(timeout_ms, anyio.current_time()):
            return await open_session()
    except DoesNotFit as error:
        raise ApiError(400, str(error), param=error.field, code="does_not_fit_auditor") from None
    except AuditorFailure as failure:
        return UnopenedSession(failure)


async def _stream(exchange: Exchange, reply: UpstreamReply, dialect: ChatStream, out: EventStream) -> None:
    if "text/event-stream" not in reply.content_type:
        raise upstream_unreadable(f"{reply.content_type[:80] or 'no content type'} where an event stream was asked for")
    await out.begin(reply.limits)
    await exchange.run(_events(reply, dialect), out.write)


async def _events(reply: UpstreamReply, dialect: ChatStream) -> AsyncIterator[list[Event]]:
    try:
        while data := await reply.read():
            events = dialect.feed(data)
            if events:
                yield events
    except UpstreamBroke:
        # What waits for the rest of a tag is judged before the stream is broken off.
        yield dialect.end()
        raise
    yield dialect.end()


async def _whole(
    exchange: Exchange, reply: UpstreamReply, dialect: ChatStream, service: Service, record: ReplyRecord, send: Send
) -> None:
    try:
        body = await read_bounded(reply, service.config.server.max_stream_bytes)
    except UpstreamBroke as error:
        raise upstream_unreadable("a reply that broke off") from error
    completion = dialect.completion(body)
    if completion.kind is not EventKind.COMPLETION:
        raise upstream_unreadable(completion.detail or "a reply that isn't a chat completion")

    async def once() -> AsyncIterator[list[Event]]:
        yield [completion]

    parts: list[bytes] = []

    async def keep(data: bytes, more: bool) -> None:
        parts.append(data)

    await exchange.run(once(), keep)
    status = 200 if exchange.rejected is None else 400
    headers = [JSON, *reply.limits, *record.headers(final=True)]
    await respond(send, status, exchange.rejected or b"".join(parts), headers)
