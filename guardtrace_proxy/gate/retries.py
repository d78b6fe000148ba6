"""When a failed audit is tried again, and when it has failed for too long."""

from __future__ import annotations

FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
"""Seconds between two tries: twice as long each time, up to the last. No try is later than the limit."""


class Retries:
    """The failures in a row of one choice's audits. ``limit`` is how many seconds they may go on."""

    __slots__ = ("_limit", "_pause", "_until", "at")

    def __init__(self, limit: float) -> None:
        self.at = 0.0
        """When the next try is due."""
        self._limit = limit
        self._pause = FIRST_PAUSE
        self._until: float | None = None

    def succeeded(self) -> None:
        """The auditor answered."""
        self._until, self._pause = None, FIRST_PAUSE

    def failed(self, now: float) -> bool:
        """The auditor failed; returns whether another try may follow."""
        if self._until is None:
            self._until = now + self._limit
        return now < self._until

    def wait(self, now: float) -> None:
        """Set the next try, after a failure: at the limit at the latest, which is then the last one."""
        assert self._until is not None
        self.at = min(now + self._pause, self._until)
        self._pause = min(self._pause * 2, LAST_PAUSE)
