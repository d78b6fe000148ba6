"""The circuit breaker before the auditor: while it is down, audits fail at once instead of each waiting its time out.

Closed, until audits of ``failures`` streams in a row ended in the auditor's own trouble (``OPENS``); of
streams, so that no single one opens it. Open for a pause that grows; then half open: one audit tries, the others still
fail at once. An answer closes it. What fails is the policy's business (``on_auditor_failure``), as any failure.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import structlog

from guardtrace_proxy.auditor.cascade import AuditPlan, OutOfTime
from guardtrace_proxy.auditor.health import FALLS_AT_ONCE, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind, Session
from guardtrace_proxy.policy.levels import Verdict

log = structlog.get_logger("guardtrace")

OPENS = FALLS_AT_ONCE | {FailureKind.GATEWAY}
"""Its own trouble, which each stream would wait for again. A stream counts once, whoever's doing it was."""
ANSWERS = frozenset((FailureKind.UNREADABLE, FailureKind.UNSURE, FailureKind.UNSEEN))
"""No verdict, but a model that wrote or counted something. What is in neither set may be the request's doing."""


@runtime_checkable
class Opened(Protocol):
    """A session that its audits open."""

    is_open: bool


class Circuit(str, Enum):
    """The values are what logs, ``/readyz`` and metrics carry."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Times are ``clock``'s seconds. ``failures`` None: never opens."""

    def __init__(self, failures: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._clock = clock
        self._failed: set[object] = set()
        self._pause = 0.0
        self._opened_at = self._open_until = float("-inf")
        self._is_tried = False

    @property
    def circuit(self) -> Circuit:
        """Half open from the end of the pause until an audit has answered, or has failed and opened it again."""
        if not self._pause:
            return Circuit.CLOSED
        return Circuit.OPEN if self._clock() < self._open_until else Circuit.HALF_OPEN

    @contextmanager
    def audit(self, stream: object, session: object = None) -> Iterator[None]:
        """Stands around one audit of ``stream``, and passes what that raises. An audit whose time was over before its
        ``session`` was open counts for nothing: how long that takes is the request's doing.

        Raises:
            AuditorFailure: it isn't to be made now.
        """
        self._admit()
        began = self._clock()
        is_try = self._pause > 0
        if is_try:
            self._is_tried = True
        try:
            yield
        except AuditorFailure as failure:
            if isinstance(failure, OutOfTime) and isinstance(session, Opened) and not session.is_open:
                pass
            elif failure.kind in OPENS:
                self._trouble(stream, failure.kind, began)
            elif failure.kind in ANSWERS:
                self._answered(began)
            raise
        else:
            self._answered(began)
        finally:
            if is_try:
                self._is_tried = False

    def _admit(self) -> None:
        circuit = self.circuit
        if circuit is Circuit.OPEN or (circuit is Circuit.HALF_OPEN and self._is_tried):
            told = "the auditor failed again and again, and is left alone for a while"
            raise AuditorFailure(FailureKind.CIRCUIT_OPEN, told)

    def _answered(self, began: float) -> None:
        """What was under way when it opened doesn't close it."""
        self._failed.clear()
        if self._pause and began >= self._opened_at:
            self._pause = 0.0
            log.info("auditor circuit closed")

    def _trouble(self, stream: object, kind: FailureKind, began: float) -> None:
        if self._pause:
            if began >= self._opened_at:
                self._open(min(2 * self._pause, LONGEST_PAUSE_SECONDS))
            return
        if self._limit is None:
            return
        self._failed.add(stream)
        if len(self._failed) >= self._limit:
            self._failed.clear()
            self._open(FIRST_PAUSE_SECONDS)
            log.error("auditor circuit open", why=kind.value, failures=self._limit)

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._opened_at = self._clock()
        self._open_until = self._opened_at + pause * random.uniform(0.5, 1)


@dataclass(frozen=True, slots=True, eq=False)
class BreakingPlan:
    """An `AuditPlan` behind the breaker, for the audits of one stream."""

    plan: AuditPlan
    breaker: Breaker

    async def judge(self, session: Session, trace: Trace, since: float | None = None) -> Verdict:
        """Audit once; raises AuditorFailure where there is no verdict."""
        with self.breaker.audit(self, session):
            return await self.plan.judge(session, trace, since)
