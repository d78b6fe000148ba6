"""Turns new requests away before the process is overwhelmed, so that those that run go on: 503 with ``retry-after``.

Three things overwhelm it: too many requests at once (``server.max_concurrent``), too many bytes in memory
(``server.max_total_bytes``), and a core that is busy, which shows in the event loop being late (``server.max_lag_ms``):
then audits run out of time and replies are cut that nobody had to cut. A loop that is late while nothing runs isn't
late for the load (the start, a machine that paused), so the first request is always let in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from guardtrace_proxy.server.budget import HeldBytes
from guardtrace_proxy.server.errors import overloaded

log = structlog.get_logger("guardtrace")

WATCH_SECONDS = 0.1
QUIET_SECONDS = 10.0
"""Between two lines of the log that say it."""


class Shedding:
    """``running`` requests are being answered, ``shed`` were turned away."""

    def __init__(self, max_concurrent: int, budget: HeldBytes, max_lag_ms: int) -> None:
        self.running = 0
        self.shed = 0
        self._max_concurrent = max_concurrent
        self._budget = budget
        self._max_lag_ms = max_lag_ms
        self._quiet_until = float("-inf")
        self._clock: Callable[[], float] = time.monotonic
        self._due = float("inf")
        self._lag_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Measure the running loop's lag from now on."""
        loop = asyncio.get_running_loop()

        def measure() -> None:
            self._lag_seconds = loop.time() - self._due
            self.start()

        self._clock = loop.time
        self._due = loop.time() + WATCH_SECONDS
        self._timer = loop.call_at(self._due, measure)

    def stop(self) -> None:
        """Measure no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._due = float("inf")

    @property
    def lag_ms(self) -> float:
        """How late the event loop is, or was when it was last measured."""
        return max(self._lag_seconds, self._clock() - self._due) * 1000

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the context lasts; raises ApiError 503 where it can't be taken on."""
        why = self._why_not()
        if why is not None:
            self.shed += 1
            self._say(why)
            raise overloaded(why)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def _why_not(self) -> str | None:
        if self.running >= self._max_concurrent:
            return "server.max_concurrent"
        if self.running and self._max_lag_ms and self.lag_ms > self._max_lag_ms:
            return "server.max_lag_ms"
        if self._budget.is_full:
            return "server.max_total_bytes"
        return None

    def _say(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_SECONDS
            log.warning("overloaded", limit=why, running=self.running, lag_ms=round(self.lag_ms), shed=self.shed)
