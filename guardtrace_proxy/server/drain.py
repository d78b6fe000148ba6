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

    @contextmanager
    def may_stop(self, stop: Stop) -> Iterator[None]:
        """While the context lasts, ``stop`` ends what is in it."""
        self._stops.add(stop)
        try:
            yield
        finally:
            self._stops.discard(stop)

    def end(self) -> int:
        """End everything; returns how much that was."""
        stops = list(self._stops)
        for stop in stops:
            stop()
        return len(stops)
