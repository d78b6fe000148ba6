"""Drives the gate of one reply: reads the upstream, runs audits, keeps time, writes to the client.

Every task lives in one task group and ends with the request. The gate itself is plain calls, so whoever has news for
it (the reader, an audit, the timer) feeds it and carries out what it says before anything else can happen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import anyio
import anyio.abc
import structlog

from guardtrace_proxy.auditor.breaker import BreakingPlan
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind, Session
from guardtrace_proxy.gate import Decided, Reject, Release, StartAudit, StreamGate
from guardtrace_proxy.server.unopened import UnopenedSession
from guardtrace_proxy.server.upstream_reply import UpstreamBroke
from guardtrace_proxy.wire.events import Event, EventKind, MoreText

log = structlog.get_logger("guardtrace")

MAX_UNSENT_BYTES = 1_048_576
"""Released but not yet taken by a slow client: beyond this the upstream isn't read."""
AFTER_DONE_SECONDS = 1.0
"""How long the upstream may take to close its reply after its last event, so that its connection is used again."""

BROKE_OFF = "The upstream's connection broke off before the reply was finished."
SHUT_DOWN = "The proxy is shutting down, so the reply ends here unfinished."

Events = AsyncIterator[Sequence[Event | MoreText]]


class Exchange:
    """One reply on its way through the gate."""

    def __init__(
        self,
        gate: StreamGate,
        plan: BreakingPlan,
        sessions: dict[int, Session],
        *,
        open_session: Callable[[int], Awaitable[Session]],
        rest: Callable[[], Sequence[Event | MoreText]],
        close_upstream: Callable[[], None],
        on_asked: Callable[[StartAudit], None],
        on_decided: Callable[[Decided], None],
        on_said: Callable[[], None],
    ) -> None:
        """``sessions`` are open already, by choice; ``open_session`` opens the auditor's session of one more choice,
        which is added to them. Whoever made them closes them. ``rest`` reads what the reader still keeps back, where
        the reply is stopped.
        ``on_asked`` is told of every audit, and then ``on_decided`` of its decision; ``on_said`` is called before the
        last bytes leave, behind which audits may go on."""
        self.rejected: Reject | None = None
        """What a cut asks to be answered with in place of the reply, where that isn't streamed."""
        self._gate = gate
        self._plan = plan
        self._sessions = sessions
        self._open_session = open_session
        self._rest = rest
        self._close_upstream = close_upstream
        self._on_asked = on_asked
        self._on_decided = on_decided
        self._on_said = on_said
        self._tasks: anyio.abc.TaskGroup
        self._reading = anyio.CancelScope()
        self._is_stopped = False
        self._read_all = asyncio.Event()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_is_due = 0.0
        self._audits_under_way = 0
        self._is_over = False

    @property
    def held_bytes(self) -> int:
        """What waits for a verdict, and what has left the gate and waits for the client."""
        return self._gate.held_bytes + self._unsent_bytes

    def stop(self) -> None:
        """End the reply as if the upstream had broken off: what is held is judged first."""
        self._is_stopped = True
        self._reading.cancel()

    async def run(self, events: Events, send: Callable[[bytes, bool], Awaitable[None]]) -> None:
        """Gate a reply to its end. ``send`` takes bytes and whether more follow; audits that are only recorded end
        behind the last of them."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._read, events)
            try:
                await self._write(send)
                await self._settle()
                await self._read_all.wait()
            finally:
                self._is_over = True
                if self._timer is not None:
                    self._timer.cancel()
            # Else every task ends by itself: to cancel one is dear, and its error holds its frames, and they it, and
            # with them the text.
            if self._audits_under_way:
                self._tasks.cancel_scope.cancel()

    async def _read(self, events: Events) -> None:
        broken: str | None = None
        try:
            with self._reading:
                await self._read_events(events)
        except UpstreamBroke as error:
            log.warning("upstream broke off", error=str(error))
            error.__traceback__ = None  # it holds the frames, and one of them it: the text would stay with them
            broken = BROKE_OFF
        finally:
            self._close_upstream()
        if self._is_stopped:
            broken = SHUT_DOWN
            self._receive_rest()
        self._gate.end(time.monotonic(), broken)
        self._read_all.set()
        self._carry_out()

    async def _read_events(self, events: Events) -> None:
        gate = self._gate
        async for batch in events:
            now = time.monotonic()
            news = False
            for event in batch:
                if gate.receive(event, now):
                    news = True
                if event.kind is EventKind.DONE or event.is_last:
                    self._reading.deadline = min(self._reading.deadline, anyio.current_time() + AFTER_DONE_SECONDS)
            if not news:
                continue
            self._carry_out()
            while not gate.wants_reading or self._unsent_bytes > MAX_UNSENT_BYTES:
                self._room.clear()
                await self._room.wait()

    def _receive_rest(self) -> None:
        """Half an event says nothing: that it can't be read is our doing."""
        for event in self._rest():
            if event.kind is not EventKind.MALFORMED:
                self._gate.receive(event, time.monotonic())

    async def _audit(self, asked: StartAudit) -> None:
        failure: FailureKind | None = None
        trace = Trace(
            asked.thinking,
            asked.answer,
            judged_thinking=asked.judged_thinking,
            judged_answer=asked.judged_answer,
        )
        sent = anyio.current_time()
        try:
            verdict = await self._plan.judge(self._session(asked.choice), trace, sent)
        except AuditorFailure as error:
            failure = error.kind
            log.warning("audit failed", kind=error.kind.value, error=str(error))
        except Exception as error:
            # Whatever an auditor raises, its text stays unaudited: the policy decides, never the exception.
            failure = FailureKind.BROKEN
            log.error("auditor raised", error=type(error).__name__)
        if failure is None:
            self._gate.judged(asked.id, verdict, time.monotonic())
        else:
            self._gate.audit_failed(asked.id, failure.value, time.monotonic())
        self._audits_under_way -= 1
        self._carry_out()

    def _session(self, choice: int) -> Session:
        if choice not in self._sessions:
            self._sessions[choice] = UnopenedSession(partial(self._open_session, choice))
        return self._sessions[choice]

    def _is_due(self) -> None:
        self._timer = None
        self._tasks.start_soon(self._tick)

    async def _tick(self) -> None:
        self._gate.tick(time.monotonic())
        self._carry_out()

    def _set_timer(self) -> None:
        deadline = self._gate.deadline
        if self._is_over or deadline is None or (self._timer is not None and self._timer_is_due <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._is_due)
        self._timer_is_due = deadline

    async def _write(self, send: Callable[[bytes, bool], Awaitable[None]]) -> None:
        is_over = False
        while not is_over:
            if not (self._unsent or self._gate.said_all):
                await self._news.wait()
                self._news.clear()
                continue
            data = b"".join(self._unsent)
            self._unsent.clear()
            is_over = self._gate.said_all
            if is_over:
                self._on_said()
            await send(data, not is_over)
            self._unsent_bytes = sum(map(len, self._unsent))
            self._room.set()

    async def _settle(self) -> None:
        """Wait for the verdicts that are only recorded."""
        while not self._gate.finished:
            self._news.clear()
            await self._news.wait()

    def _carry_out(self) -> None:
        """Do what the gate says, right after it was told something."""
        gate = self._gate
        for output in gate.take():
            if isinstance(output, Release):
                self._unsent.append(output.data)
                self._unsent_bytes += len(output.data)
                self._news.set()
            elif isinstance(output, StartAudit):
                self._on_asked(output)
                self._audits_under_way += 1
                self._tasks.start_soon(self._audit, output)
            elif isinstance(output, Decided):
                self._on_decided(output)
            elif isinstance(output, Reject):
                self.rejected = output
        if gate.said_all:
            self._news.set()
        if not gate.wants_upstream:
            self._reading.cancel()
        if gate.wants_reading:
            self._room.set()
        self._set_timer()
