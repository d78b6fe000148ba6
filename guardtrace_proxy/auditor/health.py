"""How an auditor is doing: what takes it down, and how long it is left out then."""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog

from guardtrace_proxy.auditor.protocol import Auditor, FailureKind

log = structlog.get_logger("guardtrace")

FALLS_AT_ONCE = frozenset((FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.OVERLOADED))
"""The replica's own trouble. ``TIMEOUT`` is one of connecting; that of an audit is the caller's."""
FALLS_IF_ANOTHER_ANSWERS = frozenset((FailureKind.REFUSED, FailureKind.GATEWAY, FailureKind.BROKEN, FailureKind.UNSEEN))
"""May be the question's doing, or its images', so that a request could take out one replica after the other. Of copies
alone: a fallback may answer what the first rightly refuses."""
MOVES_ON = FALLS_AT_ONCE | FALLS_IF_ANOTHER_ANSWERS
"""Not the others. ``UNREADABLE`` and ``UNSURE`` are what the model says: asking its copies until one says something
else would not be judging. ``OUTGROWN`` is the text's doing; ``CANCELLED`` means that all of it was closed."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""How long a replica is left out, at least half of it (jitter); doubled each time that it is tried in vain."""
QUIET_SECONDS = 10.0
"""Between two lines of the log that say what one that isn't left out refuses."""


class Replica:
    """One auditor and how it is doing. Times are ``clock``'s seconds."""

    def __init__(self, name: str, auditor: Auditor, clock: Callable[[], float]) -> None:
        self.name = name
        self.auditor = auditor
        self.heard = float("-inf")
        """When it last replied to anything."""
        self._clock = clock
        self._pause = 0.0
        self._fell_at = self._out_until = self._quiet_until = float("-inf")

    @property
    def is_ready(self) -> bool:
        """Not left out."""
        return self._clock() >= self._out_until

    @property
    def is_down(self) -> bool:
        """It fell and hasn't answered since. After a pause it is ready and still down, until somebody has tried it."""
        return self._pause > 0

    def asked(self) -> None:
        """Where its pause was over, the next one begins: until it has answered, nobody else tries it."""
        if self._pause and self.is_ready:
            self._leave_out(min(2 * self._pause, LONGEST_PAUSE_SECONDS))

    def answered(self, began: float) -> None:
        """A reply to what was asked at ``began``: what was under way when it fell doesn't bring it back."""
        self.heard = self._clock()
        if self._pause and began > self._fell_at:
            self._pause, self._out_until = 0.0, float("-inf")
            log.info("auditor replica is back", replica=self.name)

    def fell(self, why: str) -> None:
        """What fails while it is left out already, failed for the same reason."""
        if not self._pause:
            self._fell_at = self._clock()
            self._leave_out(FIRST_PAUSE_SECONDS)
            log.warning("auditor replica left out", replica=self.name, why=why)

    def refused(self, why: str) -> None:
        """Its fallback answered what it failed at. It isn't left out, but whoever trusts it more must know."""
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + QUIET_SECONDS
            log.warning("auditor fallback answers what the auditor refuses", replica=self.name, why=why)

    def _leave_out(self, pause: float) -> None:
        self._pause = pause
        self._out_until = self._clock() + pause * random.uniform(0.5, 1)
