"""One response to a client, whoever writes it."""

from __future__ import annotations

import time
from collections.abc import Collection

import anyio

from guardtrace_proxy.server.asgi_io import Message, Send
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

    @property
    def began(self) -> bool:
        """Whether the head has left."""
        return self.status is not None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self._ids]}
        else:
            self.ended = not message.get("more_body", False)
        self._waiting_since = time.monotonic()
        try:
            await self._send(message)
        finally:
            self._waiting_since = None

    async def is_not_taken(self, seconds: float) -> None:
        """Wait until a message has waited so long for its client.

        A timer for the response, not one for each message: a time limit of anyio's costs more than a message does.
        """
        waited = 0.0
        while waited < seconds:
            await anyio.sleep(seconds - waited)
            waited = 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since
