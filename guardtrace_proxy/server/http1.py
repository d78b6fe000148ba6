"""HTTP/1.1 from clients: uvicorn's protocol on httptools, bounded, and strict where one request could pass for two.

Left to itself, uvicorn (0.54) adds a chunked body's trailers to the request's headers; takes the body of a request that
asks for an upgrade for further requests; bounds neither the length of a head nor the time that it takes, nor the number
of connections; writes its 400 into a reply that runs; and of several pipelined requests tells only the last that the
client has left. It logs a line for each of these and for each upgrade, which takes no key, with advice to install
websockets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any, ClassVar

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from guardtrace_proxy.wire.dialects import openai_error

log = structlog.get_logger("guardtrace")
uvicorn_log = logging.getLogger("uvicorn.error.connection")
uvicorn_log.setLevel(logging.ERROR)  # its warnings are what any client may cause, as often as it likes

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers; and of whatever else is neither a head nor a piece of a body: trailers, say."""

MAX_UNSENT_BYTES = 65_536
"""Of a connection, in the kernel's buffer and not on their way (Linux). Left to itself it takes megabytes, and then
nothing until a third of them was read: a client that reads slowly would look like one that reads nothing."""

QUIET_SECONDS = 10.0
"""Between two lines of the log that say the same of connections, since they need no key."""


class _Refused(Exception):
    """Ends the parser; the connection's ``_refusal`` says why."""


class Http1Protocol(HttpToolsProtocol):
    """One connection. It is closed where no request begins within the keep-alive time, where a head isn't whole
    ``head_seconds`` after its first byte (None: the same time), and at once where there are more than ``most``."""

    _quiet_until: ClassVar[dict[str, float]] = {}
    """By what the log says."""

    def __init__(self, *args: Any, head_seconds: float | None = None, most: int = sys.maxsize, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = uvicorn_log
        self._head_seconds = self.timeout_keep_alive if head_seconds is None else head_seconds
        self._most = most
        self._refusal = 400, "This isn't a well-formed HTTP/1.1 request."
        self._in_head = True
        self._head_bytes = 0
        self._untaken_bytes = 0
        """Since the last head, piece of a body or end of a request."""
        self._cycles: list[RequestResponseCycle] = []
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _bound_unsent(transport)
        if len(self.connections) > self._most:
            if self._is_due("too many connections"):
                log.warning("too many connections", most=self._most)
            transport.abort()
            return
        self._wait(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._untaken_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._untaken_bytes > MAX_HEAD_BYTES:
            self._say_too_large()
            self._refuse()
        elif self._patience is None and not self._unanswered():
            self._wait(self.timeout_keep_alive)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        if not self._unanswered():
            self._stop_waiting()
            self._wait(self._head_seconds)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        self._count(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._untaken_bytes = 0
        self._stop_waiting()
        if self.parser.should_upgrade() and self._announces_body():
            self._refusal = 400, "A request with a body can't ask for an upgrade. Send it as plain HTTP/1.1."
            raise _Refused
        super().on_headers_complete()
        self._in_head = False
        self._cycles = self._unanswered()
        if self.cycle is not None:
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._untaken_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._untaken_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse()

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def _announces_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" \t0"))
            for name, value in self.headers
        )

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > MAX_HEAD_BYTES:
            self._say_too_large()
            raise _Refused

    def _say_too_large(self) -> None:
        self._refusal = 431, f"The request's head is larger than {MAX_HEAD_BYTES:,} bytes."

    def _refuse(self) -> None:
        """Close; the answer is written only where it can't be taken for another request's."""
        if self._is_due("malformed HTTP"):
            log.info("malformed HTTP", status=self._refusal[0])
        refused = [] if self._in_head else [self.cycle]
        if self._unanswered() == refused and not any(cycle.response_started for cycle in refused):
            self._write_refusal()
        self.transport.close()

    def _write_refusal(self) -> None:
        status, message = self._refusal
        fields = {"message": message, "type": "invalid_request_error", "param": None, "code": "malformed_http"}
        _, body = openai_error(status, fields, "")
        length = b"content-length: %d\r\n" % len(body)
        own = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        head = b"content-type: application/json\r\nconnection: close\r\n"
        self.transport.write(STATUS_LINE[status] + own + head + length + b"\r\n" + body)

    def _is_due(self, event: str) -> bool:
        """Whether the log may say so again."""
        now = self.loop.time()
        if now < self._quiet_until.get(event, 0.0):
            return False
        self._quiet_until[event] = now + QUIET_SECONDS
        return True

    def _wait(self, seconds: float) -> None:
        """For a request's head, however slowly it comes."""
        self._patience = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _bound_unsent(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if sys.platform == "linux" and connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)


def http_settings(app: Any, **settings: Any) -> uvicorn.Config:
    """How an app of ours is served; ``settings`` are uvicorn's and win. No client says by a header who it is or how it
    came, and none gets a websocket."""
    ours: dict[str, Any] = {
        "http": Http1Protocol,
        "ws": "none",
        "proxy_headers": False,
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
    return uvicorn.Config(app, **{**ours, **settings})
