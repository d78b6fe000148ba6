"""Events of the Messages API as the proxy writes them: its own, and the upstream's built anew from what is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardtrace_proxy.wire.fates import Cut
from guardtrace_proxy.wire.messages_blocks import (
    BLOCKS,
    CALL,
    DELTAS,
    NOWHERE,
    OF_DELTA,
    OF_EVENT,
    OF_MESSAGE,
    REDACTED,
    Terms,
    is_label,
    is_plain,
    is_signature,
    said_by,
)
from guardtrace_proxy.wire.named_events import frame
from guardtrace_proxy.wire.strings import PLAIN_KEY, Path, is_encrypted
from guardtrace_proxy.wire.usage import only_counts

Texts = Mapping[Path, str]
"""By the place of a string: what leaves there."""


def rebuild(event: Mapping[str, Any], texts: Texts, terms: Terms) -> dict[str, Any]:
    """An event of which something may not leave."""
    kind = str(event.get("type"))
    shown: dict[str, Any] = {}
    for key, value in event.items():
        if (kind, key) == ("content_block_start", "content_block") and isinstance(value, dict):
            shown[key] = rebuild_block(value, (key,), texts)
        elif key == "delta" and isinstance(value, dict):
            shown[key] = _rebuild_delta(value, texts, OF_DELTA.get(kind, NOWHERE), terms)
        elif (kind, key) == ("message_start", "message") and isinstance(value, dict):
            shown[key] = head_of(value, terms) | {"content": []}
        elif is_plain(key, value, OF_EVENT.get(kind, NOWHERE), terms):
            shown[key] = _counted(key, value)
    return shown


def head_of(message: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """A reply without what it says."""
    return {
        key: _counted(key, value)
        for key, value in message.items()
        if key != "content" and is_plain(key, value, OF_MESSAGE, terms)
    }


def _counted(key: str, value: Any) -> Any:
    return only_counts(value) if key == "usage" and isinstance(value, dict) else value


def rebuild_block(block: Mapping[str, Any], where: Path, texts: Texts) -> dict[str, Any]:
    """A block with its text. A thinking block of which something is missing loses its signature, a text its sources."""
    kind = block.get("type")
    text = BLOCKS.get(str(kind))
    shown: dict[str, Any] = {}
    for key, value in block.items():
        here = (*where, key)
        if text is not None and key == text.key:
            shown[key] = texts.get(here, value) if isinstance(value, str) else ""
        elif kind == CALL and key in ("name", "input"):
            shown[key] = value
        elif key == "signature" and kind == "thinking":
            is_whole = is_signature(value) and all(texts.get((*where, each), old) == old for each, old in block.items())
            shown[key] = value if is_whole else ""
        elif key == "citations" and value is not None:
            shown[key] = []
        elif is_label(key, value) or (value is None and PLAIN_KEY.fullmatch(key)) or _is_secret(kind, key, value):
            shown[key] = value
    return shown


def _is_secret(kind: Any, key: str, value: Any) -> bool:
    return kind == REDACTED and key == "data" and isinstance(value, str) and is_encrypted(value)


def _rebuild_delta(delta: Mapping[str, Any], texts: Texts, shaped: frozenset[str], terms: Terms) -> dict[str, Any]:
    text = DELTAS.get(str(delta.get("type")))
    shown: dict[str, Any] = {}
    for key, value in delta.items():
        if text is not None and key == text.key:
            shown[key] = texts.get(("delta", key), value) if isinstance(value, str) else ""
        elif is_plain(key, value, shaped, terms):
            shown[key] = value
    return shown


def stopped(cut: Cut) -> dict[str, Any]:
    """How a reply ends that was cut. The API's own refusals say their reason beside the content."""
    stopped: dict[str, Any] = {"stop_reason": "refusal", "stop_sequence": None}
    if cut.shape == "refusal":
        stopped["stop_details"] = {"type": "refusal", "category": None, "explanation": cut.message}
    return stopped


def rebuild_whole(message: Mapping[str, Any], new: Texts | None, terms: Terms) -> dict[str, Any]:
    """A whole reply with ``new`` texts, or with its own. Blocks of which nothing is left are left out."""
    content = []
    for index, block in enumerate(message["content"]):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == REDACTED and not terms.keeps_encrypted:
            continue
        if new is None:
            content.append(block)
            continue
        text = BLOCKS.get(str(kind))
        where = ("content", index)
        if text is None and kind != REDACTED and not (kind == CALL and _is_whole(block, where, new)):
            continue
        shown = rebuild_block(block, where, new)
        if text is None or shown.get(text.key) or not block.get(text.key):
            content.append(shown)
    return {**(message if new is None else head_of(message, terms)), "content": content}


def _is_whole(call: Mapping[str, Any], where: Path, new: Texts) -> bool:
    """Whether a call leaves as it came."""
    said = {(*where, key): said_by(call[key], where) for key in ("name", "input") if key in call}
    return all(new.get(each, text) == text for each, text in said.items())


def says(content: Mapping[str, Any]) -> bool:
    """Whether anything is left of a delta."""
    delta = content.get("delta")
    text = DELTAS.get(str(delta.get("type"))) if isinstance(delta, dict) else None
    return bool(text is not None and isinstance(delta, dict) and delta.get(text.key))


def shifted(content: Mapping[str, Any], raw: bytes | None, shift: int) -> bytes:
    """An event of a block, counted anew."""
    if raw is not None and not shift:
        return raw
    return frame({**content, "index": content["index"] - shift} if shift else content)


def text_delta(index: int, text: str) -> dict[str, Any]:
    """A piece of a block of text."""
    return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}


def text_block(index: int, text: str) -> list[dict[str, Any]]:
    """A whole block of text."""
    return [
        {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}},
        text_delta(index, text),
        {"type": "content_block_stop", "index": index},
    ]
