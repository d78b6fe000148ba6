"""``reasoning_details`` that a client sends back: OpenRouter's reasoning in parts, some of them encrypted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_fields import rest_of
from guardtrace_proxy.wire.chat_spans import is_encrypted_part
from guardtrace_proxy.wire.raw_json import RawFields, as_raw, begins
from guardtrace_proxy.wire.strings import is_encrypted, is_label

TEXTS = ("text", "summary")


def read_details(details: Sequence[Any], thinking: list[str], *, keeps_encrypted: bool) -> bool:
    """Add to the thinking what the parts say beyond it: all their texts as one, since pieces may be of any size and the
    model reads them in a row; so are their summaries. ``keeps_encrypted``: the operator lets those pass unread. Whether
    there are some that don't pass, since nobody can audit them: replies bring those to clients, so they are taken out
    of what comes back, and no reason to refuse it."""
    pieces: dict[str, list[str]] = {key: [] for key in TEXTS}
    others: list[str] = []
    drops = False
    for detail in details:
        if not isinstance(detail, dict):
            others.extend(rest_of({"": detail}, ()))
        elif not keeps_encrypted and _is_encrypted(detail):
            drops = True
        else:
            _read_detail(detail, pieces, others)
    for said in map("".join, pieces.values()):
        bare = _unspaced(said)
        if bare and not any(bare in _unspaced(known) for known in thinking):
            thinking.append(said)
    thinking.extend(others)
    return drops


def without_encrypted(body: bytes) -> bytes:
    """The same request without its encrypted parts. Everything else keeps its bytes and its place."""
    request = msgspec.json.decode(body, type=RawFields)
    messages = msgspec.json.decode(request["messages"], type=list[RawFields])
    for message in messages:
        details = message.get("reasoning_details")
        if details is not None and begins(details, b"["):
            parts = msgspec.json.decode(details, type=list[msgspec.Raw])
            kept = [part for part in parts if not _is_encrypted(msgspec.json.decode(part))]
            message["reasoning_details"] = as_raw(kept)
    request["messages"] = as_raw(messages)
    return msgspec.json.encode(request)


def _is_encrypted(detail: Any) -> bool:
    data = detail.get("data") if isinstance(detail, dict) else None
    return isinstance(data, str) and is_encrypted(data)


def _unspaced(text: str) -> str:
    """The whole may have white space between the pieces."""
    return "".join(text.split())


def _read_detail(detail: dict[str, Any], pieces: dict[str, list[str]], others: list[str]) -> None:
    for key, value in detail.items():
        if key in pieces and isinstance(value, str):
            pieces[key].append(value)
        elif not (is_label(key, value) or is_encrypted_part(detail, key, value)):
            others.extend(rest_of({key: value}, ()))
