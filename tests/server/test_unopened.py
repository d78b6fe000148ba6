"""A session that is opened by its audits."""

from __future__ import annotations

import anyio
import pytest

from guardtrace_proxy.auditor.breaker import Breaker, BreakingPlan, Circuit
from guardtrace_proxy.auditor.cascade import AuditPlan
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, DoesNotFit, FailureKind
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.server.unopened import UnopenedSession

DOWN = AuditorFailure(FailureKind.TIMEOUT, "too slow")
SAFE = Verdict(Level.SAFE)


class Opened:
    capacity = 4096
    closed = 0

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        return SAFE

    async def aclose(self) -> None:
        self.closed += 1


class Opening:
    """Raises what it is given, one after the other, then opens."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.opened: list[Opened] = []

    async def __call__(self) -> Opened:
        if self.errors:
            raise self.errors.pop(0)
        self.opened.append(Opened())
        return self.opened[-1]


def judge(session: UnopenedSession) -> Verdict | FailureKind:
    async def ask() -> Verdict | FailureKind:
        try:
            return await session.judge(Trace("a", ""), Depth.LABEL)
        except AuditorFailure as failure:
            return failure.kind

    return anyio.run(ask)


def test_each_audit_tries_to_open_it_until_one_has() -> None:
    opening = Opening(DOWN, DOWN)
    session = UnopenedSession(opening)
    assert [judge(session) for _ in range(4)] == [FailureKind.TIMEOUT, FailureKind.TIMEOUT, SAFE, SAFE]
    assert len(opening.opened) == 1
    anyio.run(session.aclose)
    assert opening.opened[0].closed == 1


def test_a_request_that_turns_out_too_large_fails_its_audits() -> None:
    assert judge(UnopenedSession(Opening(DoesNotFit("messages", "too long")))) is FailureKind.OUTGROWN


@pytest.mark.parametrize("hangs", ["opening", "judging"])
def test_time_that_went_by_while_it_was_opened_is_no_trouble_of_the_auditors(hangs: str) -> None:
    """A client could else close the auditor to everybody by requests that take long to prepare."""

    class Hanging(Opened):
        async def judge(self, trace: Trace, depth: Depth) -> Verdict:
            await anyio.sleep_forever()
            return SAFE

    async def open_it() -> Opened:
        if hangs == "opening":
            await anyio.sleep_forever()
        return Hanging()

    async def run() -> Circuit:
        breaker = Breaker(2)
        for _ in range(3):
            plan = BreakingPlan(AuditPlan("label", 20), breaker)
            with pytest.raises(AuditorFailure):
                await plan.judge(UnopenedSession(open_it), Trace("a", ""))
        return breaker.circuit

    assert anyio.run(run) is (Circuit.CLOSED if hangs == "opening" else Circuit.OPEN)


@pytest.mark.parametrize("errors", [(), (DOWN,)])
def test_one_that_was_never_opened_has_nothing_to_close(errors: tuple[Exception, ...]) -> None:
    opening = Opening(*errors)
    session = UnopenedSession(opening)
    if errors:
        assert judge(session) is FailureKind.TIMEOUT
    anyio.run(session.aclose)
    assert opening.opened == []
