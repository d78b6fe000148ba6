"""A reply through the real reader and gate on a clock that is only counted: what leaves and what is asked, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardtrace_proxy.gate import Decided, Reject, Release, StartAudit, StreamGate
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.tags import ThinkingStyle

AUDIT_MS = 30
END_MS = 60_000
Judge = Callable[[str, int], Verdict | None]
"""From the trace, thinking and answer, and the time to a verdict; None is a failure."""

SAFE = Verdict(Level.SAFE, Probabilities(0.98, 0.01, 0.01))
HINT = Verdict(Level.POTENTIALLY_HARMFUL, Probabilities(0.1, 0.8, 0.1))
HARM = Verdict(Level.HARMFUL, Probabilities(0.02, 0.08, 0.9))


def by_word(trace: str, now: int) -> Verdict:
    return HARM if "HARM" in trace else HINT if "HINT" in trace else SAFE


@dataclass
class Seen:
    """``sent`` and ``audits`` are what can be seen from outside, ``acts`` what was decided, recorded decisions included."""

    sent: list[tuple[int, str]] = field(default_factory=list)
    audits: list[tuple[int, str, str]] = field(default_factory=list)
    acts: list[tuple[int, str]] = field(default_factory=list)
    rejected: str = ""
    left_upstream: int | None = None

    @property
    def outside(self) -> tuple[object, ...]:
        return self.sent, self.audits, self.rejected, self.left_upstream

    @property
    def text(self) -> str:
        return "".join(data for _, data in self.sent)


def walk(policy: Policy, frames: Sequence[tuple[int, bytes]], judge: Judge = by_word, *, whole: bool = False) -> Seen:
    """Drive a reply to its end; ``frames`` are its bytes with the milliseconds at which they come."""
    return _Walk(policy, judge).run(frames, whole)


class _Walk:
    def __init__(self, policy: Policy, judge: Judge) -> None:
        self.dialect = ChatStream(ThinkingStyle(), include_usage=True, max_event_bytes=1 << 20, model="m")
        self.gate = StreamGate(policy, self.dialect, capacity=4096, max_stream_bytes=1 << 20)
        self.judge = judge
        self.seen = Seen()
        self.now = 0
        self.asked: list[tuple[int, StartAudit]] = []

    def run(self, frames: Sequence[tuple[int, bytes]], whole: bool) -> Seen:
        coming: list[tuple[int, bytes | None]] = [*frames, (frames[-1][0], None)]
        while not self.gate.finished and self.now < END_MS:
            audit_at = self.asked[0][0] if self.asked else END_MS
            frame_at = coming[0][0] if coming else END_MS
            deadline = self.gate.deadline
            tick_at = END_MS if deadline is None else max(self.now, math.ceil(deadline * 1000 + 1e-6))
            self.now = min(audit_at, frame_at, tick_at)
            if self.now == frame_at and coming:
                self._feed(coming.pop(0)[1], whole)
            elif self.now == audit_at and self.asked:
                self._answer(self.asked.pop(0)[1])
            else:
                self.gate.tick(self.now / 1000)
            self._carry_out()
        return self.seen

    def _feed(self, data: bytes | None, whole: bool) -> None:
        if data is None:
            events = self.dialect.end()
        else:
            events = [self.dialect.completion(data)] if whole else self.dialect.feed(data)
        for event in events:
            self.gate.receive(event, self.now / 1000)
        if data is None:
            self.gate.end(self.now / 1000)

    def _answer(self, asked: StartAudit) -> None:
        verdict = self.judge(f"{asked.thinking}|{asked.answer}", self.now)
        if verdict is None:
            self.gate.audit_failed(asked.id, "timeout", self.now / 1000)
        else:
            self.gate.judged(asked.id, verdict, self.now / 1000)

    def _carry_out(self) -> None:
        for output in self.gate.take():
            if isinstance(output, Release):
                self.seen.sent.append((self.now, output.data.decode()))
            elif isinstance(output, Reject):
                self.seen.rejected = output.body.decode()
            elif isinstance(output, StartAudit):
                self.asked.append((self.now + AUDIT_MS, output))
                self.seen.audits.append((self.now, output.thinking, output.answer))
            elif isinstance(output, Decided):
                self.seen.acts.append((self.now, _short(output)))
        if not self.gate.wants_upstream and self.seen.left_upstream is None:
            self.seen.left_upstream = self.now


def _short(decided: Decided) -> str:
    action: Any = decided.decision and decided.decision.action.value
    return f"{decided.phase.value} {action} {'acted on' if decided.enforced else 'recorded'} {decided.failure or ''}"
