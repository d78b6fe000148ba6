"""What the proxy itself writes into a chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardtrace_proxy.wire.choices_writer import BLANK, ChoicesWriter
from guardtrace_proxy.wire.events import ChoicePart, EventKind, Span, SpanKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.strings import LABELS, is_label


class ChatWriter(ChoicesWriter):
    """The choices of a chat completion."""

    WHOLE = "chat completion"
    OBJECT = "chat.completion.chunk"
    OWN_ID = "chatcmpl-guardtrace"

    def _closing(self, index: int, cut: Cut) -> list[dict[str, Any]]:
        """The message, then an empty delta that finishes the choice."""
        delta: dict[str, Any] = {"role": "assistant"} if cut.role else {}
        if cut.shape == "refusal":
            if cut.close is not None:
                delta["content"] = cut.close + BLANK
            delta["refusal"] = cut.message
        else:
            delta["content"] = cut.message if cut.close is None else cut.close + BLANK + cut.message
        return [_choice(index, delta), _choice(index, {}, "content_filter")]

    def _empty(self, index: int) -> dict[str, Any]:
        return _choice(index, {})

    def _cut_whole(self, index: int, cut: Cut) -> dict[str, Any]:
        refuses = cut.shape == "refusal"
        message = {
            "role": "assistant",
            "content": None if refuses else cut.message,
            "refusal": cut.message if refuses else None,
        }
        return {"index": index, "message": message, "logprobs": None, "finish_reason": "content_filter"}

    def _rebuild(self, choice: dict[str, Any], part: ChoicePart, kept: Kept, kind: EventKind) -> dict[str, Any] | None:
        assert kept.texts is not None
        key = body_key(kind)
        original = choice.get(key)
        body = _rebuild_body(original if isinstance(original, dict) else {}, part.spans, kept.texts)
        if kept.reasoning is not None:
            field, text = kept.reasoning
            body[field] = text
        if not body and part.finish_reason is None:
            return None
        if key == "message" and "content" not in body:
            body["content"] = None
        shown = {"index": part.index, key: body, "logprobs": None, "finish_reason": part.finish_reason}
        if isinstance(choice.get("stop_reason"), int):
            shown["stop_reason"] = choice["stop_reason"]
        return shown


def body_key(kind: EventKind) -> str:
    """Where a choice says something."""
    return "message" if kind is EventKind.COMPLETION else "delta"


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _rebuild_body(original: dict[str, Any], spans: Sequence[Span], texts: Sequence[str]) -> dict[str, Any]:
    """A delta or message with these texts; tool calls stay whole or go."""
    body: dict[str, Any] = {"role": "assistant"} if isinstance(original.get("role"), str) else {}
    arguments = [text == span.text for span, text in zip(spans, texts, strict=True) if span.kind is SpanKind.ARGUMENTS]
    for span, text in zip(spans, texts, strict=True):
        if span.kind is SpanKind.TEXT and text:
            for path in (span.path, *span.copies):
                _put(body, path[1:], text, original)
    if arguments and all(arguments):
        body |= {key: original[key] for key in ("tool_calls", "function_call") if original.get(key)}
    return body


def _is_position(key: str, value: Any) -> bool:
    return key in LABELS and isinstance(value, int)


def _put(body: dict[str, Any], path: tuple[str | int, ...], text: str, original: Any) -> None:
    """Set a text at ``key`` or at ``key[position].inner``, with the part's own labels."""
    key = str(path[0])
    if len(path) == 1:
        body[key] = text
        return
    position, inner = path[1], str(path[-1])
    assert isinstance(position, int)
    source = original[key][position]
    labels = {key: value for key, value in source.items() if is_label(key, value) or _is_position(key, value)}
    body.setdefault(key, []).append({**labels, inner: text})
