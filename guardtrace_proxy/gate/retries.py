"""When a failed audit is tried again, and when it has failed for too long."""

from __future__ import annotations

FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
"""Seconds between two tries: twice as long each time, up to the last."""


class Retries:
    """The failures in a row of one choice's audits. ``limit`` is how many seconds they may go on."""

    __slots__ = ("_limit", "_pause", "_since", "at")

    def __init__(self, limit: float) -> None:
        self.at = 0.0
        """When the next try is due."""
        self._limit = limit
        self._pause = FIRST_PAUSE
        self._since: float | None = None

    def succeeded(self) -> None:
        """The auditor answered."""
        self._since, self._pause = None, FIRST_PAUSE

    def failed(self, now: float) -> bool:
        """The auditor failed; returns whether another try may follow."""
        if self._since is None:
            self._since = now
        return now - self._since < self._limit

    def wait(self, now: float) -> None:
        """Set the next try."""
        self.at = now + self._pause
        self._pause = min(self._pause * 2, LAST_PAUSE)
