"""Responses (``POST /v1/responses``): from the upstream's bytes to events, streamed or whole.

A reply has one choice. Deltas are its tape. Events that say a text again (``*.done``, items, parts, the response
itself) are compared with what was said: what is the same shares its fate, what isn't is text of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from guardtrace_proxy.wire.counts import EVENT_WITH_TOO_MANY, REPLY_WITH_TOO_MANY, TooMany, at_most, has_too_many
from guardtrace_proxy.wire.events import Event, EventKind, Found, Phase, Span, SpanKind, malformed
from guardtrace_proxy.wire.keys import KEY_TWICE_IN_WHOLE, has_key_twice
from guardtrace_proxy.wire.media import WITH_MEDIA, Media
from guardtrace_proxy.wire.named_events import EVENT_WITH_MEDIA, TOO_DEEP, NamedEventsReader, named
from guardtrace_proxy.wire.raw_json import NOT_JSON
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.responses_places import (
    DELTAS,
    OUTPUT_TEXT,
    TERMINAL,
    Place,
    ResponsesEvent,
    Slot,
    Terms,
    decode_delta,
    is_logprobs,
    places_of,
    places_of_response,
    tokens_of,
)
from guardtrace_proxy.wire.responses_request import ResponsesRequest
from guardtrace_proxy.wire.responses_said import Said
from guardtrace_proxy.wire.responses_writer import ResponsesWriter
from guardtrace_proxy.wire.sse import SSEEvent
from guardtrace_proxy.wire.strings import Path, TooDeep
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_proxy.wire.upstream_error import bounded_error

TOO_LONG = "The upstream's reply is longer than may be kept."


class ResponsesStream(NamedEventsReader, ResponsesWriter):
    """One reply of an upstream: reads it, and writes what a policy puts in the place of parts of it."""

    def __init__(
        self, thinking: ThinkingStyle, *, max_event_bytes: int, model: str = "", terms: Terms = Terms()
    ) -> None:
        NamedEventsReader.__init__(self, thinking, tagged=OUTPUT_TEXT, max_event_bytes=max_event_bytes)
        ResponsesWriter.__init__(self, model=model)
        self._terms = terms
        self._said = Said()

    @property
    def kept_bytes(self) -> int:
        """Of an event that isn't complete, and of all texts: the last event says them again."""
        return super().kept_bytes + self._said.kept_bytes

    def completion(self, body: bytes) -> Event:
        """A reply that wasn't streamed."""
        if has_too_many(body):
            return malformed(body, REPLY_WITH_TOO_MANY)
        try:
            response = msgspec.json.decode(body)
        except NOT_JSON:
            return malformed(body, "something other than JSON")
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            return malformed(body, "JSON that isn't a response")
        if has_key_twice(body):
            return malformed(body, KEY_TWICE_IN_WHOLE)
        self.stream = False
        try:
            places = at_most(places_of_response(response, self._terms))
            return self._event(EventKind.COMPLETION, body, "", response, places, _status(response))
        except (TooDeep, RecursionError):
            return malformed(body, "a reply that is nested too deeply")
        except TooMany:
            return malformed(body, REPLY_WITH_TOO_MANY)
        except Media:
            return malformed(body, f"a reply {WITH_MEDIA}")

    def _read(self, event: SSEEvent) -> Event:
        if self._said.is_full:
            return malformed(event.raw, TOO_LONG)
        try:
            delta = decode_delta(event.data)
        except msgspec.ValidationError:
            return self._read_other(event)
        except NOT_JSON:
            return self._read_no_json(event)
        text = DELTAS.get(delta.type)
        if text is None or (delta.logprobs and tokens_of(msgspec.to_builtins(delta.logprobs)) != delta.delta):
            return self._read_other(event)
        index = delta.content_index if delta.content_index is not None else delta.summary_index or 0
        slot = (delta.output_index, delta.item_id or "", index, text.name)
        found: list[Found] = []
        if delta.delta:
            self._said.say(slot, delta.delta)
            found = [(text.phase, Span(slot, delta.delta, text.kind))]
        raw = named(event, delta.type)
        return ResponsesEvent(EventKind.CHUNK, raw, [self._reader.part(0, found)], type=delta.type, delta=delta)

    def _read_no_json(self, event: SSEEvent) -> Event:
        if event.data.strip() == b"[DONE]":
            return Event(EventKind.DONE, b"data: [DONE]\n\n" if event.name else event.raw)
        return malformed(event.raw, "The upstream sent an event that isn't JSON.")

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
            error = content.get("error") or {key: content.get(key) for key in ("message", "code")}
            return ResponsesEvent(EventKind.ERROR, event.raw, content=bounded_error(error))
        if not isinstance(kind, str):
            return malformed(event.raw, "The upstream sent an event without a type.")
        try:
            places = at_most(places_of(content, self._terms))
            finish = _status(content.get("response")) if kind in TERMINAL else None
            return self._event(EventKind.CHUNK, named(event, kind), kind, content, places, finish)
        except (TooDeep, RecursionError):
            return malformed(event.raw, TOO_DEEP)
        except TooMany:
            return malformed(event.raw, EVENT_WITH_TOO_MANY)
        except Media:
            return malformed(event.raw, EVENT_WITH_MEDIA)

    def _event(
        self,
        kind: EventKind,
        raw: bytes,
        type: str,
        content: dict[str, Any],
        places: list[Place],
        finish: str | None,
    ) -> Event:
        """An event with a span for every string that wasn't said before, and the places of all."""
        found: list[Found] = []
        slots: dict[Path, Slot] = {}
        twins: dict[Slot, Slot] = {}
        self._said.begin_event(places)
        for place in places:
            # Of a key that is text and its value, which stand at one place, the value's comes second.
            at = place.where if place.where not in slots else (*place.where, "")
            if type in DELTAS and place.where == ("delta",):
                placed = self._said.piece(place)
            else:
                placed = self._said.place(place, content, type, at)
            slots[at] = placed.slot
            if placed.is_new:
                found.append((place.phase, Span(placed.slot, place.text, place.kind)))
            if placed.twin is not None:
                twins[placed.slot] = placed.twin
        found += self._unsaid_tokens(content, places, slots.values())
        part = self._reader.part(0, found, finish)
        strips = not self._terms.keeps_encrypted and _holds_encrypted(content)
        return ResponsesEvent(
            kind,
            raw,
            [part],
            _usage(content),
            is_last=type in TERMINAL,
            type=type,
            content=content,
            slots=slots,
            twins=twins,
            strips=strips,
        )

    def _unsaid_tokens(
        self, content: Mapping[str, Any], places: Iterable[Place], slots: Collection[Slot]
    ) -> list[Found]:
        """Tokens of logprobs that say something else than the texts beside them: text of their own. ``slots`` are those
        whose fate the event shares."""
        found: list[Found] = []
        beside = [place.text for place in places]
        beside += map(self._said.recent, slots)
        texts, all_of_them = frozenset(beside), "\0".join(beside)  # one search each, however many stand in an event
        for logprobs in _logprobs_in(content):
            tokens = tokens_of(logprobs)
            if tokens and tokens not in texts and tokens not in all_of_them:
                found.append((Phase.ANSWERING, Span(self._said.say_alone(), tokens, SpanKind.OTHER)))
        return found


def responses_reply(request: ResponsesRequest, settings: ReplySettings) -> ResponsesStream:
    """The reply to a request."""
    return ResponsesStream(
        settings.thinking,
        max_event_bytes=settings.max_event_bytes,
        model=request.model,
        terms=Terms(request.keeps_encrypted, request.echoed),
    )


def _status(response: Any) -> str:
    status = response.get("status") if isinstance(response, dict) else None
    return status if isinstance(status, str) and status else "completed"


def _usage(content: Mapping[str, Any]) -> dict[str, Any] | None:
    response = content.get("response")
    usage = (response if isinstance(response, dict) else content).get("usage")
    return usage if isinstance(usage, dict) else None


def _holds_encrypted(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("encrypted_content")) or any(map(_holds_encrypted, value.values()))
    return isinstance(value, list) and any(map(_holds_encrypted, value))


def _logprobs_in(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "logprobs" and is_logprobs(key, inner):
                yield inner
            else:
                yield from _logprobs_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _logprobs_in(inner)
