"""``reasoning_details`` that a client sends back: OpenRouter's reasoning in parts, some of them encrypted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_fields import rest_of
from guardtrace_proxy.wire.chat_spans import is_encrypted_part
from guardtrace_proxy.wire.raw_json import RawFields, as_raw, begins
from guardtrace_proxy.wire.strings import is_encrypted, is_label

MAX_SEARCHED = 67_108_864
"""Characters that a request's parts may be searched for in. A part beyond that is shown as if it said something new."""
BETWEEN = "\ud800"
"""Stands between joined texts, none of which can hold it: half of a character, which requests are refused for."""


class DetailsReader:
    """Reads the parts of all messages of one request. ``keeps_encrypted``: the operator lets them pass unread."""

    def __init__(self, *, keeps_encrypted: bool) -> None:
        self._keeps_encrypted = keeps_encrypted
        self._left = MAX_SEARCHED

    def read(self, details: Sequence[Any], thinking: list[str]) -> bool:
        """Add to the thinking what the parts say beyond it. Whether there are some that don't pass, since nobody can
        audit them: replies bring those to clients, so they are taken out of what comes back, and no reason to refuse
        it."""
        known = _Known(thinking, self._left)
        drops = False
        for detail in details:
            if not isinstance(detail, dict):
                known.extend(rest_of({"": detail}, ()))
            elif not self._keeps_encrypted and _is_encrypted(detail):
                drops = True
            else:
                _read_detail(detail, known)
        self._left = known.left
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


def _read_detail(detail: dict[str, Any], known: _Known) -> None:
    for key, value in detail.items():
        if key in ("text", "summary") and isinstance(value, str):
            if value and not known.holds(value):
                known.extend((value,))
        elif not (is_label(key, value) or is_encrypted_part(detail, key, value)):
            known.extend(rest_of({key: value}, ()))


class _Known:
    """A list of texts that grows, and whether one of them holds another text. ``left``: characters that may still be
    searched."""

    def __init__(self, texts: list[str], left: int) -> None:
        self.left = left
        self._texts = texts
        self._whole: set[str] = set()
        self._joined: list[str] = []
        """All texts, the more of them in one the earlier they came: few, whose joining costs little."""
        self._found_in, self._ends = "", 0
        for text in texts:
            self._keep(text)

    def extend(self, texts: Iterable[str]) -> None:
        """Add to the list."""
        for text in texts:
            self._texts.append(text)
            self._keep(text)

    def holds(self, text: str) -> bool:
        """Whether a text of the list holds this one, as far as may be searched. Parts mostly stand in their order in
        the whole, each behind the one before, which takes no search; nor does one that was added as it is."""
        if self._found_in.startswith(text, self._ends):
            self._ends += len(text)
            return True
        return text in self._whole or any(self._is_in(joined, text) for joined in self._joined)

    def _is_in(self, joined: str, text: str) -> bool:
        if self.left <= 0:
            return False
        found = joined.find(text)
        self.left -= len(joined) if found < 0 else found + len(text)
        if found >= 0:
            self._found_in, self._ends = joined, found + len(text)
        return found >= 0

    def _keep(self, text: str) -> None:
        self._whole.add(text)
        self._joined.append(text)
        while len(self._joined) > 1 and len(self._joined[-2]) < 2 * len(self._joined[-1]):
            last = self._joined.pop()
            self._joined[-1] += BETWEEN + last
