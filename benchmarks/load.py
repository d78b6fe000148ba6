"""The clients: ``python -m benchmarks.load PORT STREAMS TOKENS [CHECK]``. Fails unless every reply is whole.

``bytes`` (default): it is unaltered. ``text``: thinking and answer say what they should, in whatever frames.
``answer``: the answer does, of a proxy that drops the thinking.

Raw sockets and httptools, in a process of its own, so that it takes as little as can be from the proxies.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

from benchmarks.script import events

REPLY_SECONDS = 120.0

REQUEST = {
    "model": "Qwen/Qwen3-VL-8B-Thinking",
    "messages": [{"role": "user", "content": "When is the nine o'clock train there, and is the bus faster?"}],
    "stream": True,
}


Check = Callable[[bytes, bytes], None]
"""Of a reply's body and the expected one."""


class WrongReply(Exception):
    """The proxy changed a benign reply, or didn't finish it."""


class Client(asyncio.Protocol):
    """Sends one request and collects the reply's body."""

    def __init__(self, request: bytes, done: asyncio.Future[bytes]) -> None:
        self._request = request
        self._done = done
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(WrongReply("the connection closed before the reply's end"))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._done.done():
            return
        status = self._parser.get_status_code()
        body = b"".join(self._body)
        if status == 200:
            self._done.set_result(body)
        else:
            self._done.set_exception(WrongReply(f"HTTP {status}: {body[:200]!r}"))


def check_bytes(body: bytes, expected: bytes) -> None:
    """The same bytes; raises WrongReply."""
    if body != expected:
        raise WrongReply(f"{len(body)} bytes where {len(expected)} were expected, or others")


def check_text(body: bytes, expected: bytes) -> None:
    """The same thinking and answer; raises WrongReply."""
    if said_in(body) != said_in(expected):
        raise WrongReply(f"another text: {body[-200:]!r}")


def check_answer(body: bytes, expected: bytes) -> None:
    """The same answer, and the thinking or none; raises WrongReply."""
    if said_in(body)[1] != said_in(expected)[1]:
        raise WrongReply(f"another answer: {body[-200:]!r}")


def said_in(body: bytes) -> tuple[str, str]:
    """Thinking and answer of a streamed reply."""
    thinking, answer = [], []
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                delta = choice["delta"]
                thinking.append(delta.get("reasoning") or delta.get("reasoning_content") or "")
                answer.append(delta.get("content") or "")
    return "".join(thinking), "".join(answer)


CHECKS: dict[str, Check] = {"bytes": check_bytes, "text": check_text, "answer": check_answer}


async def stream(port: int, request: bytes, expected: bytes, check: Check = check_bytes) -> None:
    """One stream; raises WrongReply."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_connection(lambda: Client(request, done), "127.0.0.1", port)
    try:
        body = await asyncio.wait_for(done, REPLY_SECONDS)
    finally:
        transport.close()
    if not body.endswith(b"data: [DONE]\n\n"):
        raise WrongReply(f"the stream doesn't end with [DONE] but with {body[-200:]!r}")
    check(body, expected)


async def run(port: int, streams: int, tokens: int, check: Check) -> None:
    expected = b"".join(events(tokens))
    body = json.dumps(REQUEST).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    await asyncio.gather(*(stream(port, request, expected, check) for _ in range(streams)))


def main() -> None:
    port, streams, tokens, *check = sys.argv[1:]
    try:
        uvloop.run(run(int(port), int(streams), int(tokens), CHECKS[check[0] if check else "bytes"]))
    except (WrongReply, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
