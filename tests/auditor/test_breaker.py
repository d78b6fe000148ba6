"""The breaker opens after failures of several streams in a row, lets one audit try, and closes with an answer."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.breaker import ANSWERS, OPENS, Breaker, BreakingPlan, Circuit
from guardtrace_proxy.auditor.cascade import AuditPlan
from guardtrace_proxy.auditor.health import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind
from guardtrace_proxy.policy.levels import Level, Verdict

TROUBLE = FailureKind.UNREACHABLE


class World:
    """A breaker that opens at the third stream, and a clock that stands still."""

    def __init__(self, failures: int | None = 3) -> None:
        self.now = 100.0
        self.breaker = Breaker(failures, clock=lambda: self.now)

    def audit(self, stream: object, kind: FailureKind | None = None) -> FailureKind | None:
        """What the audit ends with."""
        try:
            with self.breaker.audit(stream):
                if kind is not None:
                    raise AuditorFailure(kind, "scripted")
        except AuditorFailure as failure:
            return failure.kind
        return None

    def opened(self) -> World:
        for stream in range(3):
            assert self.audit(stream, TROUBLE) is TROUBLE
        assert self.breaker.circuit is Circuit.OPEN
        return self


@pytest.mark.parametrize("kind", sorted(OPENS))
def test_failures_of_several_streams_in_a_row_open_it(kind):
    world = World()
    world.audit("a", kind)
    world.audit("b", kind)
    assert world.breaker.circuit is Circuit.CLOSED
    world.audit("c", kind)
    assert world.audit("d") is FailureKind.CIRCUIT_OPEN


def test_one_stream_alone_never_opens_it():
    world = World()
    for _ in range(50):
        assert world.audit("a", TROUBLE) is TROUBLE
    assert world.breaker.circuit is Circuit.CLOSED


@pytest.mark.parametrize("kind", [None, *sorted(ANSWERS)])
def test_an_answer_ends_the_row(kind):
    world = World()
    for _ in range(10):
        world.audit("a", TROUBLE)
        world.audit("b", TROUBLE)
        assert world.audit("c", kind) is kind
    assert world.breaker.circuit is Circuit.CLOSED


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - OPENS))
def test_what_may_be_the_requests_doing_never_opens_it(kind):
    world = World()
    for stream in range(50):
        assert world.audit(stream, kind) is kind
    assert world.breaker.circuit is Circuit.CLOSED


def test_it_can_be_switched_off():
    world = World(None)
    for stream in range(50):
        assert world.audit(stream, TROUBLE) is TROUBLE
    assert world.breaker.circuit is Circuit.CLOSED


class Stream:
    pass


@pytest.mark.parametrize("failures", [None, 3])
def test_streams_that_have_ended_arent_kept_in_an_outage(failures):
    world, streams = World(failures), weakref.WeakSet[Stream]()
    for _ in range(1000):
        stream = Stream()
        streams.add(stream)
        world.audit(stream, TROUBLE)
        del stream
    gc.collect()
    assert len(streams) < 3


def test_after_the_pause_one_audit_tries_and_the_others_fail_meanwhile():
    world = World().opened()
    world.now += FIRST_PAUSE_SECONDS
    assert world.breaker.circuit is Circuit.HALF_OPEN
    with world.breaker.audit("one"):
        assert world.audit("other") is FailureKind.CIRCUIT_OPEN
        assert world.breaker.circuit is Circuit.HALF_OPEN
    assert world.breaker.circuit is Circuit.CLOSED
    assert world.audit("other") is None


def test_the_pause_doubles_and_is_bounded():
    world = World().opened()
    waits = []
    for _ in range(10):
        began = world.now
        while world.breaker.circuit is Circuit.OPEN:
            world.now += 0.05
        waits.append(world.now - began)
        assert world.audit("one", TROUBLE) is TROUBLE
    for number, waited in enumerate(waits):
        pause = min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
        assert pause / 2 - 0.1 <= waited <= pause + 0.1


@given(st.lists(st.tuples(st.sampled_from([TROUBLE, FailureKind.REFUSED, FailureKind.OUTGROWN]), st.floats(0, 90))))
def test_it_is_closed_at_no_moment_of_an_outage(history):
    world = World().opened()
    for kind, passed in history:
        with suppress(AuditorFailure), world.breaker.audit("one"):
            assert world.breaker.circuit is not Circuit.CLOSED
            raise AuditorFailure(kind, "scripted")
        assert world.breaker.circuit is not Circuit.CLOSED
        world.now += passed
        assert world.breaker.circuit is not Circuit.CLOSED


def test_a_try_that_was_given_up_leaves_the_next_one_to_try():
    class Left(BaseException):
        pass

    world = World().opened()
    world.now += FIRST_PAUSE_SECONDS
    with pytest.raises(Left), world.breaker.audit("one"):
        raise Left
    assert world.audit("one", FailureKind.REFUSED) is FailureKind.REFUSED
    assert world.breaker.circuit is Circuit.HALF_OPEN
    assert world.audit("two") is None
    assert world.breaker.circuit is Circuit.CLOSED


def test_what_was_under_way_when_it_opened_neither_closes_it_nor_makes_the_pause_longer():
    world = World()
    with world.breaker.audit("early"):
        world.now += 1
        world.opened()
    assert world.breaker.circuit is Circuit.OPEN
    world = World()
    with suppress(AuditorFailure), world.breaker.audit("early"):
        world.now += 1
        world.opened()
        raise AuditorFailure(TROUBLE, "late")
    world.now += FIRST_PAUSE_SECONDS
    assert world.breaker.circuit is Circuit.HALF_OPEN


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, TROUBLE, FailureKind.REFUSED]), st.floats(0, 90))))
def test_whatever_happens_a_well_auditor_is_asked_again_within_the_longest_pause(history):
    world = World()
    for stream, kind, passed in history:
        world.audit(stream, kind)
        world.now += passed
    world.now += LONGEST_PAUSE_SECONDS
    assert world.audit("last") is None
    assert world.breaker.circuit is Circuit.CLOSED


class Hanging:
    capacity = 100

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        await anyio.sleep_forever()
        return Verdict(Level.SAFE)

    async def aclose(self) -> None:
        pass


def test_audits_that_time_out_open_it_and_are_then_not_made():
    async def run() -> list[tuple[FailureKind, bool]]:
        breaker = Breaker(2)
        seen = []
        for _ in range(3):
            plan = BreakingPlan(AuditPlan("annotate", 50), breaker)
            began = anyio.current_time()
            with pytest.raises(AuditorFailure) as caught:
                await plan.judge(Hanging(), Trace("a", "b"))
            seen.append((caught.value.kind, anyio.current_time() - began >= 0.05))
        return seen

    timeout = (FailureKind.TIMEOUT, True)
    assert anyio.run(run) == [timeout, timeout, (FailureKind.CIRCUIT_OPEN, False)]
