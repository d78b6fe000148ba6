"""How many bytes all replies together hold (``server.max_total_bytes``)."""

from __future__ import annotations

from collections.abc import Callable

from guardtrace_proxy.server.errors import ApiError


class HeldBytes:
    """Replies in flight report what they hold; at the limit new requests are turned away, running ones go on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[str, int] = {}
        self.total = 0

    def account(self, request_id: str) -> Callable[[int], None]:
        """Where one reply reports the bytes that it holds now; 0 ends its account."""

        def report(held: int) -> None:
            before = self._held.get(request_id, 0)
            if held == before:
                return
            self.total += held - before
            if held:
                self._held[request_id] = held
            else:
                self._held.pop(request_id, None)

        return report

    def admit(self) -> None:
        """Raise ApiError 503 where the limit is reached."""
        if self.total < self._limit:
            return
        raise ApiError(
            503,
            "The proxy holds as much unaudited text as it may (server.max_total_bytes). Try again soon.",
            type="server_error",
            code="overloaded",
            headers=((b"retry-after", b"1"),),
        )
