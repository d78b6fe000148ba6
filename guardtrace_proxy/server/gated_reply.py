"""One reply on its way through the gate to the client: event by event, or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from guardtrace_proxy.gate import StreamGate
from guardtrace_proxy.server.asgi_io import JSON, Send, respond
from guardtrace_proxy.server.drain import Drain
from guardtrace_proxy.server.errors import upstream_unreadable
from guardtrace_proxy.server.event_stream import EventStream
from guardtrace_proxy.server.exchange import Events, Exchange
from guardtrace_proxy.server.record import ReplyRecord
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.upstream_reply import Source, UpstreamBroke, read_bounded
from guardtrace_proxy.wire.dialects import Dialect
from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.reply import Reply

log = structlog.get_logger("guardtrace")


async def send_stream(
    exchange: Exchange, events: Events, source: Source, out: EventStream, record: ReplyRecord, drain: Drain
) -> None:
    """Events as they are released. Raises ApiError 502 where the upstream doesn't stream."""
    if "text/event-stream" not in source.content_type:
        raise upstream_unreadable(
            f"{source.content_type[:80] or 'no content type'} where an event stream was asked for"
        )
    await out.begin(source.limits)

    async def write(data: bytes, more: bool) -> None:
        await out.write(data, more)
        record.moved()
        if not more:
            record.taken()

    with drain.may_stop(exchange.stop):
        await exchange.run(events, write)


async def events_of(
    source: Source, reply: Reply, gate: StreamGate, silence_seconds: float, record: ReplyRecord
) -> Events:
    """What the upstream says. Comments aren't speech: one that sends them alone is broken off as a silent one is."""
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


async def send_whole(
    exchange: Exchange,
    source: Source,
    reply: Reply,
    dialect: Dialect[Any],
    service: Service,
    record: ReplyRecord,
    send: Send,
) -> None:
    """The body that the gate lets pass, or the error that a cut asks for, as soon as it is sure."""
    parts: list[bytes] = []

    async def keep(data: bytes, more: bool) -> None:
        parts.append(data)
        if more:
            return
        rejected = exchange.rejected
        status = 200 if rejected is None else 503 if rejected.unjudged else 400
        if rejected is not None:
            service.metrics.error(status)
        status = dialect.statuses.get(status, status)
        headers = [JSON, *source.limits, *record.headers(final=True)]
        await respond(send, status, b"".join(parts) if rejected is None else rejected.body, headers)
        record.taken()

    with service.budget.whole() as came:
        completion = await _read_whole(source, reply, service.config.server.max_stream_bytes, came)

        async def once() -> AsyncIterator[list[Event]]:
            yield [completion]

        await exchange.run(once(), keep)


async def _read_whole(source: Source, reply: Reply, limit: int, came: Callable[[int], None]) -> Event:
    """A reply of at most ``limit`` bytes; raises ApiError 502 where it can't be read."""
    try:
        completion = reply.completion(await read_bounded(source, limit, came))
    except UpstreamBroke as error:
        log.warning("upstream broke off", error=str(error))
        raise upstream_unreadable("a reply that broke off") from error
    if completion.kind is not EventKind.COMPLETION:
        raise upstream_unreadable(completion.detail or "a reply that can't be read")
    return completion
