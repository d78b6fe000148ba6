"""A streamed reply on its way to the client: its head, its events, and comments while there is nothing to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.abc
import structlog

from guardtrace_proxy.server.asgi_io import MAX_PIECE_BYTES, Headers, Send, send_body
from guardtrace_proxy.server.drain import Drain
from guardtrace_proxy.server.errors import ApiError, shutting_down
from guardtrace_proxy.wire.reply import Writer

log = structlog.get_logger("guardtrace")

SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
KEEPALIVE = b": keepalive\n\n"
"""A comment: every parser of server-sent events drops it. With a blank line of its own, so that those that split at
blank lines don't take it for a part of the next event."""


class EventStream:
    """The head leaves with ``begin``, or with the first comment if that is due before. ``writer`` shapes errors."""

    def __init__(self, send: Send, writer: Writer, headers: Headers, keepalive_ms: int) -> None:
        self._send = send
        self._writer = writer
        self._headers = [*SSE_HEADERS, *headers]
        self._keepalive_seconds = keepalive_ms / 1000
        self._sending = asyncio.Lock()  # taken for every write: anyio's asks for the running task three times
        self._sent_at = time.monotonic()
        self._began = False
        self._is_replying = False
        self._ended = False
        self._is_commenting = False
        self.failure: ApiError | None = None
        """What was sent as an event, since the head had left."""

    async def begin(self, more: Headers) -> None:
        """Send the head with ``more`` headers, unless it has left."""
        async with self._sending:
            await self._begin(more)
        self._is_replying = True

    async def write(self, data: bytes, more: bool) -> None:
        """Send whole events; ``more`` says whether others follow."""
        async with self._sending:
            self._ended = not more
            if len(data) > MAX_PIECE_BYTES:
                await send_body(self._send, data, more)
            else:
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sent_at = time.monotonic()

    @asynccontextmanager
    async def kept_alive(self, drain: Drain) -> AsyncIterator[None]:
        """Send comments while the context lasts. An ApiError in it is raised if the head hasn't left, else it is sent
        as an event; so is the end of the server, until ``begin``: then it is another's to end the stream."""
        failure: ApiError | None = None
        async with anyio.create_task_group() as tasks:

            def stop() -> None:
                nonlocal failure
                if not self._is_replying:
                    failure = shutting_down()
                    tasks.cancel_scope.cancel()

            try:
                with self._commented(tasks), drain.may_stop(stop):
                    yield
            except ApiError as error:
                failure = error
            if self._is_commenting:
                tasks.cancel_scope.cancel()
        if failure is None:
            return
        if not self._began:
            raise failure
        log.warning("failed after the head had left", status=failure.status, code=failure.code_word)
        self.failure = failure
        await self.write(failure.event(self._writer.error), more=False)

    async def _begin(self, more: Headers) -> None:
        if not self._began:
            await self._send({"type": "http.response.start", "status": 200, "headers": [*self._headers, *more]})
            self._began = True

    @contextmanager
    def _commented(self, tasks: anyio.abc.TaskGroup) -> Iterator[None]:
        """A timer looks whether a comment is due: a task that waits for it would have to be cancelled at each end."""
        if not self._keepalive_seconds:
            yield
            return
        loop, seconds = asyncio.get_running_loop(), self._keepalive_seconds
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if time.monotonic() - self._sent_at >= seconds:
                # Where something is being sent the client is slow, and has enough to take.
                if not self._sending.locked():
                    self._is_commenting = True
                    tasks.start_soon(self._comment)
                self._sent_at = time.monotonic()
            timer = loop.call_later(self._sent_at + seconds - time.monotonic(), look)

        timer = loop.call_later(seconds, look)
        try:
            yield
        finally:
            timer.cancel()

    async def _comment(self) -> None:
        async with self._sending:
            if not self._ended:
                await self._begin([])
                await self._send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})
        self._sent_at = time.monotonic()
        self._is_commenting = False
