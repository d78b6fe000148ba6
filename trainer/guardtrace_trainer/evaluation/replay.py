"""Recorded traces through the real gate and auditor, without sockets: what would a policy have done, and when?

Time is simulated, as the gate has no clock of its own: tokens come at a pace, and an audit takes as long as it took or
as long as it is said to take. A token is counted as the gate does: each frame carries one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from guardtrace_proxy.auditor.cascade import AuditPlan
from guardtrace_proxy.auditor.growing import common_length
from guardtrace_proxy.auditor.prompt import RESPONSE, Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Session
from guardtrace_proxy.gate import Decided, Release, StartAudit, StreamGate
from guardtrace_proxy.policy.decision import Decision
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import Action, Policy, ReasoningField
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_trainer.evaluation.frames import frames_of, token_count

TURN_END_TOKENS = 9
"""Of each prompt behind the trace: the end of the user's turn and the beginning of the auditor's, in Qwen's tokens."""
MAX_STREAM_BYTES = 1 << 24
UNBOUNDED_MS = 3_600_000
TICK = 1e-6
NEVER = float("inf")


class Pace(NamedTuple):
    """How fast things go. Without ``tokens_per_second`` no time passes between tokens, and with ``delay_ms`` 0 every
    audit ends before the next token comes. ``delay_ms`` None: an audit takes as long as it took."""

    tokens_per_second: float | None = None
    delay_ms: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Audited:
    """One audit and what it came to. Times are seconds from the stream's beginning; ``covered`` and ``produced`` count
    the trace's tokens: up to the end of what was judged, and those that had come when the verdict fell. ``prefilled``
    counts what a backend that keeps its prefix had to read."""

    phase: Phase
    asked_at: float
    answered_at: float
    covered: int
    produced: int
    prefilled: int
    decided: Decided

    @property
    def decision(self) -> Decision | None:
        """What was decided; None where it takes another verdict first."""
        return self.decided.decision

    @property
    def acts(self) -> bool:
        """Whether the verdict on the text (not the auditor's failure) asked for an action."""
        return self.decision is not None and self.decision.level is not None and self.decision.action is not Action.PASS


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one stream. Of its ``tokens`` the first ``thinking_tokens`` are thinking.

    ``came`` says when each token came that was read at all, ``left`` when each left as it came (None: it didn't), and
    ``behind`` how many audits had been decided by then.
    """

    thinking_tokens: int
    tokens: int
    came: tuple[float, ...]
    left: tuple[float | None, ...]
    behind: tuple[int | None, ...]
    audits: tuple[Audited, ...]

    @property
    def decisions(self) -> tuple[Decided, ...]:
        """What the gate told, one an audit."""
        return tuple(audit.decided for audit in self.audits)

    @property
    def action(self) -> Action:
        """The most severe action."""
        order = list(Action)
        taken = [audit.decision.action for audit in self.audits if audit.decision]
        return max(taken, key=order.index, default=Action.PASS)

    @property
    def has_acted(self) -> bool:
        """Whether a verdict asked for an action; what was cut because the auditor failed wasn't found."""
        return any(audit.acts for audit in self.audits)

    @property
    def is_stopped(self) -> bool:
        """Whether it was cut or redacted at least once, by a verdict or for want of one."""
        return any(
            audit.decided.enforced
            and audit.decision is not None
            and audit.decision.action in (Action.CUT, Action.REDACT)
            for audit in self.audits
        )

    @property
    def has_failed(self) -> bool:
        """Whether it was cut because the auditor failed."""
        return any(audit.decision is not None and audit.decision.level is None for audit in self.audits)


async def replay(
    session: Session, policy: Policy, plan: AuditPlan, thinking: str, answer: str, pace: Pace = Pace()
) -> Replayed:
    """Play one trace to a session that was opened on its query. The auditor's failures go to the gate, which does as
    the policy says."""
    run = _Run(session, policy, plan, thinking, answer, pace)
    await run.play()
    return run.result()


def plan_for(depth: str, escalate_at: float, policy: Policy | None = None) -> AuditPlan:
    """How audits are made where no client waits: without a bound in time. As the proxy does it, a cascade never
    escalates above the policy's own thresholds."""
    if policy is not None:
        escalate_at = min(escalate_at, policy.thresholds.least)
    if depth == "label":
        return AuditPlan("label", UNBOUNDED_MS)
    if depth == "annotate":
        return AuditPlan("annotate", UNBOUNDED_MS)
    if depth == "cascade":
        return AuditPlan("cascade", UNBOUNDED_MS, escalate_at=escalate_at)
    raise ValueError(f"depth: {depth!r} is none of label, annotate, cascade")


@dataclass
class _Flight:
    """An audit that was asked and is answered at ``due``."""

    asked: StartAudit
    asked_at: float
    due: float
    prefilled: int
    verdict: Verdict | None
    failure: str | None


@dataclass
class _Run:
    session: Session
    policy: Policy
    plan: AuditPlan
    thinking: str
    answer: str
    pace: Pace
    now: float = 0.0
    came: list[float] = field(default_factory=list)
    audits: list[Audited] = field(default_factory=list)

    def __post_init__(self) -> None:
        # a stream whose thinking stands where the policy wants it leaves byte for byte
        moved = self.policy.reasoning_field is ReasoningField.REASONING_CONTENT
        self.frames = frames_of(self.thinking, self.answer, "reasoning_content" if moved else "reasoning")
        self.count = len(self.frames) - 2
        self.numbers = {frame: number for number, frame in enumerate(self.frames[: self.count])}
        self.left: list[float | None] = [None] * self.count
        self.behind: list[int | None] = [None] * self.count
        self.stream = ChatStream(ThinkingStyle("field"), include_usage=False, max_event_bytes=1 << 20)
        self.gate = StreamGate(
            self.policy, self.stream, capacity=self.session.capacity, max_stream_bytes=MAX_STREAM_BYTES
        )
        self.read = 0
        self.flight: _Flight | None = None
        self.answered: _Flight | None = None
        self.shown = ""

    async def play(self) -> None:
        while True:
            for output in self.gate.take():
                if isinstance(output, StartAudit):
                    self.flight = await self.ask(output)
                elif isinstance(output, Decided):
                    self.note_decided(output)
                elif isinstance(output, Release):
                    self.note_left(output.data)
            if self.gate.finished or not self.step():
                return

    def step(self) -> bool:
        """Let the next thing happen; False where nothing can."""
        answered = NEVER if self.flight is None else self.flight.due
        coming = self.next_arrival()
        due = NEVER if self.gate.deadline is None else self.gate.deadline
        then = min(answered, coming, due)
        if then == NEVER:
            return False
        self.now = max(self.now, then)
        if self.flight is not None and answered == then:
            self.answer_audit(self.flight)
        elif coming == then:
            self.receive()
        else:
            self.now += TICK  # a sum's rounding mustn't leave the clock just before what is due
            self.gate.tick(self.now)
        return True

    def next_arrival(self) -> float:
        gate = self.gate
        if self.read == len(self.frames) or not gate.wants_upstream or not gate.wants_reading:
            return NEVER
        rate = self.pace.tokens_per_second
        # the finish and [DONE] come with the last token
        scheduled = 0.0 if rate is None else max(0, min(self.read, self.count - 1)) / rate
        return max(self.now, scheduled)

    def receive(self) -> None:
        frame = self.frames[self.read]
        if self.read < self.count:
            self.came.append(self.now)
        self.read += 1
        for event in self.stream.feed(frame):
            self.gate.receive(event, self.now)

    async def ask(self, asked: StartAudit) -> _Flight:
        trace = Trace(asked.thinking, asked.answer, asked.judged_thinking, asked.judged_answer)
        verdict, failure, took = None, None, 0.0
        try:
            verdict = await self.plan.judge(self.session, trace)
            took = verdict.milliseconds
        except AuditorFailure as error:
            failure = error.kind.value
        if self.pace.delay_ms is not None:
            took = self.pace.delay_ms
        return _Flight(asked, self.now, self.now + took / 1000, self.prefilled(trace, verdict), verdict, failure)

    def prefilled(self, trace: Trace, verdict: Verdict | None) -> int:
        """What this audit adds to the prompt of the one before, and the end of the turn, once for each prompt."""
        before, self.shown = self.shown, f"{trace.thinking}\n{RESPONSE}{trace.answer}"
        prompts = 2 if verdict is not None and verdict.escalated else 1
        return token_count(self.shown[common_length(before, self.shown) :]) + TURN_END_TOKENS * prompts

    def answer_audit(self, flight: _Flight) -> None:
        self.flight, self.answered = None, flight
        if flight.verdict is not None:
            self.gate.judged(flight.asked.id, flight.verdict, self.now)
        else:
            self.gate.audit_failed(flight.asked.id, flight.failure or "", self.now)

    def note_decided(self, decided: Decided) -> None:
        flight = self.answered
        assert flight is not None
        self.audits.append(
            Audited(
                decided.phase, flight.asked_at, self.now, decided.position, len(self.came), flight.prefilled, decided
            )
        )

    def note_left(self, data: bytes) -> None:
        for frame in data.split(b"\n\n"):
            number = self.numbers.get(frame + b"\n\n")
            if number is not None:
                self.left[number] = self.now
                self.behind[number] = len(self.audits)

    def result(self) -> Replayed:
        thinking = token_count(self.thinking)
        return Replayed(
            thinking, self.count, tuple(self.came), tuple(self.left), tuple(self.behind), tuple(self.audits)
        )
