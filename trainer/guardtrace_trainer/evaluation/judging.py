"""All items before one judge: concurrently, each once, and safe to interrupt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from guardtrace_proxy.auditor.protocol import FailureKind
from guardtrace_trainer.endpoints import EndpointFailure
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.protocol import Guard, UnreadableVerdict
from guardtrace_trainer.evaluation.judged import GO_ON, GUARD, EvaluationStopped, Judge, Judged, Outcome
from guardtrace_trainer.steps import Journal

HOPELESS = 8
"""So many items without any verdict, from the first on, and nothing is judged any further."""


class GuardJudge:
    """A guard other than ours."""

    def __init__(self, guard: Guard, *, replies: bool = False) -> None:
        self._guard = guard
        self._replies = replies

    async def outcomes(self, item: Item) -> dict[str, Outcome]:
        began = time.perf_counter()
        try:
            verdict = await self._guard.judge(item)
        except UnreadableVerdict as error:
            return {GUARD: Outcome(failure=FailureKind.UNREADABLE.value, why=str(error))}
        except EndpointFailure as failure:
            if failure.concerns_question:
                return {GUARD: Outcome(failure=FailureKind.REFUSED.value, why=str(failure))}
            raise EvaluationStopped(f"{failure}. {GO_ON}") from failure
        outcome = Outcome(
            level=None if verdict.level is None else verdict.level.value,
            unsafe=verdict.unsafe,
            scores=dict(verdict.scores),
            milliseconds=round((time.perf_counter() - began) * 1000, 2),
            said=verdict.raw if self._replies else None,
        )
        return {GUARD: outcome}


async def judge_all(
    items: Sequence[Item],
    judge: Judge,
    *,
    concurrency: int = 1,
    journal: Journal[Judged] | None = None,
    may_be_mute: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> list[Judged]:
    """Judge all items, in any order; returned in theirs. What stands in the journal isn't asked again.

    Raises:
        EvaluationStopped: the judge can't go on, or, unless it ``may_be_mute``, gives no verdict on anything; the
            journal has what was judged.
    """
    known = {} if journal is None else dict(journal.rows)
    waiting = iter([item for item in items if item.key not in known])
    kept = _Kept(known, journal, may_be_mute)
    stopped: list[EvaluationStopped] = []

    async def work() -> None:
        for item in waiting:
            try:
                kept.add(_judged(item, await judge.outcomes(item)))
            except EvaluationStopped as reason:
                stopped.append(reason)
            if stopped:
                return
            progress(len(known), len(items))

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(work)
    if not stopped and kept.is_hopeless:
        stopped.append(kept.stop())
    if stopped:
        raise stopped[0]
    return [known[item.key] for item in items]


class _Kept:
    """Keeps rows. Failures at the very beginning wait for a first verdict before they reach the journal: they may be
    the set-up's, and would be kept for good."""

    def __init__(self, known: dict[str, Judged], journal: Journal[Judged] | None, may_be_mute: bool) -> None:
        self._known = known
        self._journal = journal
        self._waiting: list[Judged] = []
        self._any = bool(known) or may_be_mute

    @property
    def is_hopeless(self) -> bool:
        return bool(self._waiting)

    def add(self, row: Judged) -> None:
        """Raises EvaluationStopped where there was never a verdict."""
        self._any |= any(outcome.failure is None for outcome in row.outcomes.values())
        self._known[row.id] = row
        self._waiting.append(row)
        if not self._any:
            if len(self._waiting) >= HOPELESS:
                raise self.stop()
            return
        for kept in self._waiting if self._journal is not None else ():
            self._journal.add(kept)  # type: ignore[union-attr]
        self._waiting = []

    def stop(self) -> EvaluationStopped:
        outcome = next(iter(self._waiting[-1].outcomes.values()))
        reason = f"{outcome.failure}: {outcome.why}" if outcome.why else outcome.failure
        return EvaluationStopped(f"no verdict on any of {len(self._waiting)} items; the last one's failure: {reason}")


def _judged(item: Item, outcomes: Mapping[str, Outcome]) -> Judged:
    return Judged(
        id=item.key,
        subset=item.subset,
        kind=item.kind,
        category=item.category,
        level=item.level,
        outcomes=dict(outcomes),
        group=item.group,
    )
