"""What the proxy itself writes into a reply that comes in choices: cuts, redactions, marks, usage and ends.

Everything here is valid for clients that know nothing of us: every frame has ``choices`` or is an error object, and
the ``guardtrace`` object only ever stands beside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from guardtrace_proxy.wire.chat_schema import named_by
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind
from guardtrace_proxy.wire.fates import Cut, Fate, Kept
from guardtrace_proxy.wire.usage import only_counts

BLANK = "\n\n"
"""Between a thinking tag that a cut closes and its message."""


class ChoicesWriter(ABC):
    """Writes frames with the stream's own id, model and created, once its first chunk was read."""

    HEAD_FIELDS: ClassVar = ("id", "object", "created", "model", "system_fingerprint")
    KEPT_FIELDS: ClassVar = (*HEAD_FIELDS, "service_tier")
    WHOLE: ClassVar[str]
    """What a reply is called."""
    OBJECT: ClassVar[str]
    """A chunk's ``object``."""
    OWN_ID: ClassVar[str]
    """The id of a stream that hasn't named its own."""

    def __init__(self, *, include_usage: bool, model: str) -> None:
        self.head: dict[str, Any] | None = None
        self.stream = True
        self._include_usage = include_usage
        self._model = model

    # What dialects differ in

    @abstractmethod
    def _closing(self, index: int, cut: Cut) -> list[dict[str, Any]]:
        """The choices that end one by policy, a frame each."""

    @abstractmethod
    def _empty(self, index: int) -> dict[str, Any]:
        """A choice that says nothing."""

    @abstractmethod
    def _cut_whole(self, index: int, cut: Cut) -> dict[str, Any]:
        """A choice of a whole reply that was cut."""

    @abstractmethod
    def _rebuild(self, choice: dict[str, Any], part: ChoicePart, kept: Kept, kind: EventKind) -> dict[str, Any] | None:
        """A choice with new texts, and nothing of it that isn't known; None where nothing worth sending is left."""

    # What they share

    def passes(self, event: Event) -> bool:
        """Always: no event repeats another."""
        return True

    def cut(self, index: int, cut: Cut) -> bytes:
        """The closing frames of one choice (design §3.3)."""
        if cut.shape == "error":
            return self.error(*cut.error)
        *others, last = self._closing(index, cut)
        return b"".join(self._chunk([choice]) for choice in others) + self._chunk([last], cut.note)

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        """An empty delta that carries a ``guardtrace`` object."""
        return self._chunk([self._empty(index)], note)

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        """The usage chunk after a cut; b"" where the request didn't ask for one."""
        if not self._include_usage:
            return b""
        if usage is not None:
            return self._chunk([], usage=only_counts(usage))
        estimated = {"prompt_tokens": 0, "completion_tokens": tokens_read, "total_tokens": tokens_read}
        return self._chunk([], {"usage_estimated": True} if expose else None, estimated)

    def error(self, message: str, type: str, code: str | int | None, param: str | None = None) -> bytes:
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
                return self.error(*cut.error)
        parts = {part.index: part for part in event.parts}
        choices = []
        for choice in original.get("choices") or []:
            index = choice.get("index", 0)
            fate = fates.get(index)
            if fate is None:
                continue
            if isinstance(fate, Cut):
                choices.append(self._cut_whole(index, fate))
            elif fate.texts is None:
                choices.append(choice)
            else:
                rebuilt = self._rebuild(choice, parts[index], fate, event.kind)
                if rebuilt is not None:
                    choices.append(rebuilt)
        if not choices and (original.get("choices") or not isinstance(original.get("usage"), dict)):
            return b""
        shown = named_by(original, self.KEPT_FIELDS)
        shown["choices"] = choices
        if isinstance(original.get("usage"), dict):
            shown["usage"] = only_counts(original["usage"])
        note = next((cut.note for cut in cuts if cut.note), None)
        if note is not None:
            shown["guardtrace"] = dict(note)
        body = msgspec.json.encode(shown)
        return body if event.kind is EventKind.COMPLETION else b"data: " + body + b"\n\n"

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        note: Mapping[str, Any] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> bytes:
        head = {key: value for key, value in (self.head or {}).items() if value}
        chunk: dict[str, Any] = {
            "id": self.OWN_ID,
            "created": 0,
            "model": self._model,
            **head,
            "object": self.OBJECT,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = dict(usage)
        if note is not None:
            chunk["guardtrace"] = dict(note)
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _decode(event: Event) -> dict[str, Any]:
    raw = event.raw
    if event.kind is not EventKind.COMPLETION:
        lines = (line for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
        raw = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    decoded: dict[str, Any] = msgspec.json.decode(raw)
    return decoded
