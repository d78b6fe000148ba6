"""Clients that look at the clock: ``python -m benchmarks.readers PORT STREAMS EVENTS``. Prints JSON: the delays.

A delay is what lies between an event's stamp (`benchmarks/paced.py`) and its arrival here, in ns. Fails unless every
reply is whole.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

import uvloop

from benchmarks.load import REQUEST, Client, WrongReply
from benchmarks.paced import STAMP

REPLY_SECONDS = 120.0
STAMPS = re.compile(STAMP + rb"(\d+)")


class Reader(Client):
    """Notes when each event has come. An event that is split over two reads counts as come with the second."""

    def __init__(self, request: bytes, done: asyncio.Future[bytes]) -> None:
        super().__init__(request, done)
        self.delays: list[int] = []
        self._rest = b""

    def on_body(self, body: bytes) -> None:
        now = time.monotonic_ns()
        whole, end, self._rest = (self._rest + body).rpartition(b"\n\n")
        self.delays += [now - int(stamp) for stamp in STAMPS.findall(whole + end)]
        super().on_body(body)


async def read(port: int, request: bytes, count: int) -> list[int]:
    """One stream's delays; raises WrongReply."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    reader = Reader(request, done)
    transport, _ = await loop.create_connection(lambda: reader, "127.0.0.1", port)
    try:
        body = await asyncio.wait_for(done, REPLY_SECONDS)
    finally:
        transport.close()
    if not body.endswith(b"data: [DONE]\n\n") or len(reader.delays) != count:
        raise WrongReply(f"{len(reader.delays)} of {count} events; the reply ends with {body[-200:]!r}")
    return reader.delays


async def run(port: int, streams: int, count: int) -> list[int]:
    body = json.dumps(REQUEST).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    found = await asyncio.gather(*(read(port, request, count) for _ in range(streams)))
    return [delay for delays in found for delay in delays]


def main() -> None:
    port, streams, count = map(int, sys.argv[1:])
    try:
        print(json.dumps(uvloop.run(run(port, streams, count))))
    except (WrongReply, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
