"""Chat completions (``POST /v1/chat/completions``): from the upstream's bytes to events, streamed or whole."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
from msgspec import UNSET

from guardtrace_proxy.wire.chat_choice import ChoiceReader
from guardtrace_proxy.wire.chat_request import ChatRequest
from guardtrace_proxy.wire.chat_schema import Choice, decode_chunk
from guardtrace_proxy.wire.chat_spans import (
    Found,
    TooDeep,
    logprobs_of,
    spans_beside_choices,
    spans_of_choice,
)
from guardtrace_proxy.wire.chat_writer import ChatWriter
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Phase, Span, SpanKind
from guardtrace_proxy.wire.sse import EventTooLarge, SSEDecoder, SSEEvent
from guardtrace_proxy.wire.tags import ThinkingStyle

MAX_CHOICES = 128
MAX_ERROR_CHARS = 500
TWICE = "The upstream sent an event with a choice twice."

REASONING = ("delta", "reasoning")
REASONING_CONTENT = ("delta", "reasoning_content")
CONTENT = ("delta", "content")
REFUSAL = ("delta", "refusal")


class ChatStream(ChatWriter):
    """One reply of an upstream: reads it, and writes what a policy puts in the place of parts of it.

    ``model`` is the request's, for frames that are written before the upstream has named its own.
    """

    def __init__(self, thinking: ThinkingStyle, *, include_usage: bool, max_event_bytes: int, model: str = "") -> None:
        super().__init__(include_usage=include_usage, model=model)
        self._decoder = SSEDecoder(max_event_bytes)
        self._readers: defaultdict[int, ChoiceReader] = defaultdict(lambda: ChoiceReader(thinking))

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with ``data``."""
        try:
            return self._read_all(self._decoder.feed(data))
        except EventTooLarge as error:
            events = self._read_all(error.before)
            return [*events, *self._rests(), _malformed(b"", f"The upstream sent {error}.")]

    def end(self) -> list[Event]:
        """What is left at the end of the connection."""
        return [*self._read_all(self._decoder.end()), *self._rests()]

    def completion(self, body: bytes) -> Event:
        """A reply that wasn't streamed."""
        try:
            content = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _malformed(body, "something other than JSON")
        if not isinstance(content, dict) or not isinstance(content.get("choices"), list):
            return _malformed(body, "JSON that isn't a chat completion")
        self.stream = False
        return self._read_slowly(EventKind.COMPLETION, body, content, "message")

    def _read_all(self, found: list[SSEEvent]) -> list[Event]:
        events: list[Event] = []
        for each in found:
            event = self._read(each)
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
            chunk = decode_chunk(event.data)
        except msgspec.ValidationError:
            return self._read_unusual(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_other(event)
        choices = chunk.choices
        if not (self.head and self.head["id"]):
            self._learn_head(msgspec.structs.asdict(chunk))
        if not choices:
            return Event(EventKind.CHUNK, event.raw, [], chunk.usage)
        if len(choices) > MAX_CHOICES:
            return _malformed(event.raw, "The upstream sent an event with too many choices.")
        for choice in choices:
            if not 0 <= choice.index < MAX_CHOICES:
                return _malformed(event.raw, "The upstream sent an event with too many choices.")
        if len(choices) > 1 and len({choice.index for choice in choices}) < len(choices):
            return _malformed(event.raw, TWICE)
        parts = [self._part(choice) for choice in choices]
        return Event(EventKind.CHUNK, event.raw, parts, chunk.usage)

    def _learn_head(self, chunk: dict[str, Any]) -> None:
        """Until a chunk with an id has come: Azure begins with one that names nothing."""
        self.head = {key: chunk.get(key) for key in self.HEAD_FIELDS}

    def _part(self, choice: Choice) -> ChoicePart:
        delta = choice.delta
        found: list[Found] = []
        if delta.reasoning:
            copies = (REASONING_CONTENT,) if delta.reasoning_content == delta.reasoning else ()
            found.append((Phase.THINKING, Span(REASONING, delta.reasoning, SpanKind.TEXT, copies)))
        if delta.reasoning_content and delta.reasoning_content != delta.reasoning:
            found.append((Phase.THINKING, Span(REASONING_CONTENT, delta.reasoning_content)))
        if delta.content:
            found.append((Phase.ANSWERING, Span(CONTENT, delta.content)))
        if delta.refusal:
            found.append((Phase.ANSWERING, Span(REFUSAL, delta.refusal)))
        for position, call in enumerate(delta.tool_calls or ()):
            path = ("delta", "tool_calls", position, "function")
            if call.function is not None and call.function.name:
                span = Span((*path, "name"), call.function.name, SpanKind.ARGUMENTS)
                found.append((Phase.ANSWERING, span))
            if call.function is not None and call.function.arguments:
                span = Span((*path, "arguments"), call.function.arguments, SpanKind.ARGUMENTS)
                found.append((Phase.ANSWERING, span))
        has_role = delta.role is not UNSET and delta.role is not None
        reader = self._readers[choice.index]
        finish, unsaid = choice.finish_reason or None, 0
        if choice.logprobs is not None or choice.token_ids or reader.ahead:
            unsaid = reader.follow(found, choice.logprobs, choice.token_ids, finish is not None)
        return reader.part(choice.index, found, finish, choice.token_ids, has_role, unsaid)

    # The slow path

    def _read_unusual(self, event: SSEEvent) -> Event:
        """JSON, but not of the usual shape."""
        try:
            content = msgspec.json.decode(event.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._read_other(event)
        if not isinstance(content, dict):
            return _malformed(event.raw, "The upstream sent an event that isn't a JSON object.")
        if content.get("error"):
            return Event(EventKind.ERROR, _bounded_error(content["error"]))
        return self._read_slowly(EventKind.CHUNK, event.raw, content, "delta")

    def _read_other(self, event: SSEEvent) -> Event:
        if event.data.strip() == b"[DONE]":
            return Event(EventKind.DONE, event.raw)
        return _malformed(event.raw, "The upstream sent an event that isn't JSON.")

    def _read_slowly(self, kind: EventKind, raw: bytes, content: dict[str, Any], body_key: str) -> Event:
        if not (self.head and self.head["id"]):
            self._learn_head(content)
        choices = content.get("choices") or []
        if not isinstance(choices, list) or len(choices) > MAX_CHOICES:
            return _malformed(raw, "The upstream sent an event whose choices can't be read.")
        parts: list[ChoicePart] = []
        try:
            beside = spans_beside_choices(content)
            for choice in choices:
                part = self._slow_part(choice, body_key, beside, kind)
                if part is None:
                    return _malformed(raw, "The upstream sent an event whose choices can't be read.")
                beside = []
                parts.append(part)
            if len({part.index for part in parts}) < len(parts):
                return _malformed(raw, TWICE)
        except (TooDeep, RecursionError):
            return _malformed(raw, "The upstream sent an event that is nested too deeply.")
        if beside:
            parts.append(self._readers[0].part(0, beside))
        usage = content.get("usage")
        return Event(kind, raw, parts, usage if isinstance(usage, dict) else None)

    def _slow_part(self, choice: Any, body_key: str, beside: list[Found], kind: EventKind) -> ChoicePart | None:
        if not isinstance(choice, dict):
            return None
        index = choice.get("index", 0)
        finish = choice.get("finish_reason")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_CHOICES:
            return None
        if finish is not None and not isinstance(finish, str):
            return None
        finish = finish or ("stop" if kind is EventKind.COMPLETION else None)
        token_ids = choice.get("token_ids")
        body = choice.get(body_key)
        has_role = isinstance(body, dict) and body.get("role") is not None
        found = spans_of_choice(choice, body_key) + beside
        ids = token_ids if isinstance(token_ids, list) else None
        reader, unsaid = self._readers[index], 0
        if kind is EventKind.CHUNK or not found:
            unsaid = reader.follow(found, logprobs_of(choice), ids, finish is not None)
        return reader.part(index, found, finish, ids, has_role, unsaid)


def chat_reply(request: ChatRequest, thinking: ThinkingStyle, max_event_bytes: int) -> ChatStream:
    """The reply to a request."""
    return ChatStream(
        thinking, include_usage=request.include_usage, max_event_bytes=max_event_bytes, model=request.model
    )


def _malformed(raw: bytes, detail: str) -> Event:
    return Event(EventKind.MALFORMED, raw, [], None, detail)


def _bounded_error(error: Any) -> bytes:
    """Of an upstream's error only type, code and a bounded message pass: providers put generated text there."""
    fields = error if isinstance(error, dict) else {"message": error}
    message, kind, code = fields.get("message"), fields.get("type"), fields.get("code")
    shown = {
        "message": message[:MAX_ERROR_CHARS] if isinstance(message, str) else "The upstream reported an error.",
        "type": kind[:64] if isinstance(kind, str) else "upstream_error",
        "param": None,
        "code": code if isinstance(code, int) else code[:64] if isinstance(code, str) else None,
    }
    return b"data: " + msgspec.json.encode({"error": shown}) + b"\n\n"
