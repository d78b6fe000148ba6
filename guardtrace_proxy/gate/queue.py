"""The queue of held events: what waits for its verdicts, in the upstream's order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from guardtrace_proxy.gate.choice import Choice
from guardtrace_proxy.policy.schema import ReasoningField
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, MoreText, Span
from guardtrace_proxy.wire.fates import Fate, Kept
from guardtrace_proxy.wire.reply import Writer


class HeldPart(NamedTuple):
    """What an event says of one choice, and where on that choice's tape its text lies."""

    choice: Choice
    start: int
    end: int
    part: ChoicePart

    def is_clear(self) -> bool:
        """Whether it may leave. A reply never looks finished before its last verdict, not even where its text runs
        ahead."""
        choice, _, end, part = self
        waits = part.waits or part.finish_reason is not None
        clear = choice.leave.settled if waits else choice.leave.clear
        if end > clear:
            return False
        # Tokens that run ahead of their text wait for it, or for the choice's end where it never comes.
        return end + part.unsaid <= clear or choice.is_over or (choice.ended and choice.received <= clear)

    def is_read(self) -> bool:
        """Whether all that it carries is on the tape: tokens may run ahead of their text, and what could become a tag
        waits for its rest."""
        choice, _, end, part = self
        return end + (0 if choice.ended else part.unsaid) <= choice.tape.end

    def placed(self) -> Iterator[tuple[Span, int]]:
        """The spans, each with its offset on the tape."""
        offset = self.start
        for span in self.part.spans:
            yield span, offset
            offset += len(span.text)


class HeldEvent:
    """An event in the queue. It loses the parts of choices that are cut before their text was cleared."""

    __slots__ = ("event", "parts", "trimmed")

    def __init__(self, event: Event, parts: list[HeldPart]) -> None:
        self.event = event
        self.parts = parts
        self.trimmed = len(parts) < len(event.parts)

    def is_clear(self) -> bool:
        """Whether every choice's text in it may leave."""
        # No generator, since this is asked for every event that arrives.
        for part in self.parts:  # noqa: SIM110
            if not part.is_clear():
                return False
        return True

    def drop(self, choice: Choice) -> None:
        """Take one choice out."""
        self.parts = [held for held in self.parts if held.choice is not choice]
        self.trimmed = True


class HeldRun(HeldEvent):
    """Events that were gathered, held as one while they have one fate."""

    __slots__ = ("run",)

    def __init__(self, run: Sequence[MoreText], part: HeldPart) -> None:
        super().__init__(Event(EventKind.CHUNK, b"", [part.part]), [part])
        self.run = run

    def is_divided(self) -> bool:
        """Whether its events have several fates, or one that alters them."""
        choice, start, end, _ = self.parts[0]
        clear = choice.leave.clear
        return start < clear < end or (clear >= end and choice.overlay.touches(start, end))

    def singly(self) -> Iterator[HeldEvent]:
        """Its events, each by itself."""
        choice, start, _, _ = self.parts[0]
        for more in self.run:
            end = start + len(more.text)
            event = more.whole()
            yield HeldEvent(event, [HeldPart(choice, start, end, event.parts[0])])
            start = end


class HoldQueue:
    """Events and frames of our own, first in, first out. ``held_bytes`` counts the upstream's."""

    def __init__(self, writer: Writer, thinking_goes: ReasoningField) -> None:
        self.held_bytes = 0
        self._writer = writer
        self._thinking_goes = thinking_goes
        self._items: deque[HeldEvent | bytes] = deque()

    def __bool__(self) -> bool:
        return bool(self._items)

    def push(self, held: HeldEvent) -> None:
        """Hold an event of the upstream's."""
        self._items.append(held)
        self.held_bytes += len(held.event.raw)

    def push_run(self, run: Sequence[MoreText], size: int, part: HeldPart) -> None:
        """Hold events that were gathered, of ``size`` bytes, and whose text is that of ``part``."""
        self._items.append(HeldRun(run, part))
        self.held_bytes += size

    def put_first(self, frames: bytes) -> None:
        """Put frames of our own before everything."""
        self._items.appendleft(frames)

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self.held_bytes = 0

    def completion(self) -> HeldEvent | None:
        """The reply, where it isn't streamed."""
        head = self._items[0] if self._items else None
        return head if isinstance(head, HeldEvent) and head.event.kind is EventKind.COMPLETION else None

    def parts_of(self, choice: Choice) -> Iterator[HeldPart]:
        """What is held of one choice. Runs are divided first, since what is done with it is done event by event."""
        self._divide_runs()
        for held in self._items:
            if isinstance(held, HeldEvent):
                yield from (part for part in held.parts if part.choice is choice)

    def replace_uncleared(self, choice: Choice, frames: Callable[[], bytes]) -> None:
        """Drop what isn't clear of a choice and put ``frames`` where the first of it stood."""
        self._divide_runs()
        kept: deque[HeldEvent | bytes] = deque()
        items, self._items = self._items, kept
        replaced = False
        for held in items:
            gone = isinstance(held, HeldEvent) and any(
                part.choice is choice and (replaced or not part.is_clear()) for part in held.parts
            )
            if gone and not replaced:
                kept.append(frames())
                replaced = True
            if isinstance(held, HeldEvent) and gone:
                held.drop(choice)
                if not held.parts:
                    self.held_bytes -= len(held.event.raw)
                    continue
            kept.append(held)
        if not replaced:
            kept.append(frames())

    def drop_unread(self) -> None:
        """Drop what nobody will judge, since nothing comes any more that would bring it onto a tape."""
        for held in [held for held in self._items if isinstance(held, HeldEvent)]:
            for part in [part for part in held.parts if not part.is_read()]:
                held.drop(part.choice)
            if held.trimmed and not held.parts:
                self.held_bytes -= len(held.event.raw)
                self._items.remove(held)

    def drop_error(self) -> bool:
        """Drop the upstream's error; whether there was one."""
        for held in self._items:
            if isinstance(held, HeldEvent) and held.event.kind is EventKind.ERROR:
                self.held_bytes -= len(held.event.raw)
                self._items.remove(held)
                return True
        return False

    def pop_clear(self) -> bytes:
        """Take out what stands first and may leave."""
        items = self._items
        data: list[bytes] = []
        while items:
            held = items[0]
            if isinstance(held, HeldRun):
                if held.is_divided():
                    items.popleft()
                    items.extendleft(reversed(list(held.singly())))
                    continue
                if not held.is_clear():
                    break
                raws = [more.raw for more in held.run]
                self.held_bytes -= sum(map(len, raws))
                held.parts[0].choice.released = held.parts[0].end
                data += raws
            elif isinstance(held, HeldEvent):
                if not held.is_clear():
                    break
                self.held_bytes -= len(held.event.raw)
                data.append(self._write(held))
            else:
                data.append(held)
            items.popleft()
        return b"".join(data) if data else b""

    def fates(self, held: HeldEvent) -> dict[int, Fate]:
        """What becomes of each choice in an event."""
        return {part.part.index: self._kept(part) for part in held.parts}

    def _divide_runs(self) -> None:
        if any(isinstance(held, HeldRun) for held in self._items):
            runs = [held.singly() if isinstance(held, HeldRun) else (held,) for held in self._items]
            self._items = deque(chain.from_iterable(runs))

    def _write(self, held: HeldEvent) -> bytes:
        touched = False
        for choice, start, end, part in held.parts:
            choice.released = end
            choice.role_sent = choice.role_sent or part.role
            touched = touched or choice.overlay.touches(start, end + part.unsaid)
        writer, event = self._writer, held.event
        if not (touched or held.trimmed) and writer.passes(event):
            return event.raw
        fates = self.fates(held)
        if touched:
            for choice, _, end, _ in held.parts:
                choice.overlay.forget(end)
        if touched and not held.trimmed and not is_altered(fates) and writer.passes(event):
            return event.raw
        return writer.rewrite(event, fates)

    def _kept(self, held: HeldPart) -> Kept:
        overlay = held.choice.overlay
        if not overlay.touches(held.start, held.end + held.part.unsaid):
            return Kept()
        spans = [span for span, _ in held.placed()]
        pieces = [overlay.split(span.text, offset) for span, offset in held.placed()]
        texts = [stays for stays, _ in pieces]
        thinking = "".join(goes for _, goes in pieces)
        if not thinking or self._thinking_goes is ReasoningField.STRIP:
            return Kept(texts)
        field = self._thinking_goes.value
        if any(goes and not _stands_in(span, field) for span, (_, goes) in zip(spans, pieces, strict=True)):
            return Kept(texts, (field, thinking))
        texts = [goes or stays for stays, goes in pieces]
        # Its tokens may run ahead, into text that was redacted.
        stays = texts == [span.text for span in spans] and not overlay.redacts(held.end, held.end + held.part.unsaid)
        return Kept() if stays else Kept(texts)


def is_altered(fates: Mapping[int, Fate]) -> bool:
    """Whether any choice of an event leaves otherwise than it came."""
    return any(not isinstance(fate, Kept) or fate.texts is not None for fate in fates.values())


def _stands_in(span: Span, field: str) -> bool:
    """Whether this is a reasoning field of that name, and the only one that says it."""
    return span.path[-1] == field and not span.copies
