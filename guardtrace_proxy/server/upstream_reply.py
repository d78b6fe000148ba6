"""One reply of an upstream: its head, and its body as it comes, decoded."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import aiohttp
import anyio

from guardtrace_proxy.outgoing import TROUBLE
from guardtrace_proxy.server.asgi_io import Headers
from guardtrace_proxy.server.decoding import BadCoding, UnknownCoding, decoder_for
from guardtrace_proxy.server.errors import upstream_unreadable
from guardtrace_proxy.server.forwarded import to_client

WATCH_SECONDS = 2.0


class UpstreamBroke(Exception):
    """The connection broke off in the middle of a reply."""


class Source(Protocol):
    """An upstream's reply whose head has come. ``limits`` are the headers that pass to the client."""

    content_type: str
    limits: Headers

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end; raises UpstreamBroke."""

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
        if response.connection is not None and response.connection.protocol is not None:
            # aiohttp would set a timer anew at each read: silence is watched here.
            response.connection.protocol.read_timeout = None

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end; raises UpstreamBroke."""
        decoder = self._decoder
        if decoder is None:
            return await self._receive()
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

    async def _receive(self) -> bytes:
        self._waiting_since = time.monotonic()
        try:
            return await self._response.content.readany()
        except (*TROUBLE, RuntimeError) as error:  # RuntimeError: aiohttp has closed the connection over bad framing
            raise UpstreamBroke(type(error).__name__) from error
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        """Wake a reader that has waited too long, or that aiohttp forgets (after a malformed chunk size, 3.14.5)."""
        self._timer = self._loop.call_later(self._watch_seconds, self._watch)
        if self._waiting_since is None:
            return
        connection = self._response.connection
        is_lost = connection is not None and connection.transport is None
        if is_lost or time.monotonic() - self._waiting_since > self._read_seconds:
            self._response.content.set_exception(aiohttp.ClientPayloadError("no more bytes will come"))


async def read_bounded(reply: Source, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes; raises ApiError 502 beyond, and UpstreamBroke."""
    chunks: list[bytes] = []
    size = 0
    while chunk := await reply.read():
        size += len(chunk)
        if size > limit:
            raise upstream_unreadable(f"a reply larger than {limit:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
