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

    An event with comments or fields other than data is rebuilt from its data alone: nobody audits those.
    """

    raw: bytes
    data: bytes


class EventTooLarge(Exception):
    """One event is larger than may be held; ``before`` are those that were complete before it."""

    def __init__(self, limit: int, before: list[SSEEvent]) -> None:
        super().__init__(f"an event larger than {limit:,} bytes")
        self.before = before


class SSEDecoder:
    """Feed it bytes cut anywhere. Comments, and events without data, are dropped."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._at_start = True

    def feed(self, data: bytes) -> list[SSEEvent]:
        """The events that are complete now; raises EventTooLarge, after which nothing more may be fed."""
        if not data:
            return []
        if not self._parts and not self._at_start and _is_one_event(data) and len(data) <= self._max:
            return [SSEEvent(data, data[6:-2])]
        self._parts.append(data)
        self._size += len(data)
        if b"\n" not in data and b"\r" not in data:
            self._check_size(self._size, [])
            return []
        return self._parse(final=False)

    def end(self) -> list[SSEEvent]:
        """At the end of the stream: an event that only lacks its blank line still counts."""
        if not self._size:
            return []
        # After a lone CR a line feed would become part of it, and of the event's bytes.
        self._parts.append(b"\r\r" if self._parts[-1].endswith(b"\r") else b"\n\n")
        return self._parse(final=True)

    def _parse(self, final: bool) -> list[SSEEvent]:
        buffer = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        position = self._skip_bom(buffer)
        events: list[SSEEvent] = []
        while position < len(buffer):
            end = buffer.find(b"\n", position)
            if (
                end >= 0
                and buffer.startswith(b"data: ", position)
                and buffer.startswith(b"\n", end + 1)
                and buffer.find(b"\r", position, end) < 0
            ):
                event: SSEEvent | None = SSEEvent(buffer[position : end + 2], buffer[position + 6 : end])
                after: int | None = end + 2
            else:
                event, after = _read_block(buffer, position, final)
            if after is None:
                break
            if not final:
                self._check_size(after - position, events)
            if event is not None:
                events.append(event)
            position = after
        rest = buffer[position:]
        self._parts = [rest] if rest else []
        self._size = len(rest)
        self._check_size(self._size, events)
        return events

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


def _read_block(buffer: bytes, start: int, final: bool) -> tuple[SSEEvent | None, int | None]:
    """The event whose first line begins at ``start``, and where the next one begins; None where it isn't complete."""
    data: list[bytes] = []
    plain = True
    position = start
    while True:
        line_end = LINE_END.search(buffer, position)
        if line_end is None:
            return None, None
        ends_in_lone_cr = line_end.group() == b"\r" and line_end.end() == len(buffer)
        if ends_in_lone_cr and not final:
            return None, None
        line = buffer[position : line_end.start()]
        position = line_end.end()
        if not line:
            break
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        else:
            plain = False
    if not data:
        return None, position
    joined = b"\n".join(data)
    if plain:
        return SSEEvent(buffer[start:position], joined), position
    rebuilt = b"".join(b"data: " + part + b"\n" for part in data) + b"\n"
    return SSEEvent(rebuilt, joined), position
