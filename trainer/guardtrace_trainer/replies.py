"""A model's reply as the proxy's own ``wire`` reads it: thinking and answer, streamed or whole, in every dialect.

Format: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Event, EventKind, MoreText, Phase, SpanKind
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_trainer.rows import UNREADABLE

MAX_EVENT_BYTES = 8 << 20
MAX_SHOWN = 300
"""Characters of a server's own message that go into ours."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which asking again may help."""


@dataclass(frozen=True)
class ModelReply:
    """What a model said."""

    thinking: str
    answer: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reading:
    """A reply as it comes in."""

    def __init__(self, style: ThinkingStyle) -> None:
        self._stream = ChatStream(style, include_usage=True, max_event_bytes=MAX_EVENT_BYTES)
        self._parts: dict[Phase, list[str]] = {Phase.THINKING: [], Phase.ANSWERING: []}
        self._usage: dict[str, Any] = {}
        self._finish: str | None = None
        self.trouble: str | None = None
        self.refused: int | None = None
        """The status of a trouble that asking again won't end."""

    def feed(self, data: bytes) -> None:
        for event in self._stream.feed(data):
            self._take(event)

    def end(self) -> None:
        for event in self._stream.end():
            self._take(event)
        if self.trouble is None and self._finish is None:
            self.trouble = "the stream ended without a finish"

    def whole(self, body: bytes) -> None:
        self._take(self._stream.completion(body))
        if self.trouble is None and self._finish is None:
            self.trouble = "the reply has no choice"

    def reply(self) -> ModelReply:
        """What came in."""
        usage = self._usage
        return ModelReply(
            "".join(self._parts[Phase.THINKING]).strip(),
            "".join(self._parts[Phase.ANSWERING]).strip(),
            self._finish,
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )

    def _take(self, event: Event | MoreText) -> None:
        if self.trouble is None and event.kind in (EventKind.ERROR, EventKind.MALFORMED):
            self.trouble, self.refused = _trouble(event)
        self._usage = event.usage or self._usage
        for part in event.parts:
            self._finish = part.finish_reason or self._finish
            unknown = [span.text for span in part.spans if span.kind is SpanKind.OTHER]
            for segment in part.segments:
                if segment.text in unknown:  # a vendor's own field, which the gate audits: no word of the model's
                    unknown.remove(segment.text)
                elif not segment.tag:
                    self._parts[segment.phase].append(segment.text)


def _trouble(event: Event | MoreText) -> tuple[str, int | None]:
    """What an error or unreadable event says, and its status where asking again won't help."""
    detail = event.detail or "the server sent an error in mid-stream"
    try:
        error = msgspec.json.decode(event.raw.removeprefix(b"data: "))["error"]
    except (*UNREADABLE, TypeError, KeyError):
        return detail, None
    fields = error if isinstance(error, dict) else {"message": error}
    code = str(fields.get("code"))
    refused = int(code) if code.isdecimal() and 400 <= int(code) < 500 and int(code) not in RETRIED else None
    return f"the server sent an error ({code}): {str(fields.get('message'))[:MAX_SHOWN]}", refused


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
