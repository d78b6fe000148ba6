"""Completions (``POST /v1/completions``): a choice is a text, with thinking between tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from guardtrace_proxy.wire.chat_schema import (
    CHOICE_METADATA,
    THINKING_FIELDS,
    FilterOffsets,
    FilterVerdicts,
    Head,
    Name,
    is_of_type,
    unknown_fields,
)
from guardtrace_proxy.wire.chat_spans import field_strings
from guardtrace_proxy.wire.choice import ChoiceReader
from guardtrace_proxy.wire.choices import ChoicesStream
from guardtrace_proxy.wire.choices_writer import BLANK, ChoicesWriter
from guardtrace_proxy.wire.completion_request import CompletionRequest
from guardtrace_proxy.wire.counts import at_most
from guardtrace_proxy.wire.events import ChoicePart, EventKind, Found, Phase, Span, SpanKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.prefill import leaves_open
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.tags import ThinkingStyle

TEXT = ("text",)


class TextLogprobs(Struct, forbid_unknown_fields=True, gc=False):
    """Four lists, side by side."""

    text_offset: list[int] | None = None
    token_logprobs: list[float | None] | None = None
    tokens: list[Name] | None = None
    top_logprobs: list[dict[Name, float] | None] | None = None


class TextChoice(Struct, forbid_unknown_fields=True, gc=False):
    index: int = 0
    text: str | None = None
    logprobs: TextLogprobs | None = None
    finish_reason: Name | None = None
    stop_reason: int | Name | None = None
    matched_stop: int | Name | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: None = None
    content_filter_results: FilterVerdicts | None = None
    content_filter_offsets: FilterOffsets | None = None


class TextChunk(Head, forbid_unknown_fields=True, gc=False):
    choices: list[TextChoice] | None = None


decode_chunk = msgspec.json.Decoder(TextChunk).decode
_TYPES: dict[str, Any] = {
    **get_type_hints(TextChoice, include_extras=True),  # with how long a name may be
    "routed_experts": CHOICE_METADATA["routed_experts"],
}
del _TYPES["text"]
_CHOICE = msgspec.defstruct("TextChoiceMetadata", [(name, kind, None) for name, kind in _TYPES.items()])


class CompletionWriter(ChoicesWriter):
    """The choices of a completion. Thinking has no field of its own here, and nobody's turn is told."""

    WHOLE = "completion"
    OBJECT = "text_completion"
    OWN_ID = "cmpl-guardtrace"

    def _closing(self, index: int, cut: Cut) -> list[dict[str, Any]]:
        text = cut.message if cut.close is None else cut.close + BLANK + cut.message
        return [_choice(index, text), _choice(index, "", "content_filter")]

    def _empty(self, index: int) -> dict[str, Any]:
        return _choice(index, "")

    def _cut_whole(self, index: int, cut: Cut) -> dict[str, Any]:
        return _choice(index, cut.message, "content_filter")

    def _rebuild(self, choice: dict[str, Any], part: ChoicePart, kept: Kept, kind: EventKind) -> dict[str, Any] | None:
        assert kept.texts is not None
        text = "".join(new for span, new in zip(part.spans, kept.texts, strict=True) if span.path == TEXT and span.text)
        if not text and part.finish_reason is None:
            return None
        shown = _choice(part.index, text, part.finish_reason)
        if isinstance(choice.get("stop_reason"), int):
            shown["stop_reason"] = choice["stop_reason"]
        return shown


class CompletionStream(CompletionWriter, ChoicesStream):
    """One completion. ``styles`` says of each prompt how the upstream's thinking stands behind it; each has ``n``
    choices."""

    _decode_chunk = staticmethod(decode_chunk)

    def __init__(
        self, styles: Sequence[ThinkingStyle], n: int, *, include_usage: bool, max_event_bytes: int, model: str
    ) -> None:
        super().__init__(include_usage=include_usage, max_event_bytes=max_event_bytes, model=model)
        self._styles = styles
        self._n = n

    def _new_reader(self, index: int) -> ChoiceReader:
        return ChoiceReader(self._styles[min(index // self._n, len(self._styles) - 1)], tagged="text")

    def _part(self, choice: TextChoice) -> ChoicePart:
        found: list[Found] = [(Phase.ANSWERING, Span(TEXT, choice.text))] if choice.text else []
        reader = self._reader(choice.index)
        finish, unsaid = choice.finish_reason or None, 0
        if choice.logprobs is not None or choice.token_ids or reader.ahead.tokens:
            sampled = None if choice.logprobs is None else choice.logprobs.tokens or []
            unsaid = reader.follow(found, sampled, choice.token_ids, finish is not None)
        return reader.part(choice.index, found, finish, choice.token_ids, False, unsaid)

    def _spans(self, choice: dict[str, Any], kind: EventKind) -> list[Found]:
        return at_most(_in_choice(choice))

    def _sampled(self, choice: dict[str, Any]) -> Sequence[str] | None:
        logprobs = choice.get("logprobs")
        if logprobs is None or not is_of_type(logprobs, TextLogprobs):
            return None
        return msgspec.convert(logprobs, TextLogprobs).tokens or []

    def _has_role(self, choice: dict[str, Any], kind: EventKind) -> bool:
        return False


def _in_choice(choice: dict[str, Any]) -> Iterator[Found]:
    for key in unknown_fields(choice, _CHOICE, _TYPES):
        value = choice[key]
        if key in THINKING_FIELDS and isinstance(value, str):
            yield Phase.THINKING, Span((key,), value, SpanKind.OTHER)
        elif key != "text":
            yield from field_strings(key, value, ())
    text = choice.get("text")
    if isinstance(text, str):
        if text:
            yield Phase.ANSWERING, Span(TEXT, text)
    elif text is not None:
        yield from field_strings("text", text, ())


def completion_reply(request: CompletionRequest, settings: ReplySettings) -> CompletionStream:
    """The reply to a request. No template stands before a prompt, so it alone says whether thinking is open."""
    thinking = settings.thinking
    styles = [replace(thinking, starts_open=leaves_open(prompt, thinking)) for prompt in request.prompts]
    return CompletionStream(
        styles,
        request.n,
        include_usage=request.include_usage,
        max_event_bytes=settings.max_event_bytes,
        model=request.model,
    )


def _choice(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
