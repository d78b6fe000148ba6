"""Events of the Responses API as servers write them: every text in pieces, then again in the events that close it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HEAD: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1750000000,
    "model": "thinker",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "background": False,
    "max_output_tokens": 4096,
    "previous_response_id": None,
    "reasoning": None,
    "service_tier": "auto",
    "text": None,
    "truncation": "disabled",
    "user": None,
}
USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 21,
}
PARTS = {
    "output_text": ("response.output_text", "response.content_part", "content_index", "text"),
    "refusal": ("response.refusal", "response.content_part", "content_index", "refusal"),
    "reasoning_text": ("response.reasoning_text", "response.content_part", "content_index", "text"),
    "summary_text": ("response.reasoning_summary_text", "response.reasoning_summary_part", "summary_index", "text"),
}
CALLS = {
    "function_call": ("response.function_call_arguments", "arguments", "fc"),
    "custom_tool_call": ("response.custom_tool_call_input", "input", "ctc"),
}


def frame(content: dict[str, Any]) -> bytes:
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"event: {content['type']}\ndata: {data}\n\n".encode()


def content_of(frames: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each must bear its type's name."""
    found = []
    for block in frames.decode().replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if not lines or lines == ["data: [DONE]"]:
            continue
        data = "\n".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:"))
        content = json.loads(data)
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
        assert names in ([], [content["type"]]), names
        found.append(content)
    return found


@dataclass
class Writing:
    """Writes a stream, event by event. ``events`` are those so far."""

    events: list[dict[str, Any]] = field(default_factory=list)
    output: list[dict[str, Any]] = field(default_factory=list)
    final_ids: bool = True
    """Whether the last event gives items the ids that they had."""

    def add(self, type: str, **fields: Any) -> None:
        self.events.append({"type": type, "sequence_number": len(self.events), **fields})

    def begin(self, **more: Any) -> Writing:
        for name in ("created", "in_progress"):
            response = {**HEAD, **more, "status": "in_progress", "output": [], "usage": None}
            self.add(f"response.{name}", response=response)
        return self

    def item(self, kind: str, pieces: Iterable[str], part: str | None = None) -> Writing:
        """A message, or reasoning, with one part."""
        return self.parts(kind, [(part or ("output_text" if kind == "message" else "reasoning_text"), list(pieces))])

    def parts(self, kind: str, parts: list[tuple[str, list[str]]]) -> Writing:
        index = len(self.output)
        item: dict[str, Any] = {"id": f"{'msg' if kind == 'message' else 'rs'}_{index}", "type": kind}
        item |= {"role": "assistant", "content": []} if kind == "message" else {"summary": []}
        item["status"] = "in_progress"
        self.add("response.output_item.added", output_index=index, item=item)
        done: dict[str, Any] = {**item, "status": "completed"}
        for at, (name, pieces) in enumerate(parts):
            events, part_events, index_name, key = PARTS[name]
            where = {"item_id": item["id"], "output_index": index, index_name: at}
            more: dict[str, Any] = {"logprobs": []} if name == "output_text" else {}
            empty = {"type": name, key: "", **({"annotations": [], **more} if more else {})}
            self.add(f"{part_events}.added", **where, part=empty)
            for piece in pieces:
                self.add(f"{events}.delta", **where, delta=piece, **more)
            text = "".join(pieces)
            part = {**empty, key: text}
            self.add(f"{events}.done", **where, **{key: text}, **more)
            self.add(f"{part_events}.done", **where, part=part)
            into = "summary" if name == "summary_text" else "content"
            done[into] = [*done.get(into, []), part]
        self.add("response.output_item.done", output_index=index, item=done)
        self.output.append(done)
        return self

    def call(self, name: str, pieces: Iterable[str], kind: str = "function_call") -> Writing:
        index, pieces = len(self.output), list(pieces)
        events, key, prefix = CALLS[kind]
        item = {"id": f"{prefix}_{index}", "type": kind, "call_id": f"call_{index}", "name": name, key: ""}
        item["status"] = "in_progress"
        where = {"item_id": item["id"], "output_index": index}
        self.add("response.output_item.added", output_index=index, item=item)
        for piece in pieces:
            self.add(f"{events}.delta", **where, delta=piece)
        done = {**item, key: "".join(pieces), "status": "completed"}
        named = {"name": name} if kind == "function_call" else {}
        self.add(f"{events}.done", **where, **{key: done[key]}, **named)
        self.add("response.output_item.done", output_index=index, item=done)
        self.output.append(done)
        return self

    def end(self, status: str = "completed", **more: Any) -> Writing:
        self.add(f"response.{status}", response=self.whole(status=status, **more))
        return self

    def whole(self, **more: Any) -> dict[str, Any]:
        """The reply in one piece."""
        output = self.output
        if not self.final_ids:
            output = [{**item, "id": f"{item['id']}_again"} for item in output]
        return {**HEAD, "status": "completed", "output": output, "usage": USAGE, **more}

    @property
    def frames(self) -> list[bytes]:
        return [frame(event) for event in self.events]

    @property
    def stream(self) -> bytes:
        return b"".join(self.frames)


def words(text: str) -> list[str]:
    return [word + " " for word in text.split()]


def reply(thinking: str, answer: str) -> Writing:
    """Reasoning and a message, word by word, to their end."""
    writing = Writing().begin()
    if thinking:
        writing.item("reasoning", words(thinking))
    return writing.item("message", words(answer)).end()
