"""What becomes of one reply, told to the log, the audit log and the headers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

import structlog

from guardtrace_proxy.gate import Decided, End, StartAudit, StreamGate
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.records.lines import encoded
from guardtrace_proxy.server.about import About, shown_name
from guardtrace_proxy.server.asgi_io import Headers
from guardtrace_proxy.server.audit_line import audit_line
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.limits import Use
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.span_attributes import of_audit, of_usage
from guardtrace_proxy.telemetry.tracing import RequestTrace

log = structlog.get_logger("guardtrace")

LEFT = "left"
"""In place of an ``End``: the reply wasn't said to its end, or its client didn't take it."""


class Reason(str, Enum):
    """Why the most severe action was carried out. The values are what metrics, logs and traces carry."""

    NONE = "none"
    """Nothing beyond pass was done."""
    AUDITOR_FAILURE = "auditor_failure"
    """With pass: text left unaudited, since the policy says so."""
    VERDICT = "verdict"
    """Where a failure led to the same action, a verdict counts."""


class ReplyRecord:
    """Collects the decisions of one reply, and tells of each as it is made."""

    def __init__(
        self,
        about: About,
        policy: Policy,
        gate: StreamGate,
        service: Service,
        trace: RequestTrace,
        use: Use,
    ) -> None:
        """``use`` is told how many tokens have come."""
        self._began = time.monotonic()
        self._about = about
        self._gate = gate
        self._expose = policy.expose.headers
        self._metrics = service.metrics
        self._trace = trace
        self._use = use
        self._audit_log = service.audit_log
        self._evidence = service.config.audit_log.evidence
        self._observer = service.observer
        self._log = log.bind(
            tenant=about.tenant, key=about.key, policy=about.policy, stream=about.stream, request_id=about.request_id
        )
        self._under_way: dict[int, tuple[StartAudit, float]] = {}
        """By choice, which has one at most: what was asked, and when."""
        self._audits = 0
        self._escalated = 0
        self._failures = 0
        self._tokens = 0
        self._action = Action.PASS
        self._reason = Reason.NONE
        self._level: float | None = None
        self._came = self._left = False
        self._is_taken = self._is_refused = False

    def moved(self) -> None:
        """Something of a stream has come or left: the first text is timed on either side."""
        if not self._came and self._gate.tokens_read:
            self._came = True
            self._metrics.first_text_came(self._about.upstream, time.monotonic() - self._began)
        if not self._left and self._gate.has_released:
            self._left = True
            self._metrics.first_text_left(self._about.upstream, time.monotonic() - self._began)

    def taken(self) -> None:
        """Its client has taken the last of it."""
        self._is_taken = True

    def count_tokens(self) -> None:
        """Take what has come until now of the tenant's tokens."""
        self._use.reply(self._gate.tokens_read)

    def asked(self, asked: StartAudit) -> None:
        """An audit begins."""
        self._under_way[asked.choice] = asked, time.monotonic()
        self._metrics.audit_began()
        self._trace.audit_began(asked.choice)

    def decided(self, decided: Decided) -> None:
        """Take note of one audit's outcome."""
        self.count_tokens()
        if self._observer is not None:
            self._observer(decided)
        self._audits += 1
        self._tokens += decided.tokens
        decision, verdict = decided.decision, decided.verdict
        if decided.failure is not None:
            self._failures += 1
        if decision is not None and decided.enforced:
            self._acted(decision.action, Reason.AUDITOR_FAILURE if verdict is None else Reason.VERDICT)
        if verdict is not None:
            self._level = max(self._level or 0.0, verdict.level.value)
            self._escalated += verdict.escalated
        asked, sent = self._under_way.pop(decided.choice)
        seconds = time.monotonic() - sent
        self._count(decided, seconds)
        self._trace.audit_ended(decided.choice, of_audit(self._about, decided), decided.failure)
        if self._audit_log is not None:
            line = audit_line(self._about, self._audits, asked, decided, seconds * 1000, self._evidence)
            self._audit_log.record(encoded(line))
        self._log_audit(decided)

    def _acted(self, action: Action, reason: Reason) -> None:
        before = self._action.severity, self._reason is Reason.VERDICT
        if action is not Action.PASS and (action.severity, reason is Reason.VERDICT) > before:
            self._action, self._reason = action, reason

    def _count(self, decided: Decided, seconds: float) -> None:
        verdict, decision = decided.verdict, decided.decision
        tenant, phase, held = self._about.tenant, decided.phase.value, decided.held_ms / 1000
        if verdict is None:
            self._metrics.failed(
                tenant=tenant,
                phase=phase,
                kind=str(decided.failure),
                tokens=decided.tokens,
                audit_seconds=seconds,
                hold_seconds=held,
            )
            return
        level = None if decision is None else decision.level
        self._metrics.judged(
            tenant=tenant,
            phase=phase,
            depth=verdict.depth,
            level=(verdict.level if level is None else level).label,
            action="wait" if decision is None else decision.action.value,
            enforced=decided.enforced,
            escalated=verdict.escalated,
            tokens=decided.tokens,
            audit_seconds=seconds,
            hold_seconds=held,
        )

    def _log_audit(self, decided: Decided) -> None:
        decision, verdict = decided.decision, decided.verdict
        self._log.debug(
            "audit",
            choice=decided.choice,
            phase=decided.phase.value,
            tokens=decided.tokens,
            position=decided.position,
            verdict=None if verdict is None else verdict.level.value,
            risk=None if verdict is None else round(verdict.risk, 4),
            depth=None if verdict is None else verdict.depth,
            auditor=None if verdict is None else verdict.auditor or self._about.auditor,
            escalated=None if verdict is None else verdict.escalated,
            action=None if decision is None else decision.action.value,
            enforced=decided.enforced,
            failure=decided.failure,
            auditor_ms=None if verdict is None else round(verdict.milliseconds, 1),
            held_ms=round(decided.held_ms, 1),
        )

    def headers(self, *, final: bool = False) -> Headers:
        """The ``x-guardtrace-*`` headers; the outcome is among them where it is known before the headers leave."""
        if not self._expose:
            return []
        headers = [
            (b"x-guardtrace-policy", self._about.policy.encode("latin-1", "replace")),
            (b"x-guardtrace-auditor", shown_name(self._about.auditor).encode("latin-1", "replace")),
        ]
        if final:
            headers.append((b"x-guardtrace-action", self._action.value.encode()))
            if self._failures:
                headers.append((b"x-guardtrace-failed-audits", str(self._failures).encode()))
        return headers

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stands around the reply; at its end it is logged and counted."""
        self._metrics.reply_began()
        try:
            yield
        except ApiError:
            self._is_refused = True
            raise
        finally:
            self._close()

    @property
    def _end(self) -> str:
        if self._is_refused:  # an error takes the place of a reply that broke off before anything of it has left
            return End.BROKEN_OFF.value
        ended = self._gate.ended
        return LEFT if ended is None or not self._is_taken else ended.value

    @property
    def _why(self) -> Reason:
        is_unaudited = any(choice.unaudited for choice in self._gate.choices)
        return Reason.AUDITOR_FAILURE if self._action is Action.PASS and is_unaudited else self._reason

    def _close(self) -> None:
        self.count_tokens()
        about, gate = self._about, self._gate
        action, reason, end = self._action.value, self._why.value, self._end
        self._metrics.audits_dropped(len(self._under_way))
        self._trace.audits_dropped()
        self._trace.describe({"guardtrace.action": action, "guardtrace.reason": reason, "guardtrace.end": end})
        self._trace.generated(of_usage(gate.usage))
        self._metrics.reply_ended(tenant=about.tenant, route=about.route, action=action, reason=reason, end=end)
        self._log.info(
            "reply",
            action=action,
            reason=reason,
            verdict=self._level,
            audits=self._audits,
            escalated=self._escalated,
            failed_audits=self._failures,
            tokens=self._tokens,
            end=end,
            milliseconds=round((time.monotonic() - self._began) * 1000),
        )
