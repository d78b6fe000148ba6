"""One request of an audited route: it is read, its images are resolved, the reply goes through the gate."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TypeVar

import anyio
import structlog

from guardtrace_proxy.auditor.cascade import within
from guardtrace_proxy.auditor.prompt import Query, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, DoesNotFit, Session
from guardtrace_proxy.gate import Decided, StreamGate
from guardtrace_proxy.images import FetchError, ImageError, ImageLimits, RequestImage, is_remote, resolve_images
from guardtrace_proxy.policy.schema import Policy, ReasoningField
from guardtrace_proxy.server.about import About
from guardtrace_proxy.server.asgi_io import JSON, Send, respond
from guardtrace_proxy.server.cache_salt import with_cache_salt
from guardtrace_proxy.server.continued import ContinuedSession
from guardtrace_proxy.server.drain import Drain
from guardtrace_proxy.server.errors import ApiError, upstream_unreadable
from guardtrace_proxy.server.event_stream import EventStream
from guardtrace_proxy.server.exchange import Events, Exchange
from guardtrace_proxy.server.forwarded import trace_id_of
from guardtrace_proxy.server.limits import Use
from guardtrace_proxy.server.record import ReplyRecord
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.settings import ModelSettings
from guardtrace_proxy.server.span_attributes import of_generation, of_request
from guardtrace_proxy.server.tenants import Tenant
from guardtrace_proxy.server.unopened import UnopenedSession
from guardtrace_proxy.server.upstream import Model
from guardtrace_proxy.server.upstream_reply import Source, UpstreamBroke, read_bounded
from guardtrace_proxy.telemetry.tracing import Trace
from guardtrace_proxy.wire.dialects import Dialect
from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.prefill import opening_of
from guardtrace_proxy.wire.reply import Reply, ReplySettings
from guardtrace_proxy.wire.request import Allowed, Request, RequestError

log = structlog.get_logger("guardtrace")

Asked = TypeVar("Asked", bound=Request)
OpenSession = Callable[[int], Awaitable[Session]]


async def answer(
    service: Service,
    tenant: Tenant,
    upstream: Model,
    dialect: Dialect[Asked],
    body: bytes,
    forwarded: Mapping[str, str],
    use: Use,
    send: Send,
    trace: Trace,
) -> None:
    """Answer one request. ``forwarded`` are the headers for the upstream, ``x-request-id`` among them; ``use`` is told
    how many tokens the request takes.

    Raises ApiError for everything that goes wrong before the reply has begun.
    """
    settings = service.config.upstreams[tenant.upstream]
    silence = settings.read_timeout_ms / 1000
    request = _read(dialect, body, settings)
    policy = _policy_for(dialect, request, tenant.loaded.policy)
    use.prompt([text for turns in request.queries for _, text in turns])
    images = await _images(service, request)
    queries = [
        Query([Turn(*turn) for turn in turns], images, stream=forwarded["x-request-id"], tenant=tenant.name)
        for turns in request.queries
    ]
    about = About(
        request_id=forwarded["x-request-id"],
        trace_id=trace.trace_id or trace_id_of(forwarded),
        tenant=tenant.name,
        upstream=tenant.upstream,
        route=dialect.route,
        model=request.model,
        stream=request.stream,
        images=len(images),
        policy=tenant.policy,
        policy_sha256=tenant.loaded.sha256,
        auditor=service.auditor.name,
        checkpoint=service.checkpoint,
        queries=request.queries,
        n=request.n,
    )
    trace.describe(of_request(about))
    prefill = request.prefill
    opening = None if prefill is None else opening_of(prefill, upstream.thinking)

    async def open_session(choice: int) -> Session:
        session = await service.auditor.open(queries[choice // request.n])
        if prefill is None or opening is None:
            return session
        try:
            return ContinuedSession(session, opening, prefill.where)
        except DoesNotFit:
            await session.aclose()
            raise

    async with _sessions(open_session, request, service.config.auditor.timeout_ms) as sessions:
        max_bytes = service.config.server.max_stream_bytes
        style = upstream.thinking if opening is None else opening.style
        reply = dialect.reply(request, ReplySettings(style, max_bytes, forwarded["x-request-id"]))
        gate = StreamGate(
            policy,
            reply,
            capacity=min(session.capacity for session in sessions.values()),
            max_stream_bytes=max_bytes,
            choices=request.choices,
        )
        record = ReplyRecord(about, policy, service, trace)
        out = EventStream(send, reply, record.headers(), service.config.server.keepalive_ms)
        urls = [image.data_url for image in images] if any(is_remote(url) for url, _ in request.images) else None
        body = dialect.body_for_upstream(body, request, urls)
        if settings.cache_salt == "tenant":
            body = with_cache_salt(body, tenant.name, service.cache_salts)
        kept_alive = out.kept_alive(service.drain) if request.stream else nullcontext()
        asking = _asked(upstream, dialect.path, body, forwarded, trace, about, settings)

        def decided(outcome: Decided) -> None:
            use.reply(gate.tokens_read)
            record.decided(outcome)

        async with kept_alive, asking as source:
            exchange = Exchange(
                gate,
                service.plan_for(policy),
                sessions,
                open_session=open_session,
                close_upstream=source.close,
                on_asked=record.asked,
                on_decided=decided,
            )
            with record.running(gate):
                try:
                    if request.stream:
                        events = _events(source, reply, gate, silence, record)
                        with service.budget.counting(lambda: reply.unread_bytes + exchange.held_bytes):
                            await _stream(exchange, events, source, out, record, service.drain)
                    else:
                        await _whole(exchange, source, reply, service, record, send)
                finally:
                    use.reply(gate.tokens_read)
        if out.failure is not None:
            service.metrics.error(out.failure.status)


@asynccontextmanager
async def _asked(
    upstream: Model,
    path: str,
    body: bytes,
    forwarded: Mapping[str, str],
    trace: Trace,
    about: About,
    settings: ModelSettings,
) -> AsyncIterator[Source]:
    """The upstream's reply, which is a part of the trace."""
    with trace.generation(*of_generation(about, settings)) as headers:
        async with upstream.ask(path, body, {**forwarded, **headers}) as source:
            yield source


def _read(dialect: Dialect[Asked], body: bytes, settings: ModelSettings) -> Asked:
    try:
        return dialect.read_request(body, Allowed(settings.allow_fields, settings.allow_encrypted_reasoning))
    except RequestError as error:
        raise ApiError(400, error.message, param=error.param, code=error.code) from None


def _policy_for(dialect: Dialect[Asked], request: Asked, policy: Policy) -> Policy:
    """The tenant's policy; where the client asks not to see the thinking, it is audited and then stripped."""
    field = policy.reasoning_field
    if request.hides_reasoning:
        field = ReasoningField.STRIP
    elif not dialect.has_reasoning_fields and field is not ReasoningField.STRIP:
        field = ReasoningField.AS_IS
    return policy if field is policy.reasoning_field else policy.model_copy(update={"reasoning_field": field})


async def _images(service: Service, request: Request) -> Sequence[RequestImage]:
    settings = service.config.images
    limits = ImageLimits(settings.max_count, settings.max_bytes, settings.max_pixels)
    try:
        return await resolve_images(request.images, limits, service.image_fetcher)
    except ImageError as error:
        if isinstance(error, FetchError):
            log.info("image not fetched", field=error.field, reason=error.reason)
        raise ApiError(400, str(error), param=error.field, code="invalid_image") from None


@asynccontextmanager
async def _sessions(open_session: OpenSession, request: Request, timeout_ms: int) -> AsyncIterator[dict[int, Session]]:
    """One session of each query, by its first choice, so that what doesn't fit is told before anything is sent on. All
    that are in it at the end are closed, whatever happened."""
    sessions: dict[int, Session] = {}
    try:
        for choice in range(0, request.choices, request.n):
            sessions[choice] = await _first_session(open_session, choice, timeout_ms)
        yield sessions
    finally:
        with anyio.CancelScope(shield=True):
            for session in sessions.values():
                await session.aclose()


async def _first_session(open_session: OpenSession, choice: int, timeout_ms: int) -> Session:
    try:
        with within(timeout_ms, anyio.current_time()):
            return await open_session(choice)
    except DoesNotFit as error:
        raise ApiError(400, str(error), param=error.field, code="does_not_fit_auditor") from None
    except AuditorFailure as failure:
        return UnopenedSession(failure)


async def _stream(
    exchange: Exchange, events: Events, source: Source, out: EventStream, record: ReplyRecord, drain: Drain
) -> None:
    if "text/event-stream" not in source.content_type:
        raise upstream_unreadable(
            f"{source.content_type[:80] or 'no content type'} where an event stream was asked for"
        )
    await out.begin(source.limits)

    async def write(data: bytes, more: bool) -> None:
        await out.write(data, more)
        record.moved()

    with drain.may_stop(exchange.stop):
        await exchange.run(events, write)


async def _events(
    source: Source, reply: Reply, gate: StreamGate, silence_seconds: float, record: ReplyRecord
) -> Events:
    """Comments aren't speech: an upstream that sends them alone is broken off as a silent one is."""
    spoke = time.monotonic()

    def gathers(data: bytes) -> bool:
        nonlocal spoke
        if gate.run is None or (more := reply.more(data)) is None:
            return False
        now = time.monotonic()
        if not gate.gathers(more, now):
            return False
        spoke = now
        return True

    try:
        while data := await source.read(gathers):
            events = reply.feed(data)
            if events:
                yield events
                record.moved()
                spoke = time.monotonic()
            elif time.monotonic() - spoke > silence_seconds:
                raise UpstreamBroke("nothing but comments, or an event without end")
    except UpstreamBroke:
        # What waits for the rest of a tag is judged before the stream is broken off.
        yield reply.end()
        raise
    yield reply.end()


async def _whole(
    exchange: Exchange, source: Source, reply: Reply, service: Service, record: ReplyRecord, send: Send
) -> None:
    with service.budget.whole() as came:
        body = await _gated(exchange, source, reply, service.config.server.max_stream_bytes, came)
        status = 200 if exchange.rejected is None else 400
        headers = [JSON, *source.limits, *record.headers(final=True)]
        await respond(send, status, exchange.rejected or body, headers)


async def _gated(exchange: Exchange, source: Source, reply: Reply, limit: int, came: Callable[[int], None]) -> bytes:
    """What the gate lets pass of a reply of at most ``limit`` bytes."""
    try:
        completion = reply.completion(await read_bounded(source, limit, came))
    except UpstreamBroke as error:
        log.warning("upstream broke off", error=str(error))
        raise upstream_unreadable("a reply that broke off") from error
    if completion.kind is not EventKind.COMPLETION:
        raise upstream_unreadable(completion.detail or "a reply that can't be read")

    async def once() -> AsyncIterator[list[Event]]:
        yield [completion]

    parts: list[bytes] = []

    async def keep(data: bytes, more: bool) -> None:
        parts.append(data)

    await exchange.run(once(), keep)
    return b"".join(parts)
