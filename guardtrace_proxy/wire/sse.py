"""An incremental reader of server-sent events that keeps the very bytes of each event.

Grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\n|\r")


class SSEEvent(NamedTuple):
    """``raw`` is the event with its blank line, as it came; ``data`` its data lines joined by line feeds.

    An event with comments or fields other than data is rebuilt from its data alone: nobody audits those. ``name`` is
    what its one ``event`` line says, in dialects that have names.
    """

    raw: bytes
    data: bytes
    name: bytes = b""


class EventTooLarge(Exception):
    """One event is larger than may be held; ``before`` are those that were complete before it."""

    def __init__(self, limit: int, before: list[SSEEvent]) -> None:
        super().__init__(f"an event larger than {limit:,} bytes")
        self.before = before


class SSEDecoder:
    """Feed it bytes cut anywhere. Comments, and events without data, are dropped.

    ``named``: events may have names, which the reader checks. Else an ``event`` line is dropped like a comment.

    Each byte is looked at a fixed number of times, however small the pieces and however many the lines of an event.
    """

    def __init__(self, max_event_bytes: int, *, named: bool = False) -> None:
        self._max = max_event_bytes
        self._named = named
        self._at_start = True
        self._pieces: list[bytes] = []
        """Of a line whose end hasn't come."""
        self._raw = bytearray()
        """The whole lines of an event whose blank line hasn't come."""
        self._data: bytearray | None = None
        """Its data lines, joined; None where it has none."""
        self._name = b""
        self._plain = True
        """Whether it has nothing but data lines, and its name before them."""
        self.unread_bytes = 0
        """Of an event that isn't complete: both."""

    def feed(self, data: bytes) -> list[SSEEvent]:
        """The events that are complete now; raises EventTooLarge, after which nothing more may be fed."""
        if not data:
            return []
        if not self.unread_bytes and not self._at_start and _is_one_event(data) and len(data) <= self._max:
            return [SSEEvent(data, data[6:-2])]
        completes_cr = bool(self._pieces) and self._pieces[-1].endswith(b"\r")
        self._pieces.append(data)
        self.unread_bytes += len(data)
        if not completes_cr and b"\n" not in data and b"\r" not in data:
            self._check_size(self.unread_bytes, [])
            return []
        return self._read_lines(final=False)

    def end(self) -> list[SSEEvent]:
        """At the end of the stream: an event that only lacks its blank line still counts."""
        if not self.unread_bytes:
            return []
        # After a lone CR a line feed would become part of it, and of the event's bytes.
        ends_in_cr = bool(self._pieces) and self._pieces[-1].endswith(b"\r")
        self._pieces.append(b"\r\r" if ends_in_cr else b"\n\n")
        return self._read_lines(final=True)

    def _read_lines(self, final: bool) -> list[SSEEvent]:
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        position = self._skip_bom(buffer)
        only_line_feeds = b"\r" not in buffer
        events: list[SSEEvent] = []
        while position < len(buffer):
            if only_line_feeds and not self._raw and buffer.startswith(b"data: ", position):
                end = buffer.find(b"\n", position)
                if end < 0:
                    break
                if buffer.startswith(b"\n", end + 1):
                    event: SSEEvent | None = SSEEvent(buffer[position : end + 2], buffer[position + 6 : end])
                    self._add(event, end + 2 - position, events, final)
                    position = end + 2
                    continue
            line_end = LINE_END.search(buffer, position)
            if line_end is None or (_may_grow(line_end, buffer) and not final):
                break
            line = buffer[position : line_end.start()]
            self._raw += buffer[position : line_end.end()]
            position = line_end.end()
            if line:
                self._take_line(line)
            else:
                size = len(self._raw)
                self._add(self._close(), size, events, final)
        rest = buffer[position:]
        self._pieces = [rest] if rest else []
        self.unread_bytes = len(self._raw) + len(rest)
        self._check_size(self.unread_bytes, events)
        return events

    def _take_line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"event" and self._named and not self._name and self._data is None:
            self._name = value.removeprefix(b" ")
        elif name != b"data":
            self._plain = False
        elif self._data is None:
            self._data = bytearray(value.removeprefix(b" "))
        else:
            self._data += b"\n" + value.removeprefix(b" ")

    def _close(self) -> SSEEvent | None:
        """The event whose blank line has come; None where it has no data."""
        raw, data, name, plain = bytes(self._raw), self._data, self._name, self._plain
        self._raw, self._data, self._name, self._plain = bytearray(), None, b"", True
        if data is None:
            return None
        joined = bytes(data)
        if plain:
            return SSEEvent(raw, joined, name)
        named = b"event: " + name + b"\n" if name else b""
        return SSEEvent(named + b"data: " + joined.replace(b"\n", b"\ndata: ") + b"\n\n", joined, name)

    def _add(self, event: SSEEvent | None, size: int, events: list[SSEEvent], final: bool) -> None:
        if not final:
            self._check_size(size, events)
        if event is not None:
            events.append(event)

    def _skip_bom(self, buffer: bytes) -> int:
        if not self._at_start:
            return 0
        self._at_start = False
        return len(BOM) if buffer.startswith(BOM) else 0

    def _check_size(self, size: int, before: list[SSEEvent]) -> None:
        if size > self._max:
            raise EventTooLarge(self._max, before)


def _is_one_event(data: bytes) -> bool:
    """Whether this is one event of one data line, as a read is where tokens come one by one."""
    return data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2 and data[-1] == 10 and b"\r" not in data


def _may_grow(line_end: re.Match[bytes], buffer: bytes) -> bool:
    """Whether a line feed may still follow a carriage return, and belong to it."""
    return line_end.group() == b"\r" and line_end.end() == len(buffer)
