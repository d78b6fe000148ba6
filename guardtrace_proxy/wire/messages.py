"""Messages (``POST /v1/messages``): from the upstream's bytes to events, streamed or whole.

A reply has one choice. Its tape is what its blocks say, in their order; nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from guardtrace_proxy.wire.counts import EVENT_WITH_TOO_MANY, REPLY_WITH_TOO_MANY, TooMany, at_most, has_too_many
from guardtrace_proxy.wire.events import Event, EventKind, Found, Span, malformed
from guardtrace_proxy.wire.keys import KEY_TWICE_IN_WHOLE, has_key_twice
from guardtrace_proxy.wire.media import WITH_MEDIA, Media
from guardtrace_proxy.wire.messages_blocks import (
    DELTAS,
    Delta,
    MessagesEvent,
    Place,
    Terms,
    decode_delta,
    hides_encrypted,
    places_of,
    places_of_message,
)
from guardtrace_proxy.wire.messages_request import MessagesRequest
from guardtrace_proxy.wire.messages_writer import MessagesWriter
from guardtrace_proxy.wire.named_events import EVENT_WITH_MEDIA, TOO_DEEP, NamedEventsReader, named
from guardtrace_proxy.wire.raw_json import NOT_JSON
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.sse import SSEEvent
from guardtrace_proxy.wire.strings import TooDeep
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_proxy.wire.upstream_error import bounded_error

MAX_BLOCKS = 4096
OF_BLOCKS = frozenset({"content_block_start", "content_block_delta", "content_block_stop"})


class MessagesStream(NamedEventsReader, MessagesWriter):
    """One reply of an upstream: reads it, and writes what a policy puts in the place of parts of it."""

    def __init__(
        self,
        thinking: ThinkingStyle,
        *,
        max_event_bytes: int,
        model: str = "",
        request_id: str = "",
        terms: Terms = Terms(),
    ) -> None:
        NamedEventsReader.__init__(self, thinking, tagged="text", max_event_bytes=max_event_bytes)
        MessagesWriter.__init__(self, model=model, request_id=request_id, terms=terms)
        self._read_stop = False

    def completion(self, body: bytes) -> Event:
        """A reply that wasn't streamed."""
        if has_too_many(body):
            return malformed(body, REPLY_WITH_TOO_MANY)
        try:
            message = msgspec.json.decode(body)
        except NOT_JSON:
            return malformed(body, "something other than JSON")
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            return malformed(body, "JSON that isn't a message")
        if has_key_twice(body):
            return malformed(body, KEY_TWICE_IN_WHOLE)
        self.stream = False
        try:
            places = at_most(places_of_message(message, self._terms))
        except (TooDeep, RecursionError):
            return malformed(body, "a reply that is nested too deeply")
        except TooMany:
            return malformed(body, REPLY_WITH_TOO_MANY)
        except Media:
            return malformed(body, f"a reply {WITH_MEDIA}")
        hides = hides_encrypted(message["content"], self._terms)
        part = self._reader.part(0, _found(places), _word(message.get("stop_reason")) or "end_turn")
        return MessagesEvent(
            EventKind.COMPLETION, body, [part], _usage(message), type="message", content=message, is_hidden=hides
        )

    def _read(self, event: SSEEvent) -> Event:
        try:
            delta = decode_delta(event.data)
        except msgspec.ValidationError:
            return self._read_other(event)
        except NOT_JSON:
            return self._read_no_json(event)
        text = DELTAS[delta.delta.type]
        said = getattr(delta.delta, text.key)
        if not _is_usual(delta) or not 0 <= delta.index < MAX_BLOCKS:
            return self._read_other(event)
        found: list[Found] = [(text.phase, Span(("delta", text.key), said, text.kind))] if said else []
        part = self._reader.part(0, found)
        raw = named(event, delta.type)
        return MessagesEvent(EventKind.CHUNK, raw, [part], type=delta.type, index=delta.index, delta=delta)

    def _read_other(self, event: SSEEvent) -> Event:
        if has_too_many(event.data):
            return malformed(event.raw, EVENT_WITH_TOO_MANY)
        try:
            content = msgspec.json.decode(event.data)
        except NOT_JSON:
            return self._read_no_json(event)
        if not isinstance(content, dict):
            return malformed(event.raw, "The upstream sent an event that isn't a JSON object.")
        kind = content.get("type")
        if kind == "error" or content.get("error"):
            return Event(EventKind.ERROR, self.error(**bounded_error(content.get("error"))))
        if not isinstance(kind, str):
            return malformed(event.raw, "The upstream sent an event without a type.")
        index = content.get("index")
        if kind in OF_BLOCKS and not (type(index) is int and 0 <= index < MAX_BLOCKS):
            return malformed(event.raw, "The upstream sent an event of a block without a usable index.")
        try:
            places = at_most(places_of(content, self._terms))
        except (TooDeep, RecursionError):
            return malformed(event.raw, TOO_DEEP)
        except TooMany:
            return malformed(event.raw, EVENT_WITH_TOO_MANY)
        except Media:
            return malformed(event.raw, EVENT_WITH_MEDIA)
        raw = named(event, kind)
        self._read_stop = self._read_stop or kind == "message_stop"
        if kind == "message_stop" and not places:
            return Event(EventKind.DONE, raw)
        if kind == "ping" and not places:
            return MessagesEvent(EventKind.CHUNK, raw, [], type=kind)
        return self._event(raw, kind, content, places)

    def _read_no_json(self, event: SSEEvent) -> Event:
        """Some gateways end all streams alike."""
        if event.data.strip() == b"[DONE]":
            return Event(EventKind.DONE, b"" if self._read_stop else self.done())
        return malformed(event.raw, "The upstream sent an event that isn't JSON.")

    def _event(self, raw: bytes, kind: str, content: dict[str, Any], places: list[Place]) -> Event:
        delta = content.get("delta")
        finish = _word(delta.get("stop_reason")) if kind == "message_delta" and isinstance(delta, dict) else None
        part = self._reader.part(0, _found(places), finish)
        signs = kind == "content_block_delta" and isinstance(delta, dict) and "signature" in delta
        block = content.get("content_block") if kind == "content_block_start" else None
        part.waits = signs or (isinstance(block, dict) and bool(block.get("signature")))
        return MessagesEvent(
            EventKind.CHUNK,
            raw,
            [part],
            _usage(content) if kind == "message_delta" else None,
            type=kind,
            index=content["index"] if kind in OF_BLOCKS else -1,
            content=content,
            is_hidden=hides_encrypted(_blocks_of(kind, content), self._terms),
            signs=signs,
        )


def messages_reply(request: MessagesRequest, settings: ReplySettings) -> MessagesStream:
    """The reply to a request."""
    return MessagesStream(
        settings.thinking,
        max_event_bytes=settings.max_event_bytes,
        model=request.model,
        request_id=settings.request_id,
        terms=Terms(request.keeps_encrypted, request.stops),
    )


def _blocks_of(kind: str, content: dict[str, Any]) -> Any:
    """The blocks that an event announces."""
    if kind == "content_block_start":
        return [content.get("content_block")]
    message = content.get("message")
    return message.get("content") if kind == "message_start" and isinstance(message, dict) else None


def _found(places: Iterable[Place]) -> list[Found]:
    return [(place.phase, Span(place.where, place.text, place.kind)) for place in places if place.text]


def _is_usual(delta: Delta) -> bool:
    """Whether it says what its type says, and nothing else."""
    piece, key = delta.delta, DELTAS[delta.delta.type].key
    said = [name for name in ("text", "thinking", "partial_json") if getattr(piece, name) is not None]
    return said == [key]


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _usage(content: dict[str, Any]) -> dict[str, Any] | None:
    usage = content.get("usage")
    return usage if isinstance(usage, dict) else None
