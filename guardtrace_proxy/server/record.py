"""What is remembered of one reply, for its log line and its headers. No user text."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from guardtrace_proxy.gate import Decided, StreamGate
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.server.asgi_io import Headers

log = structlog.get_logger("guardtrace")

SEVERITY = [Action.PASS, Action.FLAG, Action.REDACT, Action.CUT]


class ReplyRecord:
    """Collects the decisions of one reply."""

    def __init__(
        self,
        tenant: str,
        policy_name: str,
        policy: Policy,
        auditor: str,
        stream: bool,
        request_id: str,
        observer: Callable[[Decided], None] | None = None,
    ) -> None:
        self._began = time.monotonic()
        self._policy_name = policy_name
        self._expose = policy.expose.headers
        self._auditor = auditor
        self._log = log.bind(tenant=tenant, policy=policy_name, stream=stream, request_id=request_id)
        self._observer = observer
        self._audits = 0
        self._escalated = 0
        self._failures = 0
        self._tokens = 0
        self._action = Action.PASS
        self._level = 0.0

    def add(self, decided: Decided) -> None:
        """Take note of one audit's outcome."""
        if self._observer is not None:
            self._observer(decided)
        self._audits += 1
        self._tokens += decided.tokens
        decision, verdict = decided.decision, decided.verdict
        if decided.failure is not None:
            self._failures += 1
        if decision is not None and decided.enforced:
            self._action = max(self._action, decision.action, key=SEVERITY.index)
        if verdict is not None:
            self._level = max(self._level, verdict.level.value)
            self._escalated += verdict.escalated
        self._log.debug(
            "audit",
            choice=decided.choice,
            phase=decided.phase.value,
            tokens=decided.tokens,
            position=decided.position,
            verdict=None if verdict is None else verdict.level.value,
            risk=None if verdict is None else round(verdict.risk, 4),
            depth=None if verdict is None else verdict.depth,
            auditor=None if verdict is None else verdict.auditor or self._auditor,
            escalated=None if verdict is None else verdict.escalated,
            action=None if decision is None else decision.action.value,
            enforced=decided.enforced,
            failure=decided.failure,
            audit_ms=None if verdict is None else round(verdict.milliseconds, 1),
            held_ms=round(decided.held_ms, 1),
        )

    def headers(self, *, final: bool = False) -> Headers:
        """The ``x-guardtrace-*`` headers; the outcome is among them where it is known before the headers leave."""
        if not self._expose:
            return []
        headers = [
            (b"x-guardtrace-policy", self._policy_name.encode("latin-1", "replace")),
            (b"x-guardtrace-auditor", self._auditor.encode("latin-1", "replace")),
        ]
        if final:
            headers.append((b"x-guardtrace-action", self._action.value.encode()))
            if self._failures:
                headers.append((b"x-guardtrace-failed-audits", str(self._failures).encode()))
        return headers

    def close(self, gate: StreamGate) -> None:
        """Log the reply."""
        self._log.info(
            "reply",
            action=self._action.value,
            verdict=self._level,
            audits=self._audits,
            escalated=self._escalated,
            failed_audits=self._failures,
            tokens=self._tokens,
            finished=gate.finished,
            milliseconds=round((time.monotonic() - self._began) * 1000),
        )
