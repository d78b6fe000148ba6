"""One choice: it waits for boundaries, asks for audits, and turns verdicts into what may leave."""

from __future__ import annotations

from collections.abc import Callable

from guardtrace_proxy.gate.boundary import ChunkSize
from guardtrace_proxy.gate.outputs import Decided, StartAudit
from guardtrace_proxy.gate.states import Input, State, follow
from guardtrace_proxy.gate.tape import Chunk, Tape
from guardtrace_proxy.policy.decision import Decision, decide
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import Action, Mode, OnAuditorFailure, Policy
from guardtrace_proxy.wire.events import Phase, Segment

FIRST_RETRY_MS = 100
LAST_RETRY_MS = 5_000
HIDDEN_THINKING = "[thinking not shown to the reader]"
"""What the auditor sees of a thinking that no reader does, when it judges the answer (design: by what its reader
sees)."""


class Choice:
    """The gate of one choice of a stream.

    ``clear`` is the tape offset up to which text may leave: judged text, and text of a phase in monitor mode.
    ``has_arguments`` says of a stretch of tape whether tool-call arguments lie in it, which have no placeholder.
    """

    def __init__(
        self,
        index: int,
        policy: Policy,
        capacity: int,
        next_audit_id: Callable[[], int],
        has_arguments: Callable[[Choice, int, int], bool],
    ) -> None:
        self.index = index
        self.tape = Tape()
        self.state = State.IDLE
        self.clear = 0
        self.received = 0
        self.released = 0
        self.role_sent = False
        self.tokens_read = 0
        self.ended = False
        self.cut_by: Decision | None = None
        self.cut_phase: Phase | None = None
        self.unaudited = False
        """Text of this choice was released because the auditor failed and the policy says so."""
        self.flagged: Decision | None = None
        self._policy = policy
        self._rules = {phase: policy.phase(phase.value) for phase in Phase}
        self._capacity = capacity
        self._next_audit_id = next_audit_id
        self._has_arguments = has_arguments
        self._size = ChunkSize(policy.boundary, policy.thresholds.potentially_harmful)
        self._max_hold = policy.boundary.max_hold_ms / 1000
        self._chunk: Chunk | None = None
        self._audit: int | None = None
        self._retry_at = 0.0
        self._retry_ms = FIRST_RETRY_MS
        self._failing_since: float | None = None
        self._monitors = any(rules.mode is Mode.MONITOR for rules in self._rules.values())

    # What comes in

    def receive(self, segments: list[Segment], tokens: int, now: float) -> None:
        """Take segments that became certain."""
        self.tokens_read += tokens
        if self.state is State.CUT:
            return
        tape = self.tape
        tape.push(segments, tokens, now)
        waiting = tape.waiting
        if not waiting:
            return
        tag_first = waiting[0].segment.tag
        if tag_first:
            tape.skip_tags()
        if tag_first or self._monitors:
            self._advance_clear()
        if waiting:
            self.state = follow(self.state, Input.TEXT)

    def end(self) -> None:
        """The upstream has ended this choice: what waits is at its boundary now."""
        self.ended = True
        if self.state in (State.IDLE, State.CUT):
            self.state = follow(self.state, Input.END)

    def poll(self, now: float) -> StartAudit | None:
        """The audit to start now, if a boundary is reached or a retry is due."""
        if self.state is State.WAITING:
            if not (self._waits_no_longer(now) or self._size.is_full(self.tape)):
                return None
            self.state = follow(self.state, Input.BOUNDARY)
            return self._start(now)
        if self.state is State.RETRYING and now >= self._retry_at:
            self.state = follow(self.state, Input.RETRY)
            return self._start(now)
        return None

    @property
    def deadline(self) -> float | None:
        """When ``poll`` has something to do even if nothing comes in."""
        if self.state is State.WAITING:
            return self.tape.waiting[0].since + self._max_hold
        if self.state is State.RETRYING:
            return self._retry_at
        return None

    @property
    def is_live(self) -> bool:
        """Whether the upstream may still have to say something that matters."""
        return self.state not in (State.CUT, State.FINISHED)

    @property
    def is_settled(self) -> bool:
        """Whether everything that came in has been decided."""
        return self.state in (State.CUT, State.FINISHED, State.IDLE)

    # What the auditor says

    def judged(self, audit: int, verdict: Verdict, now: float) -> Decided | None:
        """Take a verdict; None where it answers an audit that no longer matters."""
        if self._audit != audit:
            return None
        chunk, enforced = self._finish_audit()
        self._size.learn(verdict.risk)
        self._failing_since, self._retry_ms = None, FIRST_RETRY_MS
        decision = decide(self._policy, chunk.phase.value, verdict)
        if decision.action is Action.FLAG:
            self.flagged = decision
        if not enforced or decision.action in (Action.PASS, Action.FLAG):
            self.tape.pass_chunk(chunk)
        elif decision.action is Action.REDACT and not self._has_arguments(self, self.tape.judged, chunk.end):
            self.tape.redact_chunk(chunk, self._policy.messages.redaction)
        else:
            decision = self._cut(Decision(decision.level, Action.CUT), chunk.phase)
        self._settle()
        return self._decided(chunk, decision, verdict, None, enforced, now)

    def audit_failed(self, audit: int, failure: str, now: float) -> Decided | None:
        """Take the auditor's failure, and do as the policy says."""
        if self._audit != audit:
            return None
        chunk, enforced = self._finish_audit()
        self._failing_since = now if self._failing_since is None else self._failing_since
        held_out = now - self._failing_since >= self._policy.hold_limit_ms / 1000
        rule = self._policy.on_auditor_failure
        decision = None
        if not enforced or rule is OnAuditorFailure.RELEASE:
            self.tape.pass_chunk(chunk)
            self.unaudited = self.unaudited or enforced
        elif rule is OnAuditorFailure.HOLD and not held_out:
            self.state = follow(self.state, Input.FAILED)
            self._retry_at = now + self._retry_ms / 1000
            self._retry_ms = min(self._retry_ms * 2, LAST_RETRY_MS)
        else:
            decision = self._cut(Decision(None, Action.CUT), chunk.phase)
        self._settle()
        return self._decided(chunk, decision, None, failure, enforced, now)

    def stop(self) -> None:
        """End this choice without a verdict of its own, since the whole stream stops."""
        self._audit = self._chunk = None
        if self.is_live:
            self.state = follow(self.state, Input.CUT)

    # Inside

    def _waits_no_longer(self, now: float) -> bool:
        """Whether all that waits is to be judged, however little it is."""
        tape = self.tape
        return self.ended or tape.phase_changes() or now - tape.waiting[0].since >= self._max_hold

    def _start(self, now: float) -> StartAudit:
        reach = self.tape.end if self._waits_no_longer(now) else self._size.reach(self.tape)
        chunk = self._chunk = self.tape.next_chunk(self._capacity, reach)
        thinking = self.tape.shown(Phase.THINKING)
        answer = self.tape.shown(Phase.ANSWERING)
        if chunk.phase is Phase.ANSWERING and thinking and self._rules[Phase.THINKING].mode is Mode.MONITOR:
            thinking = HIDDEN_THINKING
        judged = len(thinking), len(answer)
        if chunk.phase is Phase.THINKING:
            thinking += chunk.text
        else:
            answer += chunk.text
        held_ms = (now - chunk.since) * 1000
        self._audit = self._next_audit_id()
        return StartAudit(self._audit, self.index, chunk.phase, thinking, answer, *judged, chunk.tokens, held_ms)

    def _finish_audit(self) -> tuple[Chunk, bool]:
        """The chunk whose audit ended, and whether its phase's mode lets anything be done about it."""
        assert self._chunk is not None
        chunk, enforced = self._chunk, self._mode(self.tape.waiting[0].segment) is not Mode.MONITOR
        self._audit = self._chunk = None
        return chunk, enforced

    def _decided(
        self,
        chunk: Chunk,
        decision: Decision | None,
        verdict: Verdict | None,
        failure: str | None,
        enforced: bool,
        now: float,
    ) -> Decided:
        undecided = chunk.tokens if self.tape.judged < chunk.end else 0
        position = self.tape.judged_tokens + undecided
        held_ms = (now - chunk.since) * 1000
        return Decided(self.index, chunk.phase, decision, verdict, failure, enforced, chunk.tokens, position, held_ms)

    def _settle(self) -> None:
        """After a verdict that didn't cut: what may leave now, and what the machine does next."""
        if self.state is not State.AUDITING:
            return
        self.tape.skip_tags()
        self._advance_clear()
        self.state = follow(self.state, Input.SOME_JUDGED if self.tape.waiting else Input.ALL_JUDGED)
        if self.ended and self.state is State.IDLE:
            self.state = follow(self.state, Input.END)

    def _cut(self, decision: Decision, phase: Phase) -> Decision:
        self.cut_by = decision
        self.cut_phase = phase
        self.state = follow(self.state, Input.CUT)
        return decision

    def _advance_clear(self) -> None:
        self.clear = max(self.clear, self.tape.judged)
        if not self._monitors:
            return
        # Bisected, since this runs for every event and a slow auditor lets thousands of entries wait.
        waiting = self.tape.waiting
        for position in range(self.tape.behind(self.clear), len(waiting)):
            entry = waiting[position]
            if self._mode(entry.segment) is not Mode.MONITOR:
                break
            self.clear = entry.end

    def _mode(self, segment: Segment) -> Mode:
        """The mode that holds for a segment: inside an inline block, whose end may never come, the stricter one."""
        if segment.close is None:
            return self._rules[segment.phase].mode
        modes = [rules.mode for rules in self._rules.values()]
        return Mode.HOLD if Mode.HOLD in modes else Mode.MONITOR
