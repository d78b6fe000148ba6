"""What a client makes of the bytes: a parser of event streams that shares nothing with the proxy's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.properties.alphabet import betrayed

BLANK = re.compile(rb"\r\n\r\n|\n\n")


@dataclass
class Frame:
    """One event that a client received. ``at`` is the log entry that brought it."""

    raw: bytes
    at: int
    data: str = ""
    content: dict[str, Any] = field(default_factory=dict)
    betrays: frozenset[str] = frozenset()
    event: int | None = None
    """The upstream's event that has these very bytes."""
    rewrites: int | None = None
    """The upstream's event whose text it holds, where it was altered."""
    late: bool = False
    """Whether that event should have come before what came already."""
    kind: str = ""
    """passed, or one of the proxy's own: rewritten, message, closing, note, usage, error, done."""

    @property
    def choices(self) -> list[dict[str, Any]]:
        return self.content.get("choices") or []


class Unreadable(Exception):
    """No client could read this."""


def frames_of(data: bytes, at: int, body_key: str = "delta") -> list[Frame]:
    """The events of one write, which must be whole ones."""
    found: list[Frame] = []
    start = 0
    for match in BLANK.finditer(data):
        found.append(_frame(data[start : match.end()], at, body_key))
        start = match.end()
    if data[start:]:
        raise Unreadable(f"half an event was sent: {data[start:]!r}")
    return found


def _frame(raw: bytes, at: int, body_key: str) -> Frame:
    lines = raw.decode().splitlines()
    data = "\n".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:"))
    if data == "[DONE]":
        return Frame(raw, at, data)
    try:
        content = json.loads(data)
    except ValueError:
        raise Unreadable(f"neither JSON nor [DONE]: {raw!r}") from None
    if not isinstance(content, dict) or not (isinstance(content.get("choices"), list) or content.get("error")):
        raise Unreadable(f"neither choices nor an error: {raw!r}")
    betrays = frozenset(betrayed(content))
    if content.get("object") == "text_completion":
        content = _as_chat(content, body_key)
    return Frame(raw, at, data, content, betrays)


def _as_chat(content: dict[str, Any], body_key: str) -> dict[str, Any]:
    """A completion in the shape of a chat completion, so that both are held against the same promises. Who speaks is
    understood there."""
    choices = []
    for choice in content["choices"]:
        text = choice["text"]
        said = {"role": "assistant", "content": text} if text else {}
        finished = choice["finish_reason"]
        rest = {key: value for key, value in choice.items() if key not in ("text", "logprobs")}
        tokens = choice.get("logprobs")
        logprobs = tokens and {
            "content": [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in tokens["tokens"]]
        }
        choices.append({**rest, body_key: said, "logprobs": logprobs, "finish_reason": finished})
    return {**content, "object": "chat.completion.chunk", "choices": choices}


def texts(delta: dict[str, Any]) -> list[tuple[str, str]]:
    """What a delta or message adds to which channel."""
    found: list[tuple[str, str]] = []
    for key, value in delta.items():
        if key == "role":
            continue
        if isinstance(value, str):
            found.append((key, value))
        elif key == "reasoning_details":
            found += [(key, part["text"]) for part in value]
        elif key == "tool_calls":
            for position, call in enumerate(value or []):
                number = call.get("index", position)
                found += [(f"call {number} {name}", text) for name, text in call["function"].items()]
        elif value is not None:
            found.append((key, json.dumps(value, ensure_ascii=False)))
    return [(channel, text) for channel, text in found if text]
