"""One audit by each configured depth, on sessions that follow a script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.cascade import AuditPlan, OutOfTime, within
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict

TRACE = Trace("Let me see.", "Four.")
LONG = 60_000
FOREVER = object()


def label(risk: float, milliseconds: float = 2.0) -> Verdict:
    level = Level.HARMFUL if risk > 0.5 else Level.SAFE
    return Verdict(level, Probabilities(1 - risk, 0.0, risk), depth="label", milliseconds=milliseconds)


SAFE, SUSPECT = label(0.05), label(0.3)
ANNOTATED = Verdict(Level.HARMFUL, analysis="Harm.", milliseconds=40.0)


def failure(kind: FailureKind) -> AuditorFailure:
    return AuditorFailure(kind, f"it was {kind.value}")


@dataclass
class Scripted:
    """Answers with what it is given, raises it, or never answers. Each read takes a moment in which it can be
    cancelled, unless ``at_once``."""

    label: Any = SAFE
    annotation: Any = ANNOTATED
    capacity: int = 1000
    at_once: bool = False
    asked: list[Depth] = field(default_factory=list)

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        assert trace is TRACE
        self.asked.append(depth)
        answer = self.label if depth is Depth.LABEL else self.annotation
        if answer is FOREVER:
            await anyio.sleep_forever()
        if not self.at_once:
            await anyio.lowlevel.checkpoint()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        pass


def judged(session: Scripted, plan: AuditPlan, since: float | None = None) -> Verdict:
    """``since`` is in seconds from now."""

    async def run() -> Verdict:
        return await plan.judge(session, TRACE, None if since is None else anyio.current_time() + since)

    return anyio.run(run)


def failed(session: Scripted, plan: AuditPlan, since: float | None = None) -> AuditorFailure:
    with pytest.raises(AuditorFailure) as caught:
        judged(session, plan, since)
    return caught.value


CASCADE = AuditPlan("cascade", LONG, escalate_at=0.1)


def test_a_cascade_reads_the_label_alone_where_there_is_no_suspicion():
    session = Scripted(SAFE)
    assert judged(session, CASCADE) == SAFE
    assert session.asked == [Depth.LABEL]


def test_on_suspicion_the_annotation_decides_whichever_way():
    for annotation in (ANNOTATED, Verdict(Level.SAFE, analysis="Fine.", milliseconds=40.0)):
        session = Scripted(SUSPECT, annotation)
        found = judged(session, CASCADE)
        assert (found.level, found.analysis, found.depth) == (annotation.level, annotation.analysis, "annotate")
        assert (found.escalated, found.milliseconds) == (True, 42.0)
        assert session.asked == [Depth.LABEL, Depth.ANNOTATE]


def test_the_risk_that_escalates_is_included():
    assert judged(Scripted(label(0.25)), AuditPlan("cascade", LONG, escalate_at=0.25)).escalated


def test_an_unsure_label_read_escalates():
    found = judged(Scripted(failure(FailureKind.UNSURE)), CASCADE)
    assert (found.level, found.depth, found.escalated) == (Level.HARMFUL, "annotate", True)


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - {FailureKind.UNSURE}))
def test_any_other_failure_of_the_label_read_is_the_audits(kind):
    session = Scripted(failure(kind))
    assert failed(session, CASCADE).kind is kind
    assert session.asked == [Depth.LABEL]


def test_where_the_annotation_cant_be_read_the_label_decides():
    found = judged(Scripted(SUSPECT, failure(FailureKind.UNREADABLE)), CASCADE)
    assert (found.probabilities, found.depth, found.escalated) == (SUSPECT.probabilities, "label", True)


def test_where_the_annotations_time_expires_the_label_decides():
    session = Scripted(SUSPECT, FOREVER, at_once=True)
    found = judged(session, AuditPlan("cascade", 20, escalate_at=0.1))
    assert (found.probabilities, found.depth, found.escalated) == (SUSPECT.probabilities, "label", True)
    assert session.asked == [Depth.LABEL, Depth.ANNOTATE]


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - {FailureKind.UNREADABLE}))
def test_any_other_failure_of_the_annotation_is_the_audits(kind):
    """A timeout inside the auditor, such as that of its connection, is one of them."""
    assert failed(Scripted(SUSPECT, failure(kind)), CASCADE).kind is kind


def test_without_a_label_verdict_a_lost_annotation_is_a_failure():
    unsure = failure(FailureKind.UNSURE)
    assert failed(Scripted(unsure, failure(FailureKind.UNREADABLE)), CASCADE).kind is FailureKind.UNREADABLE
    late = failed(Scripted(unsure, FOREVER, at_once=True), AuditPlan("cascade", 20))
    assert isinstance(late, OutOfTime)


def test_what_the_auditor_raises_by_accident_isnt_swallowed():
    for session in (Scripted(ZeroDivisionError()), Scripted(SUSPECT, ZeroDivisionError())):
        with pytest.raises(ZeroDivisionError):
            judged(session, CASCADE)


@pytest.mark.parametrize("depth", ["label", "annotate", "cascade"])
def test_the_clock_started_when_the_audit_was_sent(depth):
    late = failed(Scripted(SUSPECT), AuditPlan(depth, 500), since=-1)
    assert (late.kind, str(late)) == (FailureKind.TIMEOUT, "no answer within 500 ms")


def test_an_annotation_may_have_longer():
    assert judged(Scripted(), AuditPlan("annotate", 500, LONG), since=-1) == ANNOTATED


def test_in_a_cascade_the_label_read_doesnt_have_longer():
    assert failed(Scripted(SUSPECT), AuditPlan("cascade", 500, LONG), since=-1).kind is FailureKind.TIMEOUT
    found = judged(Scripted(SUSPECT, at_once=True), AuditPlan("cascade", 500, LONG), since=-1)
    assert (found.level, found.depth) == (Level.HARMFUL, "annotate")


def test_depth_label_and_depth_annotate_read_once():
    session = Scripted(SUSPECT)
    assert judged(session, AuditPlan("label", LONG)) == SUSPECT
    assert judged(session, AuditPlan("annotate", LONG)) == ANNOTATED
    assert session.asked == [Depth.LABEL, Depth.ANNOTATE]
    assert failed(Scripted(failure(FailureKind.UNSURE)), AuditPlan("label", LONG)).kind is FailureKind.UNSURE


def test_an_annotation_that_cant_be_read_falls_back_to_the_label_read():
    session = Scripted(SUSPECT, failure(FailureKind.UNREADABLE))
    assert judged(session, AuditPlan("annotate", LONG)) == SUSPECT
    assert session.asked == [Depth.ANNOTATE, Depth.LABEL]


@pytest.mark.parametrize(
    "second", [failure(FailureKind.UNSURE), failure(FailureKind.UNREACHABLE), ValueError(), FOREVER]
)
def test_if_that_fails_too_the_first_failure_stands(second):
    unreadable = failure(FailureKind.UNREADABLE)
    session = Scripted(second, unreadable, at_once=True)
    assert failed(session, AuditPlan("annotate", 20)) is unreadable
    assert session.asked == [Depth.ANNOTATE, Depth.LABEL]


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - {FailureKind.UNREADABLE}))
def test_other_failures_have_nothing_to_fall_back_to(kind):
    session = Scripted(SAFE, failure(kind))
    assert failed(session, AuditPlan("annotate", LONG)).kind is kind
    assert session.asked == [Depth.ANNOTATE]


def test_cancelling_an_audit_ends_it():
    session = Scripted(SUSPECT, FOREVER)

    async def run() -> bool:
        with anyio.move_on_after(0.02) as scope:
            await CASCADE.judge(session, TRACE)
        return scope.cancelled_caught

    assert anyio.run(run)
    assert session.asked == [Depth.LABEL, Depth.ANNOTATE]


@pytest.mark.parametrize(
    ("depth", "reads"),
    [("label", [Depth.LABEL]), ("annotate", [Depth.ANNOTATE]), ("cascade", [Depth.LABEL, Depth.ANNOTATE])],
)
def test_trying_out_makes_each_read_that_may_be_needed(depth, reads):
    session = Scripted(SAFE)

    async def run() -> None:
        await AuditPlan(depth, LONG).try_out(session, TRACE, anyio.current_time())

    anyio.run(run)
    assert session.asked == reads


@pytest.mark.parametrize(
    "broken", [Scripted(failure(FailureKind.UNSURE)), Scripted(SAFE, failure(FailureKind.UNREADABLE))]
)
def test_trying_out_tells_even_what_an_audit_could_do_without(broken):
    async def run() -> None:
        await CASCADE.try_out(broken, TRACE, anyio.current_time())

    with pytest.raises(AuditorFailure, match="it was un"):
        anyio.run(run)


def test_within_lets_errors_and_results_through():
    async def run() -> None:
        with within(LONG, anyio.current_time()):
            raise TimeoutError("another's")

    with pytest.raises(TimeoutError, match="another's"):
        anyio.run(run)


@given(st.floats(0, 1), st.floats(0.001, 1))
def test_what_isnt_annotated_is_below_escalate_at(risk, escalate_at):
    session = Scripted(label(risk))
    found = judged(session, AuditPlan("cascade", LONG, escalate_at=escalate_at))
    assert (found.depth == "label") == (label(risk).risk < escalate_at)
    assert found.escalated == (found.depth == "annotate")
