"""How many bytes are in memory for all requests together (``server.max_total_bytes``): their bodies and images, their
replies from when they come until they were sent, and what a reply keeps to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guardtrace_proxy.server.errors import overloaded


class HeldBytes:
    """At the limit new requests are turned away, running replies go on. Summed up for each request, not for each
    token."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._replies: set[Callable[[], int]] = set()
        self._bodies = 0
        self._whole = 0

    @contextmanager
    def counting(self, held: Callable[[], int]) -> Iterator[None]:
        """Count what ``held`` says, while the context lasts."""
        self._replies.add(held)
        try:
            yield
        finally:
            self._replies.discard(held)

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Count a request's body while the context lasts: it yields what is to be told of each piece's length, which
        raises ApiError 503 once bodies alone reach the limit."""
        size = 0

        def add(length: int) -> None:
            nonlocal size
            size += length
            self._bodies += length
            if self._bodies >= self._limit:
                raise overloaded("server.max_total_bytes")

        try:
            yield add
        finally:
            self._bodies -= size

    @contextmanager
    def whole(self) -> Iterator[Callable[[int], None]]:
        """Count a reply that is read as a whole while the context lasts: it yields what is to be told of each piece's
        length."""
        size = 0

        def add(length: int) -> None:
            nonlocal size
            size += length
            self._whole += length

        try:
            yield add
        finally:
            self._whole -= size

    @property
    def total(self) -> int:
        """Bytes that are held now."""
        return self._bodies + self._whole + sum(held() for held in self._replies)

    @property
    def is_full(self) -> bool:
        """The limit is reached."""
        return self.total >= self._limit
