"""Events of the Messages API as servers write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

USAGE = {"input_tokens": 9, "output_tokens": 1}
SIGNATURE = "EqQBCkYIBxgCKkD9" + "zX3vQm8Lr2Kp7TbY" * 6
HEAD: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "thinker"}


def frame(content: dict[str, Any]) -> bytes:
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"event: {content['type']}\ndata: {data}\n\n".encode()


@dataclass
class Writing:
    """Writes a stream, event by event. ``blocks`` are the reply's so far."""

    events: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None

    def add(self, type: str, **fields: Any) -> None:
        self.events.append({"type": type, **fields})

    def begin(self) -> Writing:
        ending = {"stop_reason": None, "stop_sequence": None}
        self.add("message_start", message={**HEAD, "content": [], **ending, "usage": USAGE})
        self.add("ping")
        return self

    def text(self, pieces: Iterable[str]) -> Writing:
        return self._block({"type": "text", "text": ""}, "text", "text_delta", list(pieces))

    def thinking(self, pieces: Iterable[str], signature: str | None = SIGNATURE) -> Writing:
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        return self._block(empty, "thinking", "thinking_delta", list(pieces), signature)

    def redacted(self, data: str = SIGNATURE) -> Writing:
        return self._block({"type": "redacted_thinking", "data": data}, "data", "", [])

    def call(self, name: str, pieces: Iterable[str]) -> Writing:
        pieces = list(pieces)
        index = len(self.blocks)
        empty = {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}}
        self._block(empty, "partial_json", "input_json_delta", pieces)
        self.blocks[-1] = {**empty, "input": json.loads("".join(pieces) or "{}")}
        return self

    def other(self, block: dict[str, Any]) -> Writing:
        """A block that comes whole."""
        return self._block(block, "", "", [])

    def _block(
        self, empty: dict[str, Any], key: str, delta: str, pieces: list[str], signature: str | None = None
    ) -> Writing:
        index = len(self.blocks)
        self.add("content_block_start", index=index, content_block=empty)
        for piece in pieces:
            self.add("content_block_delta", index=index, delta={"type": delta, key: piece})
        whole = {**empty, **({key: "".join(pieces)} if key in empty and pieces else {})}
        if signature is not None:
            whole["signature"] = signature
            self.add("content_block_delta", index=index, delta={"type": "signature_delta", "signature": signature})
        self.add("content_block_stop", index=index)
        self.blocks.append(whole)
        return self

    def end(self, stop_reason: str = "end_turn") -> Writing:
        self.stop_reason = stop_reason
        self.add(
            "message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage={"output_tokens": 12}
        )
        self.add("message_stop")
        return self

    def whole(self, **more: Any) -> dict[str, Any]:
        """The reply in one piece."""
        ending = {"stop_reason": self.stop_reason, "stop_sequence": None}
        return {**HEAD, "content": self.blocks, **ending, "usage": {**USAGE, "output_tokens": 12}, **more}

    @property
    def frames(self) -> list[bytes]:
        return [frame(event) for event in self.events]

    @property
    def stream(self) -> bytes:
        return b"".join(self.frames)


def words(text: str) -> list[str]:
    return [word + " " for word in text.split()]


def reply(thinking: str, answer: str) -> Writing:
    """Thinking and a text, word by word, to their end."""
    writing = Writing().begin()
    if thinking:
        writing.thinking(words(thinking))
    return writing.text(words(answer)).end()
