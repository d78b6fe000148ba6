"""What the proxy itself writes into a reply of the Responses API: cuts, redactions and ends.

Everything follows from what the client has: which items and parts stand open, what was said in them, and the last
sequence number. ``passes`` and ``rewrite`` keep count of it, in the order in which events leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from guardtrace_proxy.wire.events import Event, EventKind, Span
from guardtrace_proxy.wire.fates import Cut, Fate, Kept
from guardtrace_proxy.wire.named_events import frame
from guardtrace_proxy.wire.responses_client import Client
from guardtrace_proxy.wire.responses_frames import rebuild, rebuild_response
from guardtrace_proxy.wire.responses_places import DELTAS, DONES, TERMINAL, ResponsesEvent, Slot
from guardtrace_proxy.wire.strings import Path
from guardtrace_proxy.wire.usage import only_counts


class ResponsesWriter:
    """Writes frames with the response's own id, model and items."""

    def __init__(self, *, model: str) -> None:
        self.stream = True
        self._client = Client(model)
        self._notes: list[Mapping[str, Any]] = []
        self._cut_note: Mapping[str, Any] | None = None

    def passes(self, event: Event) -> bool:
        """Whether the event can leave as it came: not where it repeats what left otherwise."""
        if not isinstance(event, ResponsesEvent):
            return True
        if event.kind is EventKind.ERROR:
            return False  # it is numbered when it leaves
        if event.strips or self._repeats_altered(event):
            return False
        if self._notes and event.type in TERMINAL:
            return False
        for span in event.parts[0].spans:
            self._client.say(span.path, span.text)
        self._client.follow(event.type, event.delta, event.content)
        return True

    def rewrite(self, event: Event, fates: Mapping[int, Fate]) -> bytes:
        """The event, built anew from the fields that are known."""
        assert isinstance(event, ResponsesEvent)
        if event.kind is EventKind.ERROR:
            return self.error(**event.content)
        fate = fates.get(0)
        if isinstance(fate, Cut):
            return self._cut_whole(event, fate)
        if not isinstance(fate, Kept):
            return b""
        spans = event.parts[0].spans
        texts = [span.text for span in spans] if fate.texts is None else fate.texts
        texts = [self._as_twin(event, span, text) for span, text in zip(spans, texts, strict=True)]
        for span, text in zip(spans, texts, strict=True):
            self._client.say(span.path, text, altered=text != span.text)
        if event.kind is EventKind.COMPLETION:
            return msgspec.json.encode(rebuild_response(event.content, (), self._text_at(event)))
        if event.delta:
            content = self._rebuilt_delta(event, spans, texts)
        elif event.strips or self._repeats_altered(event) or any(self._client.is_altered(span.path) for span in spans):
            content = self._rebuilt(event, {span.path: text for span, text in zip(spans, texts, strict=True)})
        else:
            content = dict(event.content)
        if content is None:
            return b""
        if event.type in TERMINAL and self._notes:
            content["guardtrace"] = dict(self._notes[-1])
        self._client.follow(event.type, event.delta, content)
        return frame(content)

    def _as_twin(self, event: ResponsesEvent, span: Span, text: str) -> str:
        """What leaves of a text that was said before and judged once more: no more than of it then."""
        twin = event.twins.get(span.path)
        if twin is None or text != span.text or not self._client.is_altered(twin):
            return text
        return self._client.text(twin)

    def _rebuilt_delta(self, event: ResponsesEvent, spans: list[Span], texts: Any) -> dict[str, Any] | None:
        text = "".join(texts)
        if spans and not text:
            return None
        shown: dict[str, Any] = msgspec.to_builtins(event.delta)
        shown |= {"delta": text} | ({} if event.delta is None or event.delta.logprobs is None else {"logprobs": []})
        return {key: value for key, value in shown.items() if value is not None and key != "obfuscation"}

    def _rebuilt(self, event: ResponsesEvent, new: Mapping[Slot, str]) -> dict[str, Any] | None:
        """``new`` is what the event says for the first time."""
        content = rebuild(event.content, self._text_at(event))
        if "type" not in content:
            return None
        if event.type in DELTAS:
            content["delta"] = new.get(event.slots.get(("delta",), ()))
            return content if content["delta"] else None
        if event.type not in DONES and not {"item", "part", "response"} & content.keys():
            return None
        return content

    def _repeats_altered(self, event: ResponsesEvent) -> bool:
        said = (*event.slots.values(), *event.twins.values())
        return any(map(self._client.is_altered, said))

    def _text_at(self, event: ResponsesEvent) -> Any:
        def text_at(where: Path, original: str) -> str:
            slot = event.slots.get(where)
            return original if slot is None or not original else self._client.text(slot)

        return text_at

    def cut(self, index: int, cut: Cut) -> bytes:
        """Closes what stands open with what was released, then says the message as an item of its own. The last event
        comes with the usage."""
        if cut.shape == "error":
            return self.error(*cut.error)
        self._cut_note = cut.note
        frames = self._client.close(cut.close)
        frames += self._client.add_message(cut.message, refuses=cut.shape == "refusal")
        return b"".join(map(frame, frames))

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        """No event may be put in between, since all are numbered: the last one bears the mark."""
        self._notes.append(note)
        return b""

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        """``response.incomplete``, behind the closing frames of a cut."""
        counts = {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens_read,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_read,
        }
        content = self._client.incomplete(only_counts(usage) if usage is not None else counts)
        note = dict(self._cut_note or {})
        if usage is None and expose:
            note["usage_estimated"] = True
        if note:
            content["guardtrace"] = note
        return frame(content)

    def error(self, message: str, type: str, code: str | int | None, param: str | None = None) -> bytes:
        """An ``error`` event, with OpenAI's error object as well, which its clients raise; without streaming, the
        body."""
        fields = {"message": message, "type": type, "param": param, "code": code}
        if not self.stream:
            return msgspec.json.encode({"error": fields})
        self._client.sequence += 1
        code = None if code is None else str(code)
        shown = {"type": "error", "code": code, "message": message, "param": param}
        return frame(shown | {"sequence_number": self._client.sequence, "error": fields})

    def done(self) -> bytes:
        """Nothing: the last event says that it is the last."""
        return b""

    def _cut_whole(self, event: ResponsesEvent, cut: Cut) -> bytes:
        if cut.shape == "error":
            return self.error(*cut.error)
        usage = event.content.get("usage")
        bare = {**event.content, "output": []}
        bare = rebuild_response(bare, (), lambda where, text: "" if where in event.slots else text)
        self._client.follow("response.created", None, {"response": bare})
        self._client.add_message(cut.message, refuses=cut.shape == "refusal")
        response = self._client.incomplete(only_counts(usage) if isinstance(usage, dict) else None)["response"]
        if cut.note:
            response["guardtrace"] = dict(cut.note)
        return msgspec.json.encode(response)
