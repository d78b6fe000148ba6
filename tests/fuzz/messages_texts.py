"""Where text may stand in an event of the Messages API, found without the reader's own code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.fuzz.choices_texts import BASE64, NAME, PLAIN_KEY, SHORT, WORD, Within, texts

LABELS = ("type", "id", "tool_use_id", "role", "stop_reason")
SIGNATURE = re.compile(rf"[A-Za-z0-9+/=_-]{{0,64}}|{BASE64.pattern}")
OF_MESSAGE = ("model", "usage", "stop_details")
"""None of these requests has a stop sequence that a reply could repeat."""
CATEGORY = re.compile(r"[a-z_]{0,32}")


def texts_of_event(event: dict[str, Any]) -> Iterator[str]:
    """Of any type."""
    kind = event["type"]
    for key, value in event.items():
        if key == "content_block" and isinstance(value, dict) and kind == "content_block_start":
            yield from texts_of_block(value)
        elif key == "delta" and isinstance(value, dict):
            signature = "signature" if value.get("type") == "signature_delta" else ""
            yield from texts_of_fields(value, signature, ("stop_details",) if kind == "message_delta" else ())
        elif key == "message" and isinstance(value, dict) and kind == "message_start":
            yield from texts_of_fields(value, shaped=OF_MESSAGE)
        else:
            yield from texts_of_field(key, value, ("usage",) if kind == "message_delta" else ())


def texts_of_message(message: dict[str, Any]) -> Iterator[str]:
    """A whole reply."""
    for block in message["content"]:
        yield from texts_of_block(block) if isinstance(block, dict) else texts(block, None)
    yield from texts_of_fields({key: value for key, value in message.items() if key != "content"}, shaped=OF_MESSAGE)


def texts_of_block(block: dict[str, Any]) -> Iterator[str]:
    """A block; encrypted thinking never leaves. A call's input is one text, as JSON."""
    kind = block.get("type")
    if kind == "tool_use":
        yield from map(said_in_json, strings({key: block[key] for key in ("name", "input") if key in block}))
        yield from texts_of_fields({key: value for key, value in block.items() if key not in ("name", "input")})
    elif kind == "redacted_thinking":
        yield from texts_of_fields({key: value for key, value in block.items() if key != "data"})
    else:
        yield from texts_of_fields(block, "signature" if kind == "thinking" else "")


def texts_of_fields(fields: dict[str, Any], signature: str = "", shaped: tuple[str, ...] = ()) -> Iterator[str]:
    """``signature`` is the key of one; ``shaped`` are those that hold no text in a shape of their own."""
    for key, value in fields.items():
        if not (key == signature and isinstance(value, str) and SIGNATURE.fullmatch(value)):
            yield from texts_of_field(key, value, shaped)


def texts_of_field(key: str, value: Any, shaped: tuple[str, ...]) -> Iterator[str]:
    """Any other field."""
    if key in LABELS and isinstance(value, str) and WORD.fullmatch(value):
        return
    if not PLAIN_KEY.fullmatch(key):
        yield key
    if key not in shaped:
        yield from texts(value, None)
    elif key == "stop_details" and isinstance(value, dict):
        yield from texts({**value, "category": None}, None)
        yield from texts(value.get("category"), CATEGORY)
    else:
        yield from texts(value, {"usage": SHORT, "model": NAME}.get(key))


def strings(value: Any) -> Iterator[str]:
    """All strings below a value, and all keys but those two of the call's own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("name", "input"):
                yield key
            yield from strings(inner)


def said_in_json(text: str) -> Within:
    return Within(json.dumps(text, ensure_ascii=False)[1:-1])
