"""One audit by the configured depth: which reads it takes, how long they may take, and which of them decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import anyio

from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind, Session
from guardtrace_proxy.policy.levels import Verdict

ESCALATE_AT = 0.1
"""Where neither the settings nor the checkpoint's calibration say."""


class OutOfTime(AuditorFailure):
    """The audit's own time has expired; a timeout inside the auditor is another failure."""

    def __init__(self, milliseconds: int) -> None:
        super().__init__(FailureKind.TIMEOUT, f"no answer within {milliseconds} ms")


@contextmanager
def within(milliseconds: int, since: float) -> Iterator[None]:
    """Bounds a part of an audit that was sent at ``since``, on anyio's clock.

    Raises:
        OutOfTime: the part wasn't done in time.
    """
    with anyio.CancelScope(deadline=since + milliseconds / 1000) as scope:
        yield
    if scope.cancelled_caught:
        raise OutOfTime(milliseconds)


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """How each audit is made.

    An audit may take ``timeout_ms``, or ``annotate_timeout_ms`` where it comes to an annotation, both from when it is
    sent. A cascade annotates where the label risk P(0.5) + P(1) is ``escalate_at`` or more, or can't be read.
    """

    depth: Literal["label", "annotate", "cascade"]
    timeout_ms: int
    annotate_timeout_ms: int | None = None
    escalate_at: float = ESCALATE_AT

    async def judge(self, session: Session, trace: Trace, since: float | None = None) -> Verdict:
        """Audit once. ``since`` is when the audit was sent, on anyio's clock: now, if it isn't given.

        Raises:
            AuditorFailure: there is no verdict.
        """
        audit = _Audit(self, session, trace, anyio.current_time() if since is None else since)
        if self.depth == "label":
            return await audit.label()
        if self.depth == "annotate":
            return await audit.annotation_or_label()
        return await audit.cascade()

    async def try_out(self, session: Session, trace: Trace, since: float) -> None:
        """Make each kind of read that audits may need once.

        Raises:
            AuditorFailure: one of them failed, whether or not an audit could do without it.
        """
        audit = _Audit(self, session, trace, since)
        if self.depth != "annotate":
            await audit.label()
        if self.depth != "label":
            await audit.annotation()


@dataclass(frozen=True, slots=True)
class _Audit:
    plan: AuditPlan
    session: Session
    trace: Trace
    since: float

    async def label(self) -> Verdict:
        return await self._ask(Depth.LABEL, self.plan.timeout_ms)

    async def annotation(self) -> Verdict:
        return await self._ask(Depth.ANNOTATE, self._annotated_ms)

    async def annotation_or_label(self) -> Verdict:
        """An annotation that can't be read falls back to the label read, in the time that is left."""
        try:
            return await self.annotation()
        except AuditorFailure as failure:
            if failure.kind is not FailureKind.UNREADABLE:
                raise
            unreadable = failure
        try:
            return await self._ask(Depth.LABEL, self._annotated_ms)
        except Exception:  # whatever this second try raises, that the first one failed is what happened
            raise unreadable from None

    async def cascade(self) -> Verdict:
        label = await self._label_if_sure()
        if label is not None and label.risk < self.plan.escalate_at:
            return label
        try:
            annotation = await self.annotation()
        except AuditorFailure as failure:
            lost = isinstance(failure, OutOfTime) or failure.kind is FailureKind.UNREADABLE
            if label is None or not lost:
                raise
            return replace(label, escalated=True)
        spent = 0.0 if label is None else label.milliseconds
        return replace(annotation, escalated=True, milliseconds=spent + annotation.milliseconds)

    async def _label_if_sure(self) -> Verdict | None:
        try:
            return await self.label()
        except AuditorFailure as failure:
            if failure.kind is not FailureKind.UNSURE:
                raise
            return None

    @property
    def _annotated_ms(self) -> int:
        return self.plan.annotate_timeout_ms or self.plan.timeout_ms

    async def _ask(self, depth: Depth, milliseconds: int) -> Verdict:
        with within(milliseconds, self.since):
            return await self.session.judge(self.trace, depth)
