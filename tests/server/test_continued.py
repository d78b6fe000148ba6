"""The session of a reply whose beginning stands in the request."""

from __future__ import annotations

import anyio
import pytest

from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, DoesNotFit, FailureKind
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.server.continued import LEAST_ROOM_BYTES, ContinuedSession
from guardtrace_proxy.wire.prefill import Opening
from guardtrace_proxy.wire.tags import ThinkingStyle

OPENING = Opening("Ünd so", "Well, ", ThinkingStyle())


class Session:
    """Fails as often as it is told, then finds everything safe."""

    def __init__(self, capacity: int = 1000, failures: int = 0) -> None:
        self.capacity = capacity
        self.failures = failures
        self.seen: list[Trace] = []
        self.closed = False

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        self.seen.append(trace)
        if len(self.seen) <= self.failures:
            raise AuditorFailure(FailureKind.UNREADABLE, "no")
        return Verdict(Level.SAFE)

    async def aclose(self) -> None:
        self.closed = True


def judge(session: ContinuedSession, *traces: Trace) -> None:
    async def run() -> None:
        for trace in traces:
            try:
                await session.judge(trace, Depth.ANNOTATE)
            except AuditorFailure:
                continue
        await session.aclose()

    anyio.run(run)


def test_the_beginning_counts_as_judged_from_the_first_verdict_on() -> None:
    inner = Session(failures=1)
    judge(ContinuedSession(inner, OPENING, "f"), Trace(" on"), Trace(" on"), Trace(" on", "four", 3, 0))
    assert inner.seen == [
        Trace("Ünd so on", "Well, "),
        Trace("Ünd so on", "Well, "),
        Trace("Ünd so on", "Well, four", 9, 6),
    ]
    assert inner.closed


def test_it_goes_with_what_was_let_go_unjudged() -> None:
    inner = Session(failures=1)
    judge(ContinuedSession(inner, OPENING, "f"), Trace(" on"), Trace(" on and on", "", 3, 0))
    assert inner.seen[1] == Trace("Ünd so on and on", "Well, ", 9, 6)


def test_it_takes_its_room_from_the_audits_capacity() -> None:
    size = len("Ünd soWell, ".encode())
    assert ContinuedSession(Session(size + LEAST_ROOM_BYTES), OPENING, "f").capacity == LEAST_ROOM_BYTES
    with pytest.raises(DoesNotFit) as caught:
        ContinuedSession(Session(size + LEAST_ROOM_BYTES - 1), OPENING, "messages[3]")
    assert caught.value.field == "messages[3]"
