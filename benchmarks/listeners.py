"""Clients that listen to paced streams: ``python -m benchmarks.listeners PORT STREAMS TOKENS THINKING``. Prints each
stream's delays as JSON.

Each token's text says when it was sent (`benchmarks/stamps.py`), so whatever a proxy does to the frame, its delay can
be told. Fails unless every token of every stream comes; THINKING 0: every token of the answer, of a proxy that drops
the thinking.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

import uvloop

from benchmarks.load import REQUEST, Client, WrongReply
from benchmarks.script import thinking_tokens
from benchmarks.stamps import ms_since

REPLY_SECONDS = 150.0
TEXT = re.compile(rb'"(?:reasoning|reasoning_content|content)":\s*"((?:[A-Za-z0-9_.]{4})+)"')


class Listener(Client):
    """Notes when each token has come. An event that is split over two reads counts as come with the second."""

    def __init__(self, request: bytes, done: asyncio.Future[bytes]) -> None:
        super().__init__(request, done)
        self.delays: list[float] = []
        self._rest = b""

    def on_body(self, body: bytes) -> None:
        now = time.monotonic_ns()
        whole, end, self._rest = (self._rest + body).rpartition(b"\n\n")
        # Some put several tokens into one event, some say a thought in two fields.
        texts = dict.fromkeys(TEXT.findall(whole + end))
        self.delays += [ms_since(text[at : at + 4], now) for text in texts for at in range(0, len(text), 4)]
        super().on_body(body)


async def listen(port: int, request: bytes, tokens: int) -> list[float]:
    """One stream's delays in ms, by token; raises WrongReply."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    listener = Listener(request, done)
    transport, _ = await loop.create_connection(lambda: listener, "127.0.0.1", port)
    try:
        body = await asyncio.wait_for(done, REPLY_SECONDS)
    finally:
        transport.close()
    if not body.rstrip().endswith(b"data: [DONE]") or len(listener.delays) != tokens:
        raise WrongReply(f"{len(listener.delays)} of {tokens} tokens; the reply ends with {body[-200:]!r}")
    return listener.delays


async def run(port: int, streams: int, tokens: int) -> list[list[float]]:
    """All streams at once."""
    body = json.dumps(REQUEST).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    return await asyncio.gather(*(listen(port, request, tokens) for _ in range(streams)))


def main() -> None:
    port, streams, tokens, thinking = map(int, sys.argv[1:])
    expected = tokens if thinking else tokens - thinking_tokens(tokens)
    try:
        heard = uvloop.run(run(port, streams, expected))
    except (WrongReply, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(heard))


if __name__ == "__main__":
    main()
