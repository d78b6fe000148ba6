"""Replies in choices (chat completions, completions): from the upstream's bytes to events, streamed or whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_schema import Name, is_of_type, named_by
from guardtrace_proxy.wire.chat_spans import spans_beside_choices
from guardtrace_proxy.wire.choice import ChoiceReader, tokens_alone
from guardtrace_proxy.wire.choices_writer import ChoicesWriter
from guardtrace_proxy.wire.counts import MAX_STRINGS, WITH_TOO_MANY, TooMany, has_too_many
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Found, MoreText, malformed
from guardtrace_proxy.wire.keys import KEY_TWICE, KEY_TWICE_IN_WHOLE, has_key_twice
from guardtrace_proxy.wire.media import WITH_MEDIA, Media
from guardtrace_proxy.wire.never_said import never_said
from guardtrace_proxy.wire.raw_json import NOT_JSON
from guardtrace_proxy.wire.sse import EventTooLarge, SSEDecoder, SSEEvent
from guardtrace_proxy.wire.strings import TooDeep
from guardtrace_proxy.wire.template import Template, template_of
from guardtrace_proxy.wire.upstream_error import bounded_error

MAX_READ_CHOICES = 128
LEARNINGS = 8
"""Templates that are learned in a row without an event of their form: then no two events of a stream are alike."""
UNREADABLE = "whose choices can't be read"
TWICE = "with a choice twice"


class ChoicesStream(ChoicesWriter):
    """One reply of an upstream: reads it, and writes what a policy puts in the place of parts of it.

    ``model`` is the request's, for frames that are written before the upstream has named its own.
    """

    def __init__(self, *, include_usage: bool, max_event_bytes: int, model: str) -> None:
        super().__init__(include_usage=include_usage, model=model)
        self._decoder = SSEDecoder(max_event_bytes)
        self._max_event_bytes = max_event_bytes
        self._template: Template | None = None
        self._learnings = LEARNINGS
        self._readers: dict[int, ChoiceReader] = {}

    # What dialects differ in

    @staticmethod
    @abstractmethod
    def _decode_chunk(data: bytes, /) -> Any:
        """An event of the usual shape; raises msgspec.ValidationError for others."""

    @abstractmethod
    def _new_reader(self, index: int) -> ChoiceReader:
        """A reader for a choice."""

    @abstractmethod
    def _part(self, choice: Any) -> ChoicePart:
        """A choice of the usual shape."""

    @abstractmethod
    def _spans(self, choice: dict[str, Any], kind: EventKind) -> list[Found]:
        """All strings of a choice of any shape."""

    @abstractmethod
    def _sampled(self, choice: dict[str, Any]) -> Sequence[str] | None:
        """The tokens of its logprobs, where those are of the usual shape."""

    @abstractmethod
    def _has_role(self, choice: dict[str, Any], kind: EventKind) -> bool:
        """Whether it says whose turn it is."""

    # What they share

    @property
    def kept_bytes(self) -> int:
        """Of an event that isn't complete."""
        return self._decoder.unread_bytes

    def feed(self, data: bytes) -> Sequence[Event | MoreText]:
        """The events that are complete with ``data``."""
        more = self.more(data)
        if more is not None:
            return (more,)
        try:
            return self._read_all(self._decoder.feed(data))
        except EventTooLarge as error:
            events = self._read_all(error.before)
            return [*events, *self._rests(), malformed(b"", f"The upstream sent {error}.")]

    def more(self, data: bytes, *, whole: bool = False) -> MoreText | None:
        """The event that ``data`` is, where it is one and nothing but its text is new. ``whole``: it is one that was
        cut out of what came."""
        template = self._template
        if template is None or (not whole and (self._decoder.unread_bytes or len(data) > self._max_event_bytes)):
            return None
        more = template.read(data)
        if more is None or not self._readers[more.of.choice].takes(more):
            return None
        self._learnings = LEARNINGS
        return more

    def end(self) -> Sequence[Event | MoreText]:
        """What is left at the end of the connection."""
        return [*self._read_all(self._decoder.end()), *self._rests()]

    def completion(self, body: bytes) -> Event:
        """A reply that wasn't streamed."""
        if has_too_many(body):
            return _unreadable(EventKind.COMPLETION, body, WITH_TOO_MANY)
        try:
            content = msgspec.json.decode(body)
        except NOT_JSON:
            return malformed(body, "something other than JSON")
        if not isinstance(content, dict) or not isinstance(content.get("choices"), list):
            return malformed(body, f"JSON that isn't a {self.WHOLE}")
        if has_key_twice(body):
            return malformed(body, KEY_TWICE_IN_WHOLE)
        self.stream = False
        return self._read_slowly(EventKind.COMPLETION, body, content)

    def _reader(self, index: int) -> ChoiceReader:
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = self._new_reader(index)
        return reader

    def _learn_template(self, raw: bytes, part: ChoicePart) -> None:
        if self._learnings and not (self._template is not None and self._template.frames(raw)):
            template = template_of(raw, part)
            if template is not None:
                self._template = template
                self._learnings -= 1

    def _read_all(self, found: list[SSEEvent]) -> list[Event | MoreText]:
        events: list[Event | MoreText] = []
        for each in found:
            more = self.more(each.raw, whole=True)
            if more is not None:
                events.append(more)
                continue
            event = malformed(each.raw, KEY_TWICE) if has_key_twice(each.data) else self._read(each)
            if event.kind is not EventKind.CHUNK:
                events += self._rests()
            events.append(event)
        return events

    def _rests(self) -> list[Event]:
        """What is left of choices that nobody has finished: nothing comes after it any more."""
        parts = [part for index, reader in self._readers.items() if (part := reader.rest(index)) is not None]
        return [Event(EventKind.CHUNK, b"", parts)] if parts else []

    def _read(self, event: SSEEvent) -> Event:
        try:
            chunk = self._decode_chunk(event.data)
        except msgspec.ValidationError:
            return self._read_unusual(event)
        except NOT_JSON:
            return self._read_other(event)
        choices = chunk.choices
        if not (self.head and self.head["id"]):
            self._learn_head(msgspec.structs.asdict(chunk))
        if not choices:
            return Event(EventKind.CHUNK, event.raw, [], chunk.usage)
        if len(choices) > MAX_READ_CHOICES:
            return malformed(event.raw, "The upstream sent an event with too many choices.")
        for choice in choices:
            if not 0 <= choice.index < MAX_READ_CHOICES:
                return malformed(event.raw, "The upstream sent an event with too many choices.")
        if len(choices) > 1 and len({choice.index for choice in choices}) < len(choices):
            return _unreadable(EventKind.CHUNK, event.raw, TWICE)
        parts = [self._part(choice) for choice in choices]
        if len(parts) == 1 and chunk.usage is None and choices[0].logprobs is None and not choices[0].token_ids:
            self._learn_template(event.raw, parts[0])
        return Event(EventKind.CHUNK, event.raw, parts, chunk.usage)

    def _learn_head(self, chunk: dict[str, Any]) -> None:
        """Until a chunk with an id has come: Azure begins with one that names nothing."""
        known = named_by(chunk, self.HEAD_FIELDS)
        self.head = {key: known.get(key) for key in self.HEAD_FIELDS}

    # The slow path

    def _read_unusual(self, event: SSEEvent) -> Event:
        """JSON, but not of the usual shape."""
        if has_too_many(event.data):
            return _unreadable(EventKind.CHUNK, event.raw, WITH_TOO_MANY)
        try:
            content = msgspec.json.decode(event.data)
        except NOT_JSON:
            return self._read_other(event)
        if not isinstance(content, dict):
            return malformed(event.raw, "The upstream sent an event that isn't a JSON object.")
        if content.get("error"):
            return Event(EventKind.ERROR, self.error(**bounded_error(content["error"])))
        return self._read_slowly(EventKind.CHUNK, event.raw, content)

    def _read_other(self, event: SSEEvent) -> Event:
        if event.data.strip() == b"[DONE]":
            return Event(EventKind.DONE, event.raw)
        return malformed(event.raw, "The upstream sent an event that isn't JSON.")

    def _read_slowly(self, kind: EventKind, raw: bytes, content: dict[str, Any]) -> Event:
        if not (self.head and self.head["id"]):
            self._learn_head(content)
        choices = content.get("choices") or []
        if not isinstance(choices, list) or len(choices) > MAX_READ_CHOICES:
            return _unreadable(kind, raw, UNREADABLE)
        parts: list[ChoicePart] = []
        strings = 0
        try:
            beside = spans_beside_choices(content)
            for choice in choices:
                part = self._slow_part(choice, beside, kind)
                if part is None:
                    return _unreadable(kind, raw, UNREADABLE)
                beside = []
                parts.append(part)
                strings += len(part.spans)
                if strings > MAX_STRINGS:
                    return _unreadable(kind, raw, WITH_TOO_MANY)
            if len({part.index for part in parts}) < len(parts):
                return _unreadable(kind, raw, TWICE)
        except (TooDeep, RecursionError):
            return _unreadable(kind, raw, "that is nested too deeply")
        except TooMany:
            return _unreadable(kind, raw, WITH_TOO_MANY)
        except Media:
            return _unreadable(kind, raw, WITH_MEDIA)
        if beside:
            self._reader(0).follow(beside, None, None, finished=False)
            parts.append(self._reader(0).part(0, beside))
        usage = content.get("usage")
        return Event(kind, raw, parts, usage if isinstance(usage, dict) else None)

    def _slow_part(self, choice: Any, beside: list[Found], kind: EventKind) -> ChoicePart | None:
        if not isinstance(choice, dict):
            return None
        index = choice.get("index", 0)
        finish = choice.get("finish_reason")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_READ_CHOICES:
            return None
        if finish is not None and not isinstance(finish, str):
            return None
        if finish and not is_of_type(finish, Name):
            finish = "stop"  # what stands there is text, and not for an event that is written anew
        finish = finish or ("stop" if kind is EventKind.COMPLETION else None)
        token_ids = choice.get("token_ids")
        found = self._spans(choice, kind) + beside
        ids = token_ids if isinstance(token_ids, list) else None
        reader, sampled, unsaid = self._reader(index), self._sampled(choice), 0
        if kind is EventKind.CHUNK:
            unsaid = reader.follow(found, sampled, ids, finish is not None)
        elif sampled:
            found += tokens_alone(never_said(sampled, [span.text for _, span in found]))
        return reader.part(index, found, finish, ids, self._has_role(choice, kind), unsaid)


def _unreadable(kind: EventKind, raw: bytes, what: str) -> Event:
    """Malformed; in words that stand by themselves, of a whole reply in those that its error goes on with."""
    return malformed(raw, f"The upstream sent an event {what}." if kind is EventKind.CHUNK else f"a reply {what}")
