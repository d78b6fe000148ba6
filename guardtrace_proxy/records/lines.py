"""What a line of the audit log holds. docs/audit-log.md has these fields in a table, held to them by a test."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec


class Evidence(msgspec.Struct):
    """What was judged, in words: only where ``audit_log.evidence`` asks for it. ``thinking`` and ``answer`` are what
    this verdict was the first to cover."""

    query: str
    thinking: str
    answer: str
    analysis: str | None


class Probabilities(msgspec.Struct):
    """Of the three levels; together 1."""

    safe: float
    potentially_harmful: float
    harmful: float


class DecisionLine(msgspec.Struct, tag_field="kind", tag="decision"):
    """One audit and what came of it. No user text but in ``evidence``."""

    time: str
    request_id: str
    trace_id: str | None
    tenant: str
    key: str | None
    upstream: str
    route: str
    stream: bool
    images: int
    policy: str
    policy_sha256: str
    auditor: str
    checkpoint: str | None
    version: str
    audit: int
    choice: int
    phase: str
    tokens: int
    position: int
    begins: int
    ends: int
    judgment: float | None
    level: float | None
    probabilities: Probabilities | None
    depth: str | None
    escalated: bool
    action: str | None
    enforced: bool
    failure: str | None
    audit_ms: float
    auditor_ms: float | None
    held_ms: float
    evidence: Evidence | None


class Gap(msgspec.Struct, tag_field="kind", tag="gap"):
    """Lines that were lost before this one, in one process."""

    lost: int
    since: str
    until: str


_encoder = msgspec.json.Encoder()


def encoded(line: DecisionLine | Gap) -> bytes:
    """The line, its newline included."""
    return _encoder.encode(line) + b"\n"


def now() -> str:
    """The time as RFC 3339 has it, in UTC, to the millisecond."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
