"""Runs a case through the objects that ``server/answer.py`` wires together, as ``server/exchange.py`` drives them, with a
clock of its own. What it writes down is what a network sees, and what the auditor was asked and said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from guardtrace_proxy.gate import Reject, Release, StartAudit, StreamGate
from guardtrace_proxy.server.exchange import BROKE_OFF, SHUT_DOWN
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import EventKind
from guardtrace_proxy.wire.reply import Reply
from tests.properties.alphabet import Mark, judge, verdict
from tests.properties.sent import Case

MOST_STEPS = 5_000


@dataclass
class Entry:
    """``what``: fed (bytes so far), over (the connection's end, and how), left (we closed it), asked, answered, sent,
    rejected."""

    what: str
    value: Any


@dataclass
class Answer:
    """``mark`` is None where the audit failed."""

    id: int
    mark: Mark | None


@dataclass
class Log:
    entries: list[Entry] = field(default_factory=list)
    finished: bool = False
    ended: str | None = None
    """What the gate says of its end; None where no gate was asked."""
    held_at_end: int = 0
    most_held: int = 0
    largest_piece: int = 0
    raised: Exception | None = None

    def add(self, what: str, value: Any = None) -> None:
        self.entries.append(Entry(what, value))

    @property
    def sent(self) -> bytes:
        return b"".join(entry.value for entry in self.entries if entry.what == "sent")


class World:
    """One run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.log = Log()
        self.now = 100.0
        self.dialect: Reply = (
            case.reply()
            if case.reply is not None
            else ChatStream(case.style, include_usage=case.include_usage, max_event_bytes=case.limit, model="asked-for")
        )
        self.gate = StreamGate(
            case.policy,
            self.dialect,
            capacity=case.capacity,
            max_stream_bytes=case.limit,
            choices=case.choices,
        )
        self._stream = case.stream
        self._fed = 0
        self._pieces = list(case.pieces)
        self._next_at = self.now
        self._reading = True
        self._audits: list[tuple[float, StartAudit, Mark | None]] = []
        self._started = 0

    def run(self) -> Log:
        try:
            self._run()
        except Exception as error:
            self.log.raised = error
        self.log.finished = self.gate.finished
        self.log.ended = self.gate.ended and self.gate.ended.value
        self.log.held_at_end = self.gate.held_bytes
        return self.log

    def _run(self) -> None:
        if self.case.whole is not None:
            reply = self.dialect.completion(self.case.whole)
            assert reply.kind is EventKind.COMPLETION
            self.log.add("fed", len(self.case.whole))
            self.gate.receive(reply, self.now)
            self.log.add("over", "closed")
            self._reading = False
            self.gate.end(self.now)
            self._carry_out()
        else:
            self._plan_next()
        for _ in range(MOST_STEPS):
            if self.gate.finished or not self._step():
                break

    def _step(self) -> bool:
        """Whatever happens next; False where nothing does."""
        upcoming: list[tuple[float, int]] = []
        is_stopped = self.case.ending == "stopped" and not self._pieces
        if self._reading and (self.gate.wants_reading or is_stopped):
            upcoming.append((max(self._next_at, self.now), 0))
        for at, _, _ in self._audits:
            upcoming.append((at, 1))
        deadline = self.gate.deadline
        if deadline is not None:
            # Not to the last bit, as real timers aren't.
            upcoming.append((max(deadline + self.case.late, self.now) + 1e-6, 2))
        if not upcoming:
            return False
        self.now, what = min(upcoming)
        if what == 0:
            self._read()
        elif what == 1:
            self._answer()
        else:
            self.gate.tick(self.now)
        self._carry_out()
        return True

    def _plan_next(self) -> None:
        self._next_at = self.now + (self._pieces[0][0] if self._pieces else self.case.ends_after)

    def _read(self) -> None:
        if self._pieces:
            _, size = self._pieces.pop(0)
            data = self._stream[self._fed : self._fed + size]
            self._fed += size
            self.log.add("fed", self._fed)
            self.log.largest_piece = max(self.log.largest_piece, size)
            for event in self.dialect.feed(data):
                self.gate.receive(event, self.now)
            self.log.most_held = max(self.log.most_held, self.gate.held_bytes)
            self._plan_next()
            return
        self._reading = False
        self.log.add("over", self.case.ending)
        for event in self.dialect.end():
            if self.case.ending != "stopped" or event.kind is not EventKind.MALFORMED:
                self.gate.receive(event, self.now)
        self._carry_out()
        self.gate.end(self.now, {"broken": BROKE_OFF, "stopped": SHUT_DOWN}.get(self.case.ending))

    def _answer(self) -> None:
        at = min(range(len(self._audits)), key=lambda number: self._audits[number][0])
        _, asked, mark = self._audits.pop(at)
        self.log.add("answered", Answer(asked.id, mark))
        if mark is None:
            self.gate.audit_failed(asked.id, "timeout", self.now)
        else:
            self.gate.judged(asked.id, verdict(mark, self.case.certain), self.now)

    def _carry_out(self) -> None:
        for output in self.gate.take():
            if isinstance(output, Release):
                self.log.add("sent", output.data)
            elif isinstance(output, Reject):
                self.log.add("rejected", output.body)
            elif isinstance(output, StartAudit):
                self.log.add("asked", output)
                self._start(output)
        if self._reading and not self.gate.wants_upstream:
            self._reading = False
            self.log.add("left")
            self.gate.end(self.now)
            self._carry_out()

    def _start(self, asked: StartAudit) -> None:
        seconds, outcome = self.case.audits[self._started % len(self.case.audits)]
        self._started += 1
        mark = judge(asked.thinking, asked.answer) if outcome == "judge" else None
        if outcome in Mark.__members__:
            mark = Mark[outcome]
        self._audits.append((self.now + seconds, asked, mark))


def run(case: Case) -> Log:
    return World(case).run()
