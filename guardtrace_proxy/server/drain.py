"""The end of a server that was told to stop: what runs may go on for a while, and what then still runs is ended.

Whoever answers a request says how to end it: a reply that has begun is broken off in order, one that hasn't is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Stop = Callable[[], None]


class Drain:
    """What runs and how to end it."""

    def __init__(self) -> None:
        self._stops: set[Stop] = set()
        self._requests = 0

    @contextmanager
    def request(self, stop: Stop) -> Iterator[None]:
        """``may_stop`` of a request as it is read, or of its reply as a whole: that counts as one, whatever else in it
        may be stopped by itself."""
        self._requests += 1
        try:
            with self.may_stop(stop):
                yield
        finally:
            self._requests -= 1

    @contextmanager
    def may_stop(self, stop: Stop) -> Iterator[None]:
        """While the context lasts, ``stop`` ends what is in it."""
        self._stops.add(stop)
        try:
            yield
        finally:
            self._stops.discard(stop)

    def end(self) -> int:
        """End everything; returns how many requests that were."""
        requests = self._requests
        for stop in list(self._stops):
            stop()
        return requests
