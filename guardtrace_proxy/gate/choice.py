"""One choice: it waits for boundaries, asks for audits, and turns verdicts into what may leave."""

from __future__ import annotations

import math
from collections.abc import Callable

from guardtrace_proxy.gate.arguments import Arguments
from guardtrace_proxy.gate.boundary import ChunkSize
from guardtrace_proxy.gate.clearance import Clearance, Modes
from guardtrace_proxy.gate.localize import Search
from guardtrace_proxy.gate.outputs import Decided, StartAudit
from guardtrace_proxy.gate.overlay import Overlay
from guardtrace_proxy.gate.question import question
from guardtrace_proxy.gate.retries import Retries
from guardtrace_proxy.gate.states import Input, State, follow
from guardtrace_proxy.gate.tape import Chunk, Tape
from guardtrace_proxy.policy.decision import Decision, decide
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import Action, OnAuditorFailure, Policy, ReasoningField, Unit
from guardtrace_proxy.wire.events import Phase, Segment

RUN_SHARE = 16
"""Bytes of an audit's capacity for each token that may be gathered: of 4 bytes each, four runs fill one."""


class Choice:
    """The gate of one choice of a stream. ``leave`` says how far its text may leave."""

    def __init__(
        self,
        index: int,
        policy: Policy,
        capacity: int,
        next_audit_id: Callable[[], int],
    ) -> None:
        self.index = index
        self.overlay = Overlay(policy.messages.redaction, displaces=policy.thinking_goes is not ReasoningField.AS_IS)
        self.tape = Tape(self.overlay)
        self.arguments = Arguments()
        self.state = State.IDLE
        self.received = 0
        """How many characters came; the stream sets it. The tape ends before that while a tag may be coming."""
        self.released = 0
        self.role_sent = False
        """The tape offset up to which events have left, and whether one of them had the role; the queue sets both."""
        self.tokens_read = 0
        self.ended = False
        self.cut_by: Decision | None = None
        self.cut_phase: Phase | None = None
        self.unaudited = False
        """Text of this choice was released because the auditor failed and the policy says so."""
        self._policy = policy
        self._capacity = capacity
        self._next_audit_id = next_audit_id
        self._modes = Modes(policy)
        self.leave = Clearance(self._modes)
        self._size = ChunkSize(policy.boundary, policy.thresholds.potentially_harmful)
        self._max_hold = policy.boundary.max_hold_ms / 1000
        self._gathers = self._modes.all_hold and policy.boundary.unit is Unit.TOKENS
        self._chunk: Chunk | None = None
        self._fresh = 0
        """Tokens of the chunk that no earlier audit had."""
        self._audit: int | None = None
        self._search: Search | None = None
        self._hits = 0
        """Verdicts in a row that ask for an action."""
        self._suspects = False
        """Whether the text in question was flagged and nothing done yet: what fails later is no reason to let it go."""
        self._retries = Retries(policy.hold_limit_ms / 1000)

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
        if tag_first or not self._modes.all_hold:
            self.leave.advance(tape)
        if waiting:
            self.state = follow(self.state, Input.TEXT)

    def expect_text(self) -> None:
        """Tokens came whose text may follow: behind a finish too, which then wasn't the end."""
        self.ended = False
        if self.is_over:
            self.state = follow(self.state, Input.TOKENS)

    def end(self) -> None:
        """The upstream has ended this choice: what waits is at its boundary now."""
        self.ended = True
        if self.state in (State.IDLE, State.CUT):
            self.state = follow(self.state, Input.END)

    def poll(self, now: float, full: bool) -> StartAudit | None:
        """The audit to start now, if a boundary is reached or a retry is due. ``full``: no more text can come before
        some leaves."""
        if self.state is State.WAITING:
            if not (full or self._waits_no_longer(now) or self._size.is_full(self.tape)):
                return None
            self.state = follow(self.state, Input.BOUNDARY)
            return self._start(now)
        if self.state is State.SEARCHING:
            self.state = follow(self.state, Input.BOUNDARY)
            return self._ask(now)
        if self.state is State.RETRYING and now >= self._retries.at:
            self.state = follow(self.state, Input.RETRY)
            return self._ask(now) if self._search else self._start(now)
        return None

    def patience(self, phase: Phase, close: str | None) -> tuple[float, float] | None:
        """For how many more tokens of this phase and block, and until when, ``poll`` is sure to start nothing: so many
        may be gathered and taken in one piece. None where each has to be taken at once. Never so many that one audit
        couldn't be filled well with them."""
        if not self._gathers or self.ended or not self.tape.goes_on(phase, close):
            return None
        most = self._capacity / RUN_SHARE
        if self.state is State.AUDITING:
            return most, math.inf
        since = self.tape.fresh_since
        if self.state is not State.WAITING or since is None:
            return None
        return min(most, self._size.tokens - self.tape.fresh_tokens), since + self._max_hold

    @property
    def deadline(self) -> float | None:
        """When ``poll`` has something to do even if nothing comes in."""
        if self.state is State.WAITING:
            since = self.tape.fresh_since
            return None if since is None else since + self._max_hold
        if self.state is State.RETRYING:
            return self._retries.at
        return None

    @property
    def is_live(self) -> bool:
        """Whether the upstream may still have to say something that matters."""
        return self.state not in (State.CUT, State.FINISHED)

    @property
    def is_over(self) -> bool:
        """Whether its text has come and was judged to the end."""
        return self.state is State.FINISHED

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
        inline = self.tape.waiting[0].segment.close is not None and not self.overlay.displaces
        if self._search is None:
            self._size.learn(verdict.risk)
        self._retries.succeeded()
        wanted = decide(self._policy, chunk.phase.value, verdict, inline=inline)
        taken: Decision | None = wanted
        if enforced:
            taken = self._act(chunk, wanted)
        else:
            self.tape.pass_chunk(chunk)
        self._settle()
        return self._decided(chunk, taken, verdict, None, enforced, now)

    def audit_failed(self, audit: int, failure: str, now: float) -> Decided | None:
        """Take the auditor's failure, and do as the policy says."""
        if self._audit != audit:
            return None
        chunk, enforced = self._finish_audit()
        may_retry = self._retries.failed(now)
        rule = self._policy.on_auditor_failure
        decision = None
        if not enforced or (rule is OnAuditorFailure.RELEASE and not self._suspects):
            self.tape.pass_chunk(chunk)
            self.unaudited = self.unaudited or enforced
        elif rule is OnAuditorFailure.HOLD and may_retry:
            self.state = follow(self.state, Input.FAILED)
            self._retries.wait(now)
        else:
            decision = self._cut(Decision(None, Action.CUT), chunk.phase)
        self._settle()
        return self._decided(chunk, decision, None, failure, enforced, now)

    def stop(self) -> None:
        """End this choice without a verdict of its own, since the whole stream stops."""
        self._audit = self._chunk = self._search = None
        if self.is_live:
            self.state = follow(self.state, Input.CUT)
            self.tape.forget_waiting()

    # Inside: from a verdict to an action

    def _act(self, chunk: Chunk, decision: Decision) -> Decision | None:
        """Do what a verdict asks for; None where it takes another verdict first."""
        self._hits = 0 if decision.action is Action.PASS else self._hits + 1
        if self._search is not None and decision.action is not Action.CUT:
            return self._narrow(self._search, chunk, decision)
        confirmed = self._search is not None or self._hits >= self._policy.decision.confirmations
        if self._hits and not confirmed and self.tape.can_grow(chunk, self.ended):
            self._suspects = True
            self.leave.stop(self.released)
            self.state = follow(self.state, Input.UNCONFIRMED)
            return None
        if decision.action in (Action.PASS, Action.FLAG):
            self.tape.pass_chunk(chunk)
            return decision
        self.leave.stop(self.released)
        if decision.action is Action.CUT or self.arguments.lie_in(self.tape.judged, chunk.end):
            return self._cut(Decision(decision.level, Action.CUT), chunk.phase)
        if self._policy.redaction.localize:
            search = Search(
                chunk.text,
                self.overlay.placeholder,
                capacity=self._capacity,
                continues=self.overlay.continues(self.tape.judged, chunk.phase),
            )
            if search.can_narrow:
                self._search, self._suspects = search, True
                self.state = follow(self.state, Input.FLAGGED)
                return decision
        self.tape.redact_chunk(chunk, self.released)
        return decision

    def _narrow(self, search: Search, chunk: Chunk, decision: Decision) -> Decision:
        search.learn(decision.action is Action.REDACT)
        if search.over:
            self._search = None
            self.tape.redact_parts(chunk, search.redacted, search.remains(), self.released)
        else:
            self.state = follow(self.state, Input.FLAGGED)
        return decision

    # Inside: from text to a question

    def _waits_no_longer(self, now: float) -> bool:
        """Whether all that waits is to be judged, however little it is."""
        tape = self.tape
        if self.ended or tape.phase_changes():
            return True
        since = tape.fresh_since
        return since is not None and now - since >= self._max_hold

    def _start(self, now: float) -> StartAudit:
        """Take a chunk of what waits, and ask about it."""
        reach = self.tape.end if self._waits_no_longer(now) else self._size.reach(self.tape)
        chunk = self._chunk = self.tape.next_chunk(self._capacity, reach)
        self._fresh = self.tape.ask(chunk)
        return self._ask(now)

    def _ask(self, now: float) -> StartAudit:
        """Ask about the chunk, or about what its search wants to know."""
        assert self._chunk is not None
        chunk = self._chunk
        asked = chunk.text if self._search is None else self._search.asked
        found = question(self.tape, chunk.phase, asked, thinking_is_unseen=self._policy.thinking_is_unseen)
        held_ms = (now - chunk.since) * 1000
        self._audit = self._next_audit_id()
        return StartAudit(self._audit, self.index, chunk.phase, *found, self._fresh, held_ms)

    def _finish_audit(self) -> tuple[Chunk, bool]:
        """The chunk whose audit ended, and whether its phase's mode lets anything be done about it."""
        assert self._chunk is not None
        self._audit = None
        return self._chunk, self._modes.enforces(self.tape.waiting[0].segment)

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
        fresh, self._fresh = self._fresh, 0
        return Decided(self.index, chunk.phase, decision, verdict, failure, enforced, fresh, position, held_ms)

    def _settle(self) -> None:
        """After a verdict that didn't cut: what may leave now, and what the machine does next."""
        if self.state is not State.AUDITING:
            return
        self._chunk, self._search, self._suspects = None, None, False
        self.tape.skip_tags()
        self.leave.recount(self.tape)
        self.state = follow(self.state, Input.SOME_JUDGED if self.tape.waiting else Input.ALL_JUDGED)
        if self.ended and self.state is State.IDLE:
            self.state = follow(self.state, Input.END)

    def _cut(self, decision: Decision, phase: Phase) -> Decision:
        self.cut_by = decision
        self.cut_phase = phase
        self.state = follow(self.state, Input.CUT)
        self.leave.stop(self.released)
        self.tape.forget_waiting()
        return decision
