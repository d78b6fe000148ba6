"""Chat completions (``POST /v1/chat/completions``): what they say of a choice, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from guardtrace_proxy.wire.chat_request import ChatRequest
from guardtrace_proxy.wire.chat_schema import Choice, decode_chunk
from guardtrace_proxy.wire.chat_spans import logprobs_of, spans_of_choice
from guardtrace_proxy.wire.chat_writer import ChatWriter, body_key
from guardtrace_proxy.wire.choice import ChoiceReader
from guardtrace_proxy.wire.choices import ChoicesStream
from guardtrace_proxy.wire.events import ChoicePart, EventKind, Found, Phase, Span, SpanKind
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.tags import ThinkingStyle

REASONING = ("delta", "reasoning")
REASONING_CONTENT = ("delta", "reasoning_content")
CONTENT = ("delta", "content")
REFUSAL = ("delta", "refusal")


class ChatStream(ChatWriter, ChoicesStream):
    """One chat completion: reads it, and writes what a policy puts in the place of parts of it."""

    _decode_chunk = staticmethod(decode_chunk)

    def __init__(self, thinking: ThinkingStyle, *, include_usage: bool, max_event_bytes: int, model: str = "") -> None:
        super().__init__(include_usage=include_usage, max_event_bytes=max_event_bytes, model=model)
        self._thinking = thinking

    def _new_reader(self, index: int) -> ChoiceReader:
        return ChoiceReader(self._thinking)

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
        reader = self._reader(choice.index)
        finish, unsaid = choice.finish_reason or None, 0
        if choice.logprobs is not None or choice.token_ids or reader.ahead.tokens:
            sampled = None if choice.logprobs is None else choice.logprobs.tokens
            unsaid = reader.follow(found, sampled, choice.token_ids, finish is not None)
        return reader.part(choice.index, found, finish, choice.token_ids, has_role, unsaid)

    def _spans(self, choice: dict[str, Any], kind: EventKind) -> list[Found]:
        return spans_of_choice(choice, body_key(kind))

    def _sampled(self, choice: dict[str, Any]) -> Sequence[str] | None:
        logprobs = logprobs_of(choice)
        return None if logprobs is None else logprobs.tokens

    def _has_role(self, choice: dict[str, Any], kind: EventKind) -> bool:
        body = choice.get(body_key(kind))
        return isinstance(body, dict) and body.get("role") is not None


def chat_reply(request: ChatRequest, settings: ReplySettings) -> ChatStream:
    """The reply to a request."""
    return ChatStream(
        settings.thinking,
        include_usage=request.include_usage,
        max_event_bytes=settings.max_event_bytes,
        model=request.model,
    )
