"""The least of an HTTP/1.1 server that a scripted server needs, on asyncio's transports."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import cast

import uvloop

Answer = Callable[[asyncio.Transport, str, bytes], None]
"""Takes the connection, the path and the body, and writes the reply at once or later."""


def reply(body: bytes) -> bytes:
    """A whole JSON reply."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Connection(asyncio.Protocol):
    """Reads one request after another."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            length = _content_length(head)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(self._transport, head.split(b" ", 2)[1].decode(), rest[:length])


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def serve(answer: Answer, port: int) -> None:
    """Serve until SIGTERM."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        async with await loop.create_server(lambda: Connection(answer), "127.0.0.1", port, backlog=1024):
            await stop.wait()

    uvloop.run(main())
