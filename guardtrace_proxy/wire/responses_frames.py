"""Events of the Responses API built anew: the fields that are known, with the texts that the client may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from guardtrace_proxy.wire.responses_places import CALLS, COUNTS, DELTAS, DONES, ECHOED, LABELS, PARTS, is_metadata
from guardtrace_proxy.wire.strings import PLAIN_KEY, Path, strings_below
from guardtrace_proxy.wire.usage import only_counts

TextAt = Callable[[Path, str], str]
"""From the place of a string and the string to what is there for the client."""
NUMBER = (bool, int, float, type(None))
NUMBERS = frozenset({"output_index", "content_index", "summary_index", "sequence_number", "created_at", "completed_at"})


def rebuild(event: Mapping[str, Any], text_at: TextAt) -> dict[str, Any]:
    """An event of any type."""
    text = DELTAS.get(str(event.get("type"))) or DONES.get(str(event.get("type")))
    shown: dict[str, Any] = {}
    for key, value in event.items():
        if text is not None and isinstance(value, str) and key in (text.key, "name"):
            shown[key] = text_at((key,), value)
        elif key == "item" and isinstance(value, dict):
            shown[key] = rebuild_item(value, (key,), text_at)
        elif key == "part" and isinstance(value, dict):
            shown[key] = rebuild_part(value, (key,), text_at)
        elif key == "response" and isinstance(value, dict):
            shown[key] = rebuild_response(value, (key,), text_at)
        elif key == "logprobs":
            shown[key] = []
        elif _is_plain(key, value):
            shown[key] = value
    return shown


def rebuild_response(response: Mapping[str, Any], where: Path, text_at: TextAt) -> dict[str, Any]:
    """A response with its items."""
    shown: dict[str, Any] = {}
    for key, value in response.items():
        if key == "output" and isinstance(value, list):
            shown[key] = [
                rebuild_item(item, (*where, key, index), text_at)
                for index, item in enumerate(value)
                if isinstance(item, dict)
            ]
        elif key in COUNTS and isinstance(value, dict):
            shown[key] = only_counts(value)
        elif _stays(key, value, (*where, key), text_at):
            shown[key] = value
    return shown


def _stays(key: str, value: Any, where: Path, text_at: TextAt) -> bool:
    """Whether a field of a response holds no text, or repeats the request and nothing else."""
    if isinstance(value, NUMBER):
        return PLAIN_KEY.fullmatch(key) is not None
    if key in ECHOED:
        return all(text_at(inner, text) == text for inner, text in strings_below(value, where))
    return is_metadata(key, value)


def rebuild_item(item: Mapping[str, Any], where: Path, text_at: TextAt) -> dict[str, Any]:
    """An item with its parts."""
    call = CALLS.get(str(item.get("type")))
    shown: dict[str, Any] = {}
    for key, value in item.items():
        here = (*where, key)
        if call is not None and key in (call.key, "name") and isinstance(value, str):
            shown[key] = text_at(here, value)
        elif key in ("content", "summary") and isinstance(value, list):
            shown[key] = [
                rebuild_part(part, (*here, index), text_at)
                for index, part in enumerate(value)
                if isinstance(part, dict)
            ]
        elif _is_plain(key, value):
            shown[key] = value
    return shown


def rebuild_part(part: Mapping[str, Any], where: Path, text_at: TextAt) -> dict[str, Any]:
    """A part with its text, and nothing that repeats or quotes it."""
    text = PARTS.get(str(part.get("type")))
    shown: dict[str, Any] = {}
    for key, value in part.items():
        if text is not None and key == text.key and isinstance(value, str):
            shown[key] = text_at((*where, key), value)
        elif key in ("annotations", "logprobs") and value is not None:
            shown[key] = []
        elif _is_plain(key, value):
            shown[key] = value
    return shown


def _is_plain(key: str, value: Any) -> bool:
    if key in NUMBERS:
        return isinstance(value, (int, float))
    return key in LABELS and is_metadata(key, value)
