"""One reply of an upstream: its head, and its body as it comes, decoded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import aiohttp
import anyio

from guardtrace_proxy.outgoing import TROUBLE, Arrivals, ends_between_chunks
from guardtrace_proxy.server.asgi_io import Headers
from guardtrace_proxy.server.decoding import BadCoding, UnknownCoding, decoder_for
from guardtrace_proxy.server.errors import upstream_unreadable
from guardtrace_proxy.server.forwarded import to_client

WATCH_SECONDS = 2.0
GONE = (*TROUBLE, RuntimeError)
"""RuntimeError: aiohttp has closed the connection over bad framing."""


Gathers = Callable[[bytes], bool]
"""Takes bytes of which nothing comes yet; False where it leaves them."""


class UpstreamBroke(Exception):
    """The connection broke off in the middle of a reply."""


class Source(Protocol):
    """An upstream's reply whose head has come. ``limits`` are the headers that pass to the client."""

    content_type: str
    limits: Headers

    async def read(self, gathers: Gathers | None = None) -> bytes:
        """The next bytes of the body, empty at its end; raises UpstreamBroke.

        A source whose bytes come one by one may let ``gathers`` have them as they come: what it takes isn't returned.
        """

    def close(self) -> None:
        """Stop the upstream, unless the body was read to its end."""


class UpstreamReply:
    """``limits`` are the headers that pass to the client. ``read_seconds`` bounds the silence between two reads.

    Raises ApiError 502 where the body is compressed in a way that isn't decoded here.
    """

    def __init__(self, response: aiohttp.ClientResponse, read_seconds: float) -> None:
        try:
            self._decoder = decoder_for(",".join(response.headers.getall("content-encoding", ())))
        except UnknownCoding as coding:
            raise upstream_unreadable(f"a reply compressed with {coding} although it was asked not to") from None
        self.content_type = response.headers.get("content-type", "")
        self.limits: Headers = to_client(response.headers)
        self._response = response
        self._read_seconds = read_seconds
        self._waiting_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._watch_seconds = min(WATCH_SECONDS, read_seconds)
        self._timer = self._loop.call_later(self._watch_seconds, self._watch)
        protocol = None if response.connection is None else response.connection.protocol
        if protocol is not None:
            # aiohttp would set a timer anew at each read: silence is watched here.
            protocol.read_timeout = None
        self._arrivals = protocol if isinstance(protocol, Arrivals) else None

    async def read(self, gathers: Gathers | None = None) -> bytes:
        """The next bytes of the body, empty at its end; raises UpstreamBroke, and what ``gathers`` raises.

        What comes while it waits is offered to ``gathers`` where it comes: a task is woken for the rest alone.
        """
        decoder = self._decoder
        if decoder is None:
            return await self._receive(gathers)
        # Much may come out of little: others have their turn before each piece.
        await anyio.lowlevel.checkpoint()
        try:
            while not (piece := decoder.take()):
                data = await self._receive()
                if not data:
                    decoder.end()
                    break
                decoder.feed(data)
        except BadCoding as error:
            raise UpstreamBroke(f"compressed body: {error}") from error
        return piece

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is used again."""
        self._timer.cancel()
        self._response.close()

    async def _receive(self, gathers: Gathers | None = None) -> bytes:
        self._waiting_since = time.monotonic()
        try:
            if self._arrivals is None:
                return await self._read_any()
            if (data := self._take()) or self._response.content.at_eof():
                return data
            return await self._next(self._arrivals, gathers)
        finally:
            self._waiting_since = None

    async def _next(self, arrivals: Arrivals, gathers: Gathers | None) -> bytes:
        arrival: asyncio.Future[bytes] = self._loop.create_future()
        takes = self._taker(gathers or _leaves, arrival)

        def arrived(came: bytes) -> None:
            if arrival.done():
                return
            try:
                data = self._take()
                if data and takes(data):
                    if ends_between_chunks(came, data) and not arrivals.has_paused:
                        arrivals.takes = takes
                    data = b""
                elif not (data or arrivals.connected or self._response.content.at_eof()):
                    raise UpstreamBroke("connection lost")
            except Exception as error:
                arrival.set_exception(error)
                return
            if not arrival.done() and (data or self._response.content.at_eof()):
                arrival.set_result(data)

        if not arrivals.connected:
            raise UpstreamBroke("connection lost")
        arrivals.on_arrival = arrived
        try:
            return await arrival
        finally:
            arrivals.on_arrival = arrivals.takes = None

    def _taker(self, gathers: Gathers, arrival: asyncio.Future[bytes]) -> Gathers:
        """``gathers`` until something arrives, for a place that may not raise: what it raises is what arrives."""

        def takes(data: bytes) -> bool:
            if arrival.done():
                return False
            try:
                if not gathers(data):
                    return False
            except Exception as error:
                arrival.set_exception(error)
            self._waiting_since = time.monotonic()
            return True

        return takes

    async def _read_any(self) -> bytes:
        """The same where aiohttp's connections aren't ours: each read wakes the task, as aiohttp would have it."""
        try:
            return await self._response.content.readany()
        except GONE as error:
            raise _broke(error) from None

    def _take(self) -> bytes:
        """What has come since."""
        try:
            return self._response.content.read_nowait()
        except GONE as error:
            raise _broke(error) from None

    def _watch(self) -> None:
        """Wake a reader that has waited too long, or that aiohttp forgets (after a malformed chunk size, 3.14.5)."""
        self._timer = self._loop.call_later(self._watch_seconds, self._watch)
        if self._waiting_since is None:
            return
        connection = self._response.connection
        is_lost = connection is not None and connection.transport is None
        if is_lost or time.monotonic() - self._waiting_since > self._read_seconds:
            self._response.content.set_exception(aiohttp.ClientPayloadError("no more bytes will come"))
            if self._arrivals is not None:
                self._arrivals.tell()


def _broke(error: Exception) -> UpstreamBroke:
    """The same in our words. aiohttp keeps its error, whose traceback would keep the frames, and they the reply."""
    error.__traceback__ = None
    return UpstreamBroke(type(error).__name__)


def _leaves(_: bytes) -> bool:
    return False


async def read_bounded(reply: Source, limit: int, came: Callable[[int], None] = lambda _: None) -> bytes:
    """The whole body, at most ``limit`` bytes; ``came`` is told of each piece's length. Raises ApiError 502 beyond, and
    UpstreamBroke."""
    chunks: list[bytes] = []
    size = 0
    while chunk := await reply.read():
        size += len(chunk)
        came(len(chunk))
        if size > limit:
            raise upstream_unreadable(f"a reply larger than {limit:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
