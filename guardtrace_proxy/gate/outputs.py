"""What the gate tells its driver to do."""

from __future__ import annotations

from dataclasses import dataclass

from guardtrace_proxy.policy.decision import Decision
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.wire.events import Phase


@dataclass(frozen=True, slots=True)
class Release:
    """Send these bytes to the client, in one write."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """The reply wasn't streamed and the policy's ``cut_shape`` is ``error``: answer with this body, HTTP 400, or 503
    where it is ``unjudged``."""

    body: bytes
    unjudged: bool


@dataclass(frozen=True, slots=True)
class StartAudit:
    """Ask the auditor about this partial trace, and report with ``judged`` or ``audit_failed`` under ``id``.

    ``judged_thinking`` and ``judged_answer`` count the leading characters that earlier verdicts cover.
    ``tokens`` are the new ones, ``held_ms`` says how long the oldest of them has waited.
    """

    id: int
    choice: int
    phase: Phase
    thinking: str
    answer: str
    judged_thinking: int
    judged_answer: int
    tokens: int
    held_ms: float


@dataclass(frozen=True, slots=True)
class Decided:
    """For records and telemetry: what an audit came to. It carries no user text but ``verdict.analysis``.

    ``position`` counts the choice's tokens up to the end of the judged text. ``enforced`` is False in monitor mode.
    ``verdict`` is None where the auditor failed, and ``failure`` says how.
    """

    choice: int
    phase: Phase
    decision: Decision | None
    verdict: Verdict | None
    failure: str | None
    enforced: bool
    tokens: int
    position: int
    held_ms: float


Output = Release | Reject | StartAudit | Decided
