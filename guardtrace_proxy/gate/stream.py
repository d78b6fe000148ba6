"""The gate of one reply: it holds the upstream's events in their order until every choice in them may go.

Sans-I/O. Feed it with ``receive``, ``end``, ``judged``, ``audit_failed`` and ``tick``; after each call carry out what
``take`` returns, and look at ``deadline``, ``wants_reading``, ``wants_upstream``, ``said_all``, ``ended`` and
``finished``. Times are seconds of any monotonic clock. It doesn't know whether a proxy, a model server's middleware or
a replay drives it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from guardtrace_proxy.gate.choice import Choice
from guardtrace_proxy.gate.choices import Choices
from guardtrace_proxy.gate.clearance import Modes
from guardtrace_proxy.gate.ending import End, Ending
from guardtrace_proxy.gate.notes import Marks, cut_of
from guardtrace_proxy.gate.outputs import Decided, Output, Release
from guardtrace_proxy.gate.queue import HeldEvent, HeldPart, HoldQueue
from guardtrace_proxy.gate.run import Run, run_of
from guardtrace_proxy.gate.whole import is_decided, released_whole
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import CutShape, Policy
from guardtrace_proxy.wire.events import Event, EventKind, MoreText, SpanKind
from guardtrace_proxy.wire.fates import Cut
from guardtrace_proxy.wire.reply import Writer

BROKEN_OFF = "The upstream's reply broke off before it was finished."
MALFORMED = "The upstream sent an event that can't be read."
TOO_MUCH_HELD = "More of the reply would have to be held than may be, and no verdict could set any of it free."


class StreamGate:
    """One reply, streamed or whole.

    ``capacity`` is how much unjudged text one audit takes, ``max_stream_bytes`` how much may be held, or wait for its
    verdict after it has left: both in bytes.
    ``choices`` is the request's ``n``.
    """

    def __init__(
        self, policy: Policy, writer: Writer, *, capacity: int, max_stream_bytes: int, choices: int = 1
    ) -> None:
        self.finished = False
        self.said_all = False
        """Nothing more leaves; verdicts that are only recorded may be due."""
        self.ended: End | None = None
        """How, from when it has said all."""
        self.wants_upstream = True
        """False as soon as nothing that the upstream could still say matters: close it at once."""
        self.run: Run | None = None
        """What is being gathered: without it ``gathers`` takes nothing."""
        self._policy = policy
        self._writer = writer
        self._capacity = capacity
        self._max_stream_bytes = max_stream_bytes
        self._choices = Choices(choices)
        self._queue = HoldQueue(writer, policy.thinking_goes)
        self._holds_all = Modes(policy).all_hold
        self._waiting_bytes = 0
        """Of text that has left before its verdict, as it was when something last left or was judged."""
        self._outputs: list[Output] = []
        self._audit_ids = count(1)
        self._is_completion = False
        """Whether the reply isn't streamed."""
        self._ending = Ending(writer, marks_estimates=policy.expose.object)
        self._marks = Marks()

    # What the driver asks

    def take(self) -> list[Output]:
        """What to do now, in order. Each output is handed out once."""
        if not self._outputs:
            return []
        outputs, self._outputs = self._outputs, []
        return outputs

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due at the latest, if nothing else happens."""
        return self._choices.deadline

    @property
    def tokens_read(self) -> int:
        """Tokens of all choices that have come."""
        gathered = 0 if self.run is None else self.run.tokens
        return gathered + sum(choice.tokens_read for choice in self._choices)

    @property
    def has_released(self) -> bool:
        """Whether text of any choice has left."""
        return any(choice.released for choice in self._choices)

    @property
    def held_bytes(self) -> int:
        """Bytes of the upstream's that are held, and what text that has left and waits for its verdict takes."""
        return self._queue.held_bytes + self._waiting_bytes + (0 if self.run is None else self.run.size)

    @property
    def wants_reading(self) -> bool:
        """False while as much is held as may be: stop reading, so that TCP slows the upstream down."""
        return self.held_bytes < self._max_stream_bytes

    @property
    def usage(self) -> dict[str, Any] | None:
        """What the upstream said last that it used, in its own words."""
        return self._ending.usage

    @property
    def choices(self) -> list[Choice]:
        """The choices seen so far, for records."""
        return list(self._choices)

    # What happens

    def gathers(self, event: MoreText, now: float) -> bool:
        """Take one event of the upstream if it's sure that nothing comes of it yet; else it is left to ``receive``."""
        return self.run is not None and self.run.takes(event, now)

    def receive(self, event: Event | MoreText, now: float) -> bool:
        """Take one event of the upstream; returns whether something may have come of it."""
        if isinstance(event, MoreText):
            if self.run is not None and self.run.takes(event, now):
                return False
            self._take_run()
            self.run = self._run_of(event)
            if self.run is not None and self.run.takes(event, now):
                return False
            event = event.whole()
        self._receive(event, now)
        return True

    def _receive(self, event: Event, now: float) -> None:
        self._take_run()
        if self._ending.is_known:
            return
        self._ending.learn(event)
        if event.kind is EventKind.CHUNK:
            self._receive_parts(event, now)
        elif event.kind is EventKind.COMPLETION:
            self._is_completion = True
            self._receive_parts(event, now)
            self._end(bytes)
        elif event.kind is EventKind.DONE:
            self._end(lambda: self._last_word(event.raw))
        elif event.kind is EventKind.ERROR:
            if not self._ending.saw_error:  # one is a bounded message, many would be a text that nobody judges
                self._ending.saw_error = True
                self._queue.push(HeldEvent(event, []))
                self._end_choices()
        elif self._ending.saw_last:
            self._end(self._ending.done)
        else:
            self._break_off(event.detail or MALFORMED)
        self._go_on(now)

    def end(self, now: float, broken: str | None = None) -> None:
        """The upstream's reply is over; ``broken`` says why, if it didn't end by itself. Behind its last event it ended
        well however its connection did."""
        self._take_run()
        if self._ending.is_known:
            return
        is_ended = self._ending.saw_error or self._ending.saw_last
        if is_ended or (broken is None and self._choices.all_over):
            self._end(self._ending.done)
        else:
            self._break_off(broken or BROKEN_OFF)
        self._go_on(now)

    def judged(self, audit: int, verdict: Verdict, now: float) -> None:
        """The auditor answered the audit with this id."""
        self._decide(lambda choice: choice.judged(audit, verdict, now), now)

    def audit_failed(self, audit: int, failure: str, now: float) -> None:
        """The auditor failed at the audit with this id; ``failure`` is a short word for records."""
        self._decide(lambda choice: choice.audit_failed(audit, failure, now), now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._take_run()
        self._go_on(now)

    # Inside: coming in

    def _receive_parts(self, event: Event, now: float) -> None:
        held: list[HeldPart] = []
        for part in event.parts:
            choice = self._choices.get(part.index) or self._choices.add(self._new_choice(part.index))
            start = choice.received
            for span in part.spans:
                begin, choice.received = choice.received, choice.received + len(span.text)
                if span.kind is SpanKind.ARGUMENTS:
                    choice.arguments.add(begin, choice.received, choice.tape.judged)
            choice.receive(part.segments, part.tokens, now)
            if part.unsaid:
                choice.expect_text()
            if part.finish_reason is not None:
                self._choices.note_over(part.index, part.finish_reason)
            if part.finish_reason is not None or not event.raw:  # without bytes: what the reader had kept back
                choice.end()
            if choice.cut_by is None:
                held.append(HeldPart(choice, start, choice.received, part))
        if event.raw and (held or not event.parts):
            self._queue.push(HeldEvent(event, held))

    def _run_of(self, event: MoreText) -> Run | None:
        choice = self._choices.get(event.of.choice)
        if choice is None or self._ending.is_known:
            return None
        return run_of(choice, event, self._max_stream_bytes - self._queue.held_bytes)

    def _take_run(self) -> None:
        """What was gathered comes before anything else happens."""
        run, self.run = self.run, None
        if run is None or not run.events:
            return
        choice, part = run.choice, run.part()
        start = choice.received
        choice.received += len(part.spans[0].text)
        choice.receive(part.segments, run.tokens, run.since)
        self._queue.push_run(run.events, run.size, HeldPart(choice, start, choice.received, part))

    def _new_choice(self, index: int) -> Choice:
        return Choice(index, self._policy, self._capacity, self._audit_ids.__next__)

    def _break_off(self, why: str) -> None:
        """What is held is still judged, and released or dropped; then an error, and never an end that looks whole. A
        cut of the last choice takes the error's place."""
        self.wants_upstream = False
        self._ending.break_off(why)
        self._end_choices()

    def _last_word(self, done: bytes) -> bytes:
        """The upstream's end of the stream, unless a choice is left that neither it nor a cut has finished."""
        return done if self._ending.saw_error or self._choices.all_over else self._ending.error(BROKEN_OFF)

    def _end(self, last_words: Callable[[], bytes]) -> None:
        self._ending.set(last_words)
        self._end_choices()

    def _end_choices(self) -> None:
        self._queue.drop_unread()
        self._choices.end()

    # Inside: decisions

    def _decide(self, decision: Callable[[Choice], Decided | None], now: float) -> None:
        """``decision`` is of the choice whose audit it was, and None of any other."""
        self._take_run()
        for choice in self._choices:
            decided = decision(choice)
            if decided is not None:
                self._follow_decision(choice, decided)
                break
        self._count_waiting()
        self._go_on(now)

    def _follow_decision(self, choice: Choice, decided: Decided) -> None:
        self._outputs.append(decided)
        if choice.cut_by is not None:
            self._cut(choice)
        elif decided.enforced and self._policy.expose.object and not self._is_completion:
            self._mark(choice, decided)

    def _mark(self, choice: Choice, decided: Decided) -> None:
        """Tell clients of a decision before the text itself."""
        note = self._marks.due(choice, decided)
        if note is not None:
            self._queue.put_first(self._writer.note(choice.index, note))

    def _cut(self, choice: Choice) -> None:
        self._choices.note_cut(choice.index)
        if self._is_completion:
            return
        if self._policy.cut_shape is CutShape.ERROR:
            self._stop_all(choice)
            return
        self._queue.replace_uncleared(choice, lambda: self._writer.cut(choice.index, self._cut_of(choice)))
        if not self._choices.all_over:
            return
        # What follows a cut is its closing frames, with no text of the upstream's, not even a bounded one.
        self._ending.lose_error(self._queue.drop_error())
        self._ending.cut()
        if not self._ending.is_known:
            self.wants_upstream = False
            self._end(self._writer.done)

    def _stop_all(self, choice: Choice) -> None:
        """An error frame ends the whole stream for its client, so no other choice goes on."""
        self._drop_held()
        cut = self._cut_of(choice)
        self._end(lambda: self._writer.cut(choice.index, cut) + self._writer.done())

    def _drop_held(self) -> None:
        """Release what is clear and forget the rest: the whole stream stops here."""
        self._outputs.append(Release(self._queue.pop_clear()))
        self._ending.lose_error(self._queue.drop_error())
        self._queue.clear()
        self._choices.stop()
        self.wants_upstream = False

    def _cut_of(self, choice: Choice) -> Cut:
        return cut_of(choice, self._queue, self._policy)

    # Inside: going out

    def _go_on(self, now: float) -> None:
        full = self._queue.held_bytes + self._waiting_bytes >= self._max_stream_bytes
        self._outputs += self._choices.poll(now, full)
        if self._is_completion:
            self._release_completion()
        else:
            data = self._queue.pop_clear()
            if data:
                self._outputs.append(Release(data))
            self._count_waiting()
            if not full and self._queue.held_bytes + self._waiting_bytes >= self._max_stream_bytes:
                self._outputs += self._choices.poll(now, full=True)
            self._give_up_if_stuck()
        if self._ending.is_known and not self.finished and not self._queue:
            self._finish()

    def _count_waiting(self) -> None:
        """Kept, since how much is held is asked for several times an event."""
        if not self._holds_all:
            self._waiting_bytes = self._choices.waiting_bytes()

    def _give_up_if_stuck(self) -> None:
        """One of several choices that waits for the rest of a tag, or tokens that wait for their text, can stand before
        all that may be held: nothing is read any more then, and no verdict is due that would change that."""
        if self.wants_reading or self._ending.is_known or not self._choices.are_settled:
            return
        self._drop_held()
        self._break_off(TOO_MUCH_HELD)

    def _release_completion(self) -> None:
        held = self._queue.completion()
        if held is not None and is_decided(held):
            self._outputs.append(released_whole(held, self._queue, self._writer, self._policy))
            self._queue.clear()

    def _finish(self) -> None:
        """The end leaves behind the last verdict that text waits for; verdicts that are only recorded may follow."""
        self.finished = self._choices.are_settled
        if self.finished or self._choices.wait_for_nothing:
            self.said_all = True
            words = self._ending.say(self.tokens_read)
            if words:
                self._outputs.append(Release(words))
            self.ended = End.BROKEN_OFF if self._choices.has_failed else self._ending.end
