"""Auditors that the proxy can run, asked as the proxy asks them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import anyio

from guardtrace_proxy.auditor.cascade import ESCALATE_AT, AuditPlan, within
from guardtrace_proxy.auditor.guard_server import Misconfigured
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, Depth, DoesNotFit, FailureKind, Session
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.judged import GO_ON, EvaluationStopped, Outcome

DEPTHS = ("annotate", "label", "cascade")
RETRIED = frozenset({FailureKind.UNREACHABLE, FailureKind.OVERLOADED, FailureKind.TIMEOUT})
"""Asked again; the others would fail alike."""
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 1.0
DOES_NOT_FIT = "does_not_fit"
NO_TIMEOUT_MS = 86_400_000
"""A plan's own bound, where each read has one already."""


class AuditorJudge:
    """An auditor that was started, at some of :data:`DEPTHS`, by the proxy's own plan of an audit.

    The depths share their reads: nothing is asked twice. ``escalate_at`` is the auditor's own where it isn't given.
    """

    def __init__(
        self,
        auditor: Auditor,
        depths: Sequence[str],
        *,
        escalate_at: float | None = None,
        timeout_ms: int = 120_000,
        analyses: bool = False,
    ) -> None:
        own = ESCALATE_AT if auditor.escalate_at is None else auditor.escalate_at
        self.escalate_at = own if escalate_at is None else escalate_at
        self._auditor = auditor
        self._analyses = analyses
        self._timeout_ms = timeout_ms
        self._plans: dict[str, AuditPlan] = {
            depth: AuditPlan(depth, NO_TIMEOUT_MS, escalate_at=self.escalate_at)  # type: ignore[arg-type]
            for depth in depths
        }

    async def outcomes(self, item: Item) -> dict[str, Outcome]:
        try:
            session = await self._auditor.open(item.query)
        except DoesNotFit:
            return dict.fromkeys(self._plans, Outcome(failure=DOES_NOT_FIT))
        except AuditorFailure as failure:
            return dict.fromkeys(self._plans, _failed(of_this_item(failure)))
        try:
            reads = Reads(session, self._timeout_ms)
            return {depth: await self._outcome(plan, reads, item) for depth, plan in self._plans.items()}
        finally:
            await session.aclose()

    async def _outcome(self, plan: AuditPlan, reads: Reads, item: Item) -> Outcome:
        try:
            return self._of([await plan.judge(reads, Trace(item.thinking, item.answer))])
        except AuditorFailure as failure:
            if failure.kind is not FailureKind.OUTGROWN:
                return _failed(failure)
        try:
            pieces = pieces_of(item.thinking, item.answer, reads.capacity)
            return self._of([await plan.judge(reads, piece) for piece in pieces])
        except AuditorFailure as failure:
            return _failed(failure)

    def _of(self, verdicts: Sequence[Verdict]) -> Outcome:
        """The most severe of a trace's verdicts, as a gate would have acted on it."""
        worst = max(verdicts, key=lambda verdict: (verdict.level.value, verdict.risk))
        shares = worst.probabilities
        return Outcome(
            level=worst.level.value,
            probabilities=None if shares is None else (shares.safe, shares.potentially_harmful, shares.harmful),
            depth=worst.depth,
            escalated=any(verdict.escalated for verdict in verdicts),
            pieces=len(verdicts),
            milliseconds=round(sum(verdict.milliseconds for verdict in verdicts), 2),
            said=worst.analysis if self._analyses else None,
        )


def _failed(failure: AuditorFailure) -> Outcome:
    return Outcome(failure=failure.kind.value, why=str(failure))


class Reads:
    """A session that remembers: a second plan that asks for a read gets the first one's verdict, or its failure."""

    def __init__(self, session: Session, timeout_ms: int) -> None:
        self.capacity = session.capacity
        self._session = session
        self._timeout_ms = timeout_ms
        self._known: dict[tuple[Trace, Depth], Verdict | AuditorFailure] = {}

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        key = (trace, depth)
        if key not in self._known:
            self._known[key] = await self._ask(trace, depth)
        known = self._known[key]
        if isinstance(known, AuditorFailure):
            raise known
        return known

    async def aclose(self) -> None:
        """Whoever opened the session closes it."""

    async def _ask(self, trace: Trace, depth: Depth) -> Verdict | AuditorFailure:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with within(self._timeout_ms, anyio.current_time()):
                    return await self._session.judge(trace, depth)
            except AuditorFailure as failure:
                last = failure
            if last.kind not in RETRIED:
                break
            if attempt < ATTEMPTS:
                await anyio.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        return of_this_item(last)


def of_this_item(failure: AuditorFailure) -> AuditorFailure:
    """The failure itself; raises EvaluationStopped where all that follow would fail alike."""
    if failure.kind is FailureKind.UNREACHABLE or isinstance(failure, Misconfigured):
        raise EvaluationStopped(f"{failure}. {GO_ON}") from failure
    return failure


def pieces_of(thinking: str, answer: str, capacity: int) -> Iterator[Trace]:
    """A trace that is longer than one audit takes, as it grows by at most ``capacity`` UTF-8 bytes an audit."""
    judged_thinking = 0
    for end in _ends(thinking, capacity):
        yield Trace(thinking[:end], "", judged_thinking)
        judged_thinking = end
    judged_answer = 0
    for end in _ends(answer, capacity):
        yield Trace(thinking, answer[:end], judged_thinking, judged_answer)
        judged_answer = end


def _ends(text: str, capacity: int) -> Iterator[int]:
    size = 0
    for index, character in enumerate(text):
        size += len(character.encode("utf-8", "surrogatepass"))
        if size > capacity and index:
            yield index
            size = len(character.encode("utf-8", "surrogatepass"))
    if text:
        yield len(text)
