"""What the client of a response has: its items and parts, what was said in them, the last sequence number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guardtrace_proxy.wire.responses_frames import rebuild_item, rebuild_response
from guardtrace_proxy.wire.responses_places import CALLS, DELTAS, LIFECYCLE, PARTS, Delta, Slot, ident_of

PART_EVENTS = {
    "output_text": ("response.output_text", "response.content_part", "content_index"),
    "refusal": ("response.refusal", "response.content_part", "content_index"),
    "reasoning_text": ("response.reasoning_text", "response.content_part", "content_index"),
    "summary_text": ("response.reasoning_summary_text", "response.reasoning_summary_part", "summary_index"),
}
"""By a part's type: the names of its events, and of its index."""


@dataclass
class Part:
    """A part that was begun. ``name`` is what its own events begin with."""

    type: str
    name: str
    is_done: bool = False
    has_said: bool = False
    """Whether its whole text was said again."""


@dataclass
class Item:
    """An item that was begun, as it was announced; ``final`` is how it ended."""

    announced: dict[str, Any]
    parts: dict[tuple[str, int], Part] = field(default_factory=dict)
    """By the name of its index, and the index."""
    final: dict[str, Any] | None = None


class Client:
    """Follows the events that leave."""

    def __init__(self, model: str) -> None:
        self.sequence = -1
        self._response: dict[str, Any] = {
            "id": "resp_guardtrace",
            "object": "response",
            "created_at": 0,
            "model": model,
        }
        self._items: dict[int, Item] = {}
        self._texts: dict[Slot, list[str]] = {}
        self._altered: set[Slot] = set()

    # What leaves

    def say(self, slot: Slot, text: str, *, altered: bool = False) -> None:
        """A text, or a piece of one, leaves."""
        self._texts.setdefault(slot, []).append(text)
        if altered:
            self._altered.add(slot)

    def is_altered(self, slot: Slot) -> bool:
        """Whether any of a text left otherwise than it came."""
        return slot in self._altered

    def text(self, slot: Slot) -> str:
        """What was said."""
        return "".join(self._texts.get(slot, ()))

    def follow(self, type: str, delta: Delta | None, content: Mapping[str, Any]) -> None:
        """An event leaves."""
        number = content.get("sequence_number") if delta is None else delta.sequence_number
        # Servers that don't number their events number none.
        self.sequence = number if isinstance(number, int) and number >= 0 else self.sequence + 1
        if delta is not None:
            self._follow_delta(delta)
            return
        index = content.get("output_index")
        if type in LIFECYCLE and isinstance(content.get("response"), dict):
            self._response = rebuild_response(content["response"], (), _as_it_is)
        elif not isinstance(index, int):
            return
        elif type == "response.output_item.added" and isinstance(content.get("item"), dict):
            self._items[index] = Item(content["item"])
        elif type == "response.output_item.done" and isinstance(content.get("item"), dict):
            self._items.setdefault(index, Item(content["item"])).final = content["item"]
        elif index in self._items:
            _follow_part(self._items[index], type, content)

    def _follow_delta(self, delta: Delta) -> None:
        """Some servers don't announce parts."""
        item, text = self._items.get(delta.output_index), DELTAS[delta.type]
        if item is None or text.name not in PART_EVENTS:
            return
        _, name, index = PART_EVENTS[text.name]
        at = delta.summary_index if index == "summary_index" else delta.content_index
        item.parts.setdefault((index, at or 0), Part(text.name, name))

    # What ends it

    def close(self, tag: str | None) -> list[dict[str, Any]]:
        """The events that close what stands open; ``tag`` first, where a thinking tag does. A call is never
        completed: it stays open, and isn't among the output."""
        frames: list[dict[str, Any]] = []
        for index, item in sorted(self._items.items()):
            kind = str(item.announced.get("type"))
            if item.final is not None or kind in CALLS or kind not in ("message", "reasoning"):
                continue
            for (name, at), part in sorted(item.parts.items()):
                if not part.is_done:
                    frames += self._close_part(index, item, name, at, part, tag)
            item.final = self._closed(index, item)
            frames.append(self._event("response.output_item.done", output_index=index, item=item.final))
        return frames

    def add_message(self, message: str, *, refuses: bool) -> list[dict[str, Any]]:
        """An item of its own that says the policy's message."""
        index = max(self._items, default=-1) + 1
        item = {"type": "message", "id": "msg_guardtrace", "role": "assistant", "status": "in_progress", "content": []}
        self._items[index] = Item(item)
        kind = "refusal" if refuses else "output_text"
        at = {"item_id": item["id"], "output_index": index, "content_index": 0}
        more: dict[str, Any] = {} if refuses else {"logprobs": []}
        part = _part(kind, message)
        self._items[index].final = {**item, "status": "completed", "content": [part]}
        return [
            self._event("response.output_item.added", output_index=index, item=item),
            self._event("response.content_part.added", **at, part=_part(kind, "")),
            self._event(f"response.{kind}.delta", **at, delta=message, **more),
            self._event(f"response.{kind}.done", **at, **{PARTS[kind].key: message}, **more),
            self._event("response.content_part.done", **at, part=part),
            self._event("response.output_item.done", output_index=index, item=self._items[index].final),
        ]

    def incomplete(self, usage: Mapping[str, Any] | None) -> dict[str, Any]:
        """The last event of a response that was cut."""
        output = [item.final for _, item in sorted(self._items.items()) if item.final is not None]
        response = {
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": "content_filter"},
            "output": output,
            "usage": usage,
        }
        return self._event("response.incomplete", response=response)

    def _close_part(
        self, index: int, item: Item, name: str, at: int, part: Part, tag: str | None
    ) -> list[dict[str, Any]]:
        slot = self._slot(index, item, at, part)
        where = {"item_id": ident_of(item.announced), "output_index": index, name: at}
        events = PART_EVENTS[part.type][0]
        frames = []
        more: dict[str, Any] = {"logprobs": []} if part.type == "output_text" else {}
        if tag is not None and part.type == "output_text":
            self.say(slot, tag)
            frames.append(self._event(f"{events}.delta", **where, delta=tag, **more))
        text = self.text(slot)
        if not part.has_said:
            frames.append(self._event(f"{events}.done", **where, **{PARTS[part.type].key: text}, **more))
        frames.append(self._event(f"{part.name}.done", **where, part=_part(part.type, text)))
        part.is_done = True
        return frames

    def _closed(self, index: int, item: Item) -> dict[str, Any]:
        """An item with what was said in it."""
        closed = {**rebuild_item(item.announced, (), _as_it_is), "status": "incomplete"}
        for (name, at), part in sorted(item.parts.items()):
            key = "summary" if name == "summary_index" else "content"
            closed[key] = [*closed.get(key, [])[:at], _part(part.type, self.text(self._slot(index, item, at, part)))]
        return closed

    def _slot(self, index: int, item: Item, at: int, part: Part) -> Slot:
        return (index, ident_of(item.announced), at, part.type)

    def _event(self, type: str, **fields: Any) -> dict[str, Any]:
        self.sequence += 1
        return {"type": type, "sequence_number": self.sequence, **fields}


def _follow_part(item: Item, type: str, content: Mapping[str, Any]) -> None:
    name = "summary_index" if "summary_index" in content else "content_index"
    at = content.get(name)
    if not isinstance(at, int):
        return
    family, _, what = type.rpartition(".")
    part, known = content.get("part"), item.parts.get((name, at))
    if what == "added" and isinstance(part, dict) and str(part.get("type")) in PARTS:
        item.parts[name, at] = Part(str(part["type"]), family)
    elif what == "done" and known is not None:
        known.is_done = known.is_done or family == known.name
        known.has_said = True


def _part(kind: str, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, PARTS[kind].key: text, **more}


def _as_it_is(_: Any, text: str) -> str:
    return text
