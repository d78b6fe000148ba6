"""How many bytes all replies together hold (``server.max_total_bytes``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guardtrace_proxy.server.errors import ApiError


class HeldBytes:
    """At the limit new requests are turned away, running replies go on. Summed up for each request, not for each
    token."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._replies: set[Callable[[], int]] = set()

    @contextmanager
    def counting(self, held: Callable[[], int]) -> Iterator[None]:
        """Count what ``held`` says, while the context lasts."""
        self._replies.add(held)
        try:
            yield
        finally:
            self._replies.discard(held)

    @property
    def total(self) -> int:
        """Bytes that are held now."""
        return sum(held() for held in self._replies)

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
