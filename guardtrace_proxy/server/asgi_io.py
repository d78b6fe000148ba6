"""The few things that every route does with ASGI messages (spec: https://asgi.readthedocs.io/en/latest/specs/www.html)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import anyio
import msgspec

from guardtrace_proxy.server.errors import ApiError, client_silent
from guardtrace_proxy.wire.dialects import ErrorShape

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = (b"content-type", b"application/json")
MAX_PIECE_BYTES = 65_536
"""Of a body, in one message. A client's time runs for each message, so one that reads slowly isn't taken for one that
reads nothing; and since uvicorn buffers some 64 KiB before ``send`` waits, little is left after the last message."""
SILENCES_A_BODY = 5
"""How many times as long as it may be silent a client may take for its whole body: one that drips ends, too."""


class ClientGone(Exception):
    """The client closed its connection."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header; ``name`` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def route_of(scope: Scope) -> str:
    """The path below where the app is mounted (``root_path``), as Starlette's router takes it."""
    path = str(scope["path"])
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") else path


async def close_websocket(receive: Receive, send: Send) -> None:
    """Refuse a websocket before it is open: the server answers HTTP 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": "not audited, so not served"})


async def read_body(
    scope: Scope,
    receive: Receive,
    limit: int,
    silence_seconds: float = math.inf,
    came: Callable[[int], None] = lambda _: None,
) -> bytes:
    """The whole request body, at most ``limit`` bytes; ``came`` is told of each piece's length.

    Raises ApiError 413 beyond, 408 where the client is silent for too long or takes ``SILENCES_A_BODY`` times that, 415
    where it is compressed (nobody needs that, and it would be one more bomb to defuse), ClientGone at a disconnect.
    """
    coding = header(scope, b"content-encoding")
    if coding is not None and coding.strip().lower() not in ("", "identity"):
        raise ApiError(
            415,
            "The request body is compressed (content-encoding). Send it as it is.",
            code="unsupported_content_encoding",
            headers=((b"accept-encoding", b"identity"),),
        )
    too_large = ApiError(
        413, f"The request body is larger than {limit:,} bytes (server.max_body_bytes).", code="body_too_large"
    )
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    until = anyio.current_time() + SILENCES_A_BODY * silence_seconds
    while True:
        with anyio.move_on_after(min(silence_seconds, until - anyio.current_time())) as waiting:
            message = await receive()
        if waiting.cancelled_caught:
            raise client_silent()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        came(len(chunk))
        if size > limit:
            raise too_large
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def disconnect(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send_body(send, body)


async def send_body(send: Send, data: bytes, more: bool = False) -> None:
    """Send a body, or a part of one where ``more`` follows, in pieces of at most ``MAX_PIECE_BYTES``."""
    last = max(0, len(data) - 1) // MAX_PIECE_BYTES * MAX_PIECE_BYTES
    for start in range(0, last, MAX_PIECE_BYTES):
        piece = data[start : start + MAX_PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": data[last:], "more_body": more})


async def respond_json(send: Send, status: int, content: object, headers: Headers | None = None) -> None:
    """Send ``content`` as JSON."""
    await respond(send, status, msgspec.json.encode(content), [JSON, *(headers or [])])


async def respond_error(
    send: Send, error: ApiError, shape: ErrorShape, request_id: str, headers: Headers | None = None
) -> None:
    """Send an error in a dialect's shape, if anybody is there to read it."""
    status, body = shape(error.status, error.fields, request_id)
    with suppress(ClientGone):
        await respond(send, status, body, [JSON, *error.headers, *(headers or [])])
