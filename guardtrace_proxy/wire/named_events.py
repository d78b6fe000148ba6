"""Streams of named events that hold one choice each: what reading Responses and Messages has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from guardtrace_proxy.wire.choice import ChoiceReader
from guardtrace_proxy.wire.events import Event, EventKind, MoreText, malformed
from guardtrace_proxy.wire.keys import KEY_TWICE, has_key_twice
from guardtrace_proxy.wire.media import WITH_MEDIA
from guardtrace_proxy.wire.sse import EventTooLarge, SSEDecoder, SSEEvent
from guardtrace_proxy.wire.tags import ThinkingStyle

TOO_DEEP = "The upstream sent an event that is nested too deeply."
EVENT_WITH_MEDIA = f"The upstream sent an event {WITH_MEDIA}."


class NamedEventsReader(ABC):
    """Reads the events of one reply. ``tagged`` is the kind of text in which inline thinking may stand."""

    def __init__(self, thinking: ThinkingStyle, *, tagged: str, max_event_bytes: int) -> None:
        self._decoder = SSEDecoder(max_event_bytes, named=True)
        self._reader = ChoiceReader(thinking, tagged=tagged)

    @abstractmethod
    def _read(self, event: SSEEvent) -> Event:
        """What one event says."""

    @property
    def kept_bytes(self) -> int:
        """Of an event that isn't complete."""
        return self._decoder.unread_bytes

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with ``data``."""
        try:
            return self._read_all(self._decoder.feed(data))
        except EventTooLarge as error:
            return [*self._read_all(error.before), *self._rest(), malformed(b"", f"The upstream sent {error}.")]

    def more(self, data: bytes) -> MoreText | None:
        """None: events are numbered or named here, so each is read."""
        return None

    def end(self) -> list[Event]:
        """What is left at the end of the connection."""
        return [*self._read_all(self._decoder.end()), *self._rest()]

    def _read_all(self, found: Iterable[SSEEvent]) -> list[Event]:
        events: list[Event] = []
        for each in found:
            event = malformed(each.raw, KEY_TWICE) if has_key_twice(each.data) else self._read(each)
            if event.kind is not EventKind.CHUNK:
                events += self._rest()
            events.append(event)
        return events

    def _rest(self) -> list[Event]:
        """What could have become a tag, where nothing comes any more."""
        part = self._reader.rest(0)
        return [] if part is None else [Event(EventKind.CHUNK, b"", [part])]


def frame(content: Mapping[str, Any]) -> bytes:
    """An event's bytes."""
    return b"event: " + str(content["type"]).encode() + b"\ndata: " + msgspec.json.encode(content) + b"\n\n"


def named(event: SSEEvent, kind: str) -> bytes:
    """The event's bytes; under its type's name where it has another one."""
    if not event.name or event.name == kind.encode():
        return event.raw
    return b"event: " + msgspec.json.encode(kind)[1:-1] + b"\ndata: " + event.data.replace(b"\n", b"\ndata: ") + b"\n\n"
