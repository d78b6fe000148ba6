"""One response to a client, whoever writes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import anyio

from guardtrace_proxy.server.asgi_io import ClientGone, Message, Send
from guardtrace_proxy.server.tenants import Tenant


class OneResponse:
    """Sends a response under its request id, in these headers, and knows whether it has begun and ended."""

    def __init__(self, send: Send, request_id: str, id_headers: Collection[str]) -> None:
        self.request_id = request_id
        self.tenant: Tenant | None = None
        """Whose it is, once that is known."""
        self._send = send
        self._ids = [(name.encode(), request_id.encode()) for name in id_headers]
        self.status: int | None = None
        """None until the head has left."""
        self.ended = False
        self._waiting_since: float | None = None
        self._timer: asyncio.TimerHandle

    @property
    def began(self) -> bool:
        """Whether the head has left."""
        return self.status is not None

    async def __call__(self, message: Message) -> None:
        """Raises ClientGone where the server says that nobody is there any more: since ASGI 2.4 by an OSError."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self._ids]}
        else:
            self.ended = not message.get("more_body", False)
        self._waiting_since = time.monotonic()
        try:
            await self._send(message)
        except OSError:
            raise ClientGone from None
        finally:
            self._waiting_since = None

    async def or_stop(self, message: Message, stop: Callable[[], None]) -> None:
        """Send a message of a reply whose tasks ``stop`` cancels, this one too: in their groups ClientGone would become
        a group of errors."""
        try:
            await self(message)
        except ClientGone:
            stop()
            await anyio.lowlevel.checkpoint()

    @contextmanager
    def must_be_taken(self, seconds: float, let_go: Callable[[], None]) -> Iterator[None]:
        """``let_go`` is called once a message has waited so long for its client.

        A timer for the response, not one for each message: a time limit of anyio's costs more than a message does.
        """
        self._look_after(seconds, seconds, let_go)
        try:
            yield
        finally:
            self._timer.cancel()

    def _look_after(self, delay: float, seconds: float, let_go: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._look, seconds, let_go)

    def _look(self, seconds: float, let_go: Callable[[], None]) -> None:
        waited = 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since
        if waited < seconds:
            self._look_after(seconds - waited, seconds, let_go)
        else:
            let_go()
