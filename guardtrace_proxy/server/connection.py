"""A client's connection: uvicorn's, and an end for one that doesn't bring a whole request.

uvicorn itself bounds the pause between two requests and nothing else: it waits for ever for a first byte and for the
rest of a head, and takes a head of any length. A body's time is `read_body`'s to bound.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

log = structlog.get_logger("guardtrace")

MAX_HEAD_BYTES = 65_536
"""And what one read of the socket brings (256 KiB). As much may come behind a body before its end: trailers."""
QUIET_SECONDS = 10.0
"""Between two lines of the log that say that there are too many."""
HEAD_TOO_LARGE = STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n"


class ClientConnection(HttpToolsProtocol):
    """Closed where no request begins within uvicorn's ``timeout_keep_alive``, or where its head takes longer than
    ``head_seconds`` from its first byte on; neither while a reply is under way. And at ``MAX_HEAD_BYTES`` of a head,
    and at once where there are more than ``most``."""

    _quiet_until: ClassVar[float] = 0.0

    def __init__(self, *arguments: Any, head_seconds: float, most: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._most = most
        self._head_seconds = head_seconds
        self._unread_bytes = 0
        """What came since a head, a piece of a body or a request was complete."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _is_replying(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._say_too_many()
            transport.abort()
            return
        self._close_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if not self._is_replying:
                self.transport.write(HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._close_after(self._head_seconds)

    def on_headers_complete(self) -> None:
        self._unread_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._close_after(self.timeout_keep_alive)

    def _say_too_many(self) -> None:
        now = self.loop.time()
        if now >= ClientConnection._quiet_until:
            ClientConnection._quiet_until = now + QUIET_SECONDS
            log.warning("too many connections", most=self._most)

    def _close_after(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _close(self) -> None:
        """Of a reply that is under way the end sets the timer anew."""
        if not self._is_replying:
            self.transport.close()
