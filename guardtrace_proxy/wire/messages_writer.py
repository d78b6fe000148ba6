"""What the proxy itself writes into a reply of the Messages API: cuts, redactions and ends.

Clients add blocks up by their index, so those that don't leave are left out and the others are counted anew. A block
is announced together with the first that it says, since only then is it known that there will be one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.fates import Cut, Fate, Kept
from guardtrace_proxy.wire.messages_blocks import BLOCKS, CALL, THINKING, MessagesEvent, Terms
from guardtrace_proxy.wire.messages_errors import error_object, error_type
from guardtrace_proxy.wire.messages_frames import (
    head_of,
    rebuild,
    rebuild_whole,
    says,
    shifted,
    stopped,
    text_block,
    text_delta,
)
from guardtrace_proxy.wire.named_events import frame
from guardtrace_proxy.wire.usage import only_counts

NAMED = ("id", "type", "role", "model")
NOT_STOPPED = {"stop_reason": None, "stop_sequence": None}
OWN_ID = "msg_guardtrace"
"""The id of a stream that hasn't named its own."""
MAX_BEHIND = 1 << 14
"""Bytes that wait behind an announcement. What comes then leaves at once: an event of no block may stand anywhere."""


@dataclass(slots=True)
class _Block:
    """A block that was begun. ``index`` is the upstream's, ``shift`` how many before it were left out; ``opening`` its
    announcement, as long as it waits, ``unsigned`` the same without its signature, and ``behind`` what came behind
    that; ``is_empty``: its announcement says nothing; ``is_altered``: something of it left otherwise than it came."""

    type: str
    index: int
    shift: int
    opening: bytes | None = None
    unsigned: bytes | None = None
    behind: bytes = b""
    is_empty: bool = False
    is_altered: bool = False
    is_left_out: bool = False
    is_open: bool = True

    @property
    def shown(self) -> int:
        """Its index at the client."""
        return self.index - self.shift

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of what it said so far."""
        return self.opening is not None and self.is_empty and self.is_altered


class MessagesWriter:
    """Writes frames with the message's own id, model and blocks."""

    def __init__(self, *, model: str, request_id: str, terms: Terms) -> None:
        self.stream = True
        self._terms = terms
        self._request_id = request_id
        self._head: dict[str, Any] = {"id": OWN_ID, "type": "message", "role": "assistant", "model": model}
        self._began = False
        self._ended = False
        self._blocks: dict[int, _Block] = {}
        self._waiting: _Block | None = None
        """The block whose announcement waits."""
        self._left_out: list[int] = []
        """Indices of the blocks that were left out, in order."""
        self._next = 0
        """The index of the client's next block."""
        self._cut: Cut | None = None

    # What leaves

    def passes(self, event: Event) -> bool:
        """Whether the event can leave as it came: not where a block before it was left out, or its own isn't whole."""
        if not isinstance(event, MessagesEvent):
            return True
        if event.kind is EventKind.COMPLETION:
            return not event.is_hidden
        if event.type == "content_block_start" or event.is_hidden:
            return False
        block = self._blocks.get(event.index)
        if block is None:
            self._follow(event.type, event.content)
            return self._waiting is None and (event.index < 0 or not self._shift(event.index))
        if block.is_left_out or block.opening is not None or block.shift or (event.signs and block.is_altered):
            return False
        block.is_open = block.is_open and event.type != "content_block_stop"
        return True

    def rewrite(self, event: Event, fates: Mapping[int, Fate]) -> bytes:
        """The event, built anew from the fields that are known where something of it may not leave."""
        assert isinstance(event, MessagesEvent)
        if not event.parts:
            return self._behind(event.raw)
        fate = fates.get(0)
        if isinstance(fate, Cut):
            return self._cut_whole(event, fate)
        if not isinstance(fate, Kept):
            return b""
        spans = event.parts[0].spans
        texts = [span.text for span in spans] if fate.texts is None else fate.texts
        new = {span.path: text for span, text in zip(spans, texts, strict=True)}
        is_altered = any(text != span.text for span, text in zip(spans, texts, strict=True))
        if event.kind is EventKind.COMPLETION:
            return msgspec.json.encode(rebuild_whole(event.content, new if is_altered else None, self._terms))
        content = event.content if event.delta is None else msgspec.to_builtins(event.delta)
        raw = None if is_altered or event.is_hidden or self._signs_altered(event) else event.raw
        if raw is None:
            content = rebuild(content, new, self._terms)
        if event.type == "content_block_start":
            return self._begin(event, content, raw)
        block = self._blocks.get(event.index)
        if block is None:
            return self._without_block(event, content, raw)
        return self._of_block(event, block, content, raw)

    def _signs_altered(self, event: MessagesEvent) -> bool:
        """Whether it holds the signature of a block that left otherwise than it came: then it vouches for nothing."""
        block = self._blocks.get(event.index)
        return event.signs and block is not None and block.is_altered

    def _begin(self, event: MessagesEvent, content: dict[str, Any], raw: bytes | None) -> bytes:
        """A block is announced; at once where it says something already."""
        before = self._settle(is_whole=False)
        found = content.get("content_block")
        shown: dict[str, Any] = found if isinstance(found, dict) else {}
        kind = str(shown.get("type"))
        if event.index in self._blocks and self._blocks[event.index].is_left_out:
            self._left_out.remove(event.index)
        block = _Block(kind, event.index, self._shift(event.index), is_altered=raw is None)
        self._blocks[event.index] = block
        text = BLOCKS.get(kind)
        if event.is_hidden or (block.is_altered and text is None):
            return before + self._leave_out(block)
        block.opening = shifted(content, raw, block.shift)
        block.is_empty = text is not None and not shown.get(text.key)
        if text is THINKING and shown.get("signature"):
            unsigned = {**content, "content_block": {**shown, "signature": ""}}
            block.unsigned = shifted(unsigned, None, block.shift)
        self._waiting = block
        waits = block.is_empty or block.unsigned is not None
        return before if waits else before + self._announce(block, is_whole=False)

    def _of_block(self, event: MessagesEvent, block: _Block, content: dict[str, Any], raw: bytes | None) -> bytes:
        """A delta, or the end of a block."""
        block.is_altered = block.is_altered or raw is None
        ends = event.type == "content_block_stop"
        block.is_open = block.is_open and not ends
        if block.is_left_out:
            return b""
        if ends and block.is_gone:
            return self._leave_out(block)
        if raw is None and not ends and not says(content):
            return b""
        return self._announce(block, is_whole=ends) + shifted(content, raw, block.shift)

    def _without_block(self, event: MessagesEvent, content: dict[str, Any], raw: bytes | None) -> bytes:
        if raw is None and event.type not in ("message_start", "message_delta", "message_stop"):
            return b""
        self._follow(event.type, content)
        sent = shifted(content, raw, self._shift(event.index))
        if event.type == "message_delta":  # nothing will be said any more
            return self._settle(is_whole=True) + sent
        return self._behind(sent)

    def _settle(self, *, is_whole: bool) -> bytes:
        """What becomes of a block that waits, where no more of it comes."""
        block = self._waiting
        if block is None:
            return b""
        return self._leave_out(block) if block.is_gone else self._announce(block, is_whole=is_whole)

    def _behind(self, frame: bytes) -> bytes:
        """An event of no block leaves behind the announcement that came before it."""
        if self._waiting is None or len(self._waiting.behind) > MAX_BEHIND:
            return frame
        self._waiting.behind += frame
        return b""

    def _announce(self, block: _Block, *, is_whole: bool) -> bytes:
        """The block's announcement, if it still waits; with a signature only where nothing more of the block comes."""
        if block.opening is None:
            return b""
        is_signed = is_whole and not block.is_altered
        opening, block.opening = block.opening if is_signed else block.unsigned or block.opening, None
        self._waiting = None
        self._next = max(self._next, block.shown + 1)
        return opening + block.behind

    def _leave_out(self, block: _Block) -> bytes:
        block.is_left_out = True
        block.opening = self._waiting = None
        insort(self._left_out, block.index)
        return block.behind

    def _shift(self, index: int) -> int:
        """How many blocks before this one were left out."""
        return bisect_left(self._left_out, index)

    def _follow(self, type: str, content: Mapping[str, Any]) -> None:
        message = content.get("message")
        if type == "message_start" and isinstance(message, dict):
            self._began = True
            self._learn(message)
        self._ended = self._ended or type == "message_stop"

    def _learn(self, message: Mapping[str, Any]) -> None:
        """Its id and model, and what else it says of itself."""
        head = head_of(message, self._terms)
        self._head |= {key: value for key, value in head.items() if key not in NAMED or isinstance(value, str)}

    # What ends it

    def cut(self, index: int, cut: Cut) -> bytes:
        """Nothing yet, but for an error: the closing frames come with the usage, behind all that may still leave."""
        self._cut = cut
        if cut.shape != "error":
            return b""
        self._ended = True
        return self.error(*cut.error)

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        """A ``ping``, which may stand anywhere, with a ``guardtrace`` object."""
        return frame({"type": "ping", "guardtrace": dict(note)})

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        """The closing frames of a cut: open blocks are closed with what was released, a call is left open; then the
        policy's message as a block of its own, and ``message_delta``."""
        cut, block = self._cut, self._waiting
        assert cut is not None
        begin = {"type": "message_start", "message": self._message([], NOT_STOPPED, {})}
        sent = b"" if self._began else frame(begin)
        if block is not None and not block.is_empty:
            sent += self._announce(block, is_whole=False)
        frames = self._closed(cut.close)
        if cut.shape != "refusal":
            frames += text_block(self._next, cut.message)
        note = dict(cut.note or {})
        if usage is None and expose:
            note["usage_estimated"] = True
        counts = {"output_tokens": tokens_read} | only_counts(usage or {})
        ending: dict[str, Any] = {"type": "message_delta", "delta": stopped(cut), "usage": counts}
        return sent + b"".join(map(frame, [*frames, ending | ({"guardtrace": note} if note else {})]))

    def error(self, message: str, type: str, code: str | int | None, param: str | None = None) -> bytes:
        """An ``error`` event, which Anthropic's clients raise; without streaming, the body."""
        content = error_object(error_type(type, code), message, self._request_id)
        return frame(content) if self.stream else msgspec.json.encode(content)

    def done(self) -> bytes:
        """``message_stop``, unless the client has it, or an error in its place."""
        return b"" if self._ended else frame({"type": "message_stop"})

    def _closed(self, tag: str | None) -> list[dict[str, Any]]:
        """The ends of the blocks that the client has open; ``tag`` first, where a thinking tag is."""
        frames: list[dict[str, Any]] = []
        for block in self._blocks.values():
            if not block.is_open or block.is_left_out or block.opening is not None or block.type.endswith(CALL):
                continue
            if tag is not None and block.type == "text":
                frames.append(text_delta(block.shown, tag))
            frames.append({"type": "content_block_stop", "index": block.shown})
        return frames

    def _message(self, content: list[Any], ending: Mapping[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
        counts = {"input_tokens": 0, "output_tokens": 0, **usage}
        return {**self._head, "content": content, **ending, "usage": counts}

    def _cut_whole(self, event: MessagesEvent, cut: Cut) -> bytes:
        if cut.shape == "error":
            return self.error(*cut.error)
        self._learn(event.content)
        usage = self._head.get("usage")
        content = [] if cut.shape == "refusal" else [{"type": "text", "text": cut.message}]
        message = self._message(content, stopped(cut), usage if isinstance(usage, dict) else {})
        return msgspec.json.encode(message | ({"guardtrace": dict(cut.note)} if cut.note else {}))
