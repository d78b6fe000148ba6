"""What the proxy itself writes into a chat completion: cuts, redactions, marks, usage and ends.

Everything here is valid for clients that know nothing of us: every frame has ``choices`` or is an error object, and
the ``guardtrace`` object only ever stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from guardtrace_proxy.wire.chat_spans import LABELS, is_label
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Span, SpanKind
from guardtrace_proxy.wire.fates import Cut, Fate, Kept

BLANK = "\n\n"


class ChatWriter:
    """Writes frames with the stream's own id, model and created, once its first chunk was read."""

    HEAD_FIELDS: ClassVar = ("id", "object", "created", "model", "system_fingerprint")
    KEPT_FIELDS: ClassVar = (*HEAD_FIELDS, "service_tier")

    def __init__(self, *, include_usage: bool, model: str) -> None:
        self.head: dict[str, Any] | None = None
        self.stream = True
        self._include_usage = include_usage
        self._model = model

    def passes(self, event: Event) -> bool:
        """Always: no event of a chat completion repeats another."""
        return True

    def cut(self, index: int, cut: Cut) -> bytes:
        """The closing frames of one choice: the message, then an empty delta that finishes it (design §3.3)."""
        if cut.shape == "error":
            return self.error(cut.message, "content_filter", "content_filter")
        delta: dict[str, Any] = {"role": "assistant"} if cut.role else {}
        if cut.shape == "refusal":
            if cut.close is not None:
                delta["content"] = cut.close + BLANK
            delta["refusal"] = cut.message
        else:
            delta["content"] = cut.message if cut.close is None else cut.close + BLANK + cut.message
        return self._chunk([_choice(index, delta)]) + self._chunk([_choice(index, {}, "content_filter")], cut.note)

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        """An empty delta that carries a ``guardtrace`` object."""
        return self._chunk([_choice(index, {})], note)

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        """The usage chunk after a cut (ruling 18); b"" where the request didn't ask for one."""
        if not self._include_usage:
            return b""
        if usage is not None:
            return self._chunk([], usage=_numbers(usage))
        estimated = {"prompt_tokens": 0, "completion_tokens": tokens_read, "total_tokens": tokens_read}
        return self._chunk([], {"usage_estimated": True} if expose else None, estimated)

    def error(self, message: str, type: str, code: str | int, param: str | None = None) -> bytes:
        """An error frame, which OpenAI's clients raise; for a reply that isn't streamed, the body."""
        body = msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})
        return b"data: " + body + b"\n\n" if self.stream else body

    def done(self) -> bytes:
        """The end of the stream."""
        return b"data: [DONE]\n\n"

    def rewrite(self, event: Event, fates: Mapping[int, Fate]) -> bytes:
        """The event with these choices alone; altered ones are built anew from the fields that are known."""
        original = _decode(event)
        cuts = [fate for fate in fates.values() if isinstance(fate, Cut)]
        for cut in cuts:
            if cut.shape == "error":
                return self.error(cut.message, "content_filter", "content_filter")
        parts = {part.index: part for part in event.parts}
        choices = []
        for choice in original.get("choices") or []:
            index = choice.get("index", 0)
            fate = fates.get(index)
            if fate is None:
                continue
            if isinstance(fate, Cut):
                choices.append(_cut_message(index, fate))
            elif fate.texts is None:
                choices.append(choice)
            else:
                rebuilt = _rebuild(choice, parts[index], fate, self._body_key(event))
                if rebuilt is not None:
                    choices.append(rebuilt)
        if not choices and (original.get("choices") or not isinstance(original.get("usage"), dict)):
            return b""
        shown = {key: original[key] for key in self.KEPT_FIELDS if key in original}
        shown["choices"] = choices
        if isinstance(original.get("usage"), dict):
            shown["usage"] = _numbers(original["usage"])
        note = next((cut.note for cut in cuts if cut.note), None)
        if note is not None:
            shown["guardtrace"] = dict(note)
        body = msgspec.json.encode(shown)
        return body if event.kind is EventKind.COMPLETION else b"data: " + body + b"\n\n"

    @staticmethod
    def _body_key(event: Event) -> str:
        return "message" if event.kind is EventKind.COMPLETION else "delta"

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        note: Mapping[str, Any] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> bytes:
        head = {key: value for key, value in (self.head or {}).items() if value}
        chunk: dict[str, Any] = {
            "id": "chatcmpl-guardtrace",
            "created": 0,
            "model": self._model,
            **head,
            "object": "chat.completion.chunk",
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = dict(usage)
        if note is not None:
            chunk["guardtrace"] = dict(note)
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _cut_message(index: int, cut: Any) -> dict[str, Any]:
    refuses = cut.shape == "refusal"
    message = {
        "role": "assistant",
        "content": None if refuses else cut.message,
        "refusal": cut.message if refuses else None,
    }
    return {"index": index, "message": message, "logprobs": None, "finish_reason": "content_filter"}


def _decode(event: Event) -> dict[str, Any]:
    raw = event.raw
    if event.kind is not EventKind.COMPLETION:
        lines = (line for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
        raw = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    decoded: dict[str, Any] = msgspec.json.decode(raw)
    return decoded


def _numbers(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Usage without anything that isn't a count."""
    shown: dict[str, Any] = {}
    for key, value in usage.items():
        if isinstance(value, Mapping):
            shown[key] = _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            shown[key] = value
    return shown


def _rebuild(choice: dict[str, Any], part: ChoicePart, kept: Kept, body_key: str) -> dict[str, Any] | None:
    """A choice with new texts, and nothing of it that isn't known; None where nothing worth sending is left."""
    assert kept.texts is not None
    original = choice.get(body_key)
    body = _rebuild_body(original if isinstance(original, dict) else {}, part.spans, kept.texts)
    if kept.reasoning is not None:
        field, text = kept.reasoning
        body[field] = text
    if not body and part.finish_reason is None:
        return None
    if body_key == "message" and "content" not in body:
        body["content"] = None
    shown = {"index": part.index, body_key: body, "logprobs": None, "finish_reason": part.finish_reason}
    if isinstance(choice.get("stop_reason"), int):
        shown["stop_reason"] = choice["stop_reason"]
    return shown


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
