"""Finds every string of a choice: the slow path, for events whose shape isn't the usual one."""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_schema import (
    LABEL,
    MAX_SHORT,
    Logprobs,
    is_of_type,
    unknown_beside_choices,
    unknown_of_choice,
)
from guardtrace_proxy.wire.events import Phase, Span, SpanKind

Path = tuple[str | int, ...]
Found = tuple[Phase, Span]

THINKING_FIELDS = ("reasoning", "reasoning_content", "thinking")
LABELS = frozenset({"type", "id", "index", "format"})
"""Keys inside a part or a tool call whose short strings say what it is."""
PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:$-]{1,64}")
"""What servers call their fields. A key of any other form is text, and so is every key in a call's own arguments."""
ENCRYPTED = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
STANDARD_BASE64 = str.maketrans("-_", "+/")
MAX_DEPTH = 64
BY_MODEL = frozenset({"arguments", "input"})
"""Of a call: all that lies in it is what the model wrote, keys and labels too."""
SAYS = BY_MODEL | {"content", "text", "delta", "refusal", "summary", "partial_json", *THINKING_FIELDS}
"""Fields for a text: what else stands there, as a number, is shown in its place."""
TOKENS = ("logprobs",)
"""Path of a span that stands for tokens without their text."""
TOP = ".."
"""First element of the path of a string that stands beside ``choices``."""


class TooDeep(Exception):
    """Nested deeper than any reply is."""


def spans_of_choice(choice: dict[str, Any], body_key: str) -> list[Found]:
    """All strings of a choice in the tape's order: reasoning, content, refusal, tool calls, others."""
    body = choice.get(body_key)
    found: list[Found] = []
    if isinstance(body, dict):
        found = list(_body(body, (body_key,)))
    elif body is not None:
        found = list(_others(body, (body_key,)))
    for key in unknown_of_choice(choice):
        if key != body_key:
            found += field_strings(key, choice[key], ())
    return _without_copies(found)


def tokens_alone(text: str) -> list[Found]:
    """What was sampled and never said, as text of the answer."""
    return [(Phase.ANSWERING, Span(TOKENS, text, SpanKind.OTHER))] if text.strip() else []


def logprobs_of(choice: dict[str, Any]) -> Logprobs | None:
    """A choice's logprobs, where they are of the usual shape."""
    logprobs = choice.get("logprobs")
    if logprobs is None or not is_of_type(logprobs, Logprobs):
        return None
    return msgspec.convert(logprobs, Logprobs)


def spans_beside_choices(event: dict[str, Any]) -> list[Found]:
    """Strings at the top of an event in fields that nobody knows."""
    found: list[Found] = []
    for key in unknown_beside_choices(event):
        found += field_strings(key, event[key], (TOP,))
    return found


def _body(body: dict[str, Any], path: Path) -> Iterator[Found]:
    known = {"role", "content", "refusal", "tool_calls", "function_call", "reasoning_details", *THINKING_FIELDS}
    role = body.get("role")
    if not isinstance(role, str) or len(role) > MAX_SHORT:
        yield from _others(role, (*path, "role"))
    for key in THINKING_FIELDS:
        yield from _text(body.get(key), Phase.THINKING, (*path, key))
    yield from _parts(body.get("reasoning_details"), Phase.THINKING, (*path, "reasoning_details"))
    if isinstance(body.get("content"), str):
        yield from _text(body["content"], Phase.ANSWERING, (*path, "content"))
    else:
        yield from _parts(body.get("content"), Phase.ANSWERING, (*path, "content"))
    yield from _text(body.get("refusal"), Phase.ANSWERING, (*path, "refusal"))
    yield from _arguments(body.get("function_call"), (*path, "function_call"))
    yield from _arguments(body.get("tool_calls"), (*path, "tool_calls"))
    for key, value in body.items():
        if key not in known:
            yield from field_strings(key, value, path)


def _text(value: Any, phase: Phase, path: Path) -> Iterator[Found]:
    if isinstance(value, str):
        if value:
            yield phase, Span(path, value)
    elif value is not None:
        yield from _others(value, path)


def _parts(value: Any, phase: Phase, path: Path) -> Iterator[Found]:
    """A list of parts with ``text`` or ``summary``."""
    if not isinstance(value, list):
        yield from _others(value, path)
        return
    for index, part in enumerate(value):
        here = (*path, index)
        if not isinstance(part, dict):
            yield from _others(part, here)
            continue
        for key, inner in part.items():
            if key in ("text", "summary"):
                yield from _text(inner, phase, (*here, key))
            elif not (is_label(key, inner) or is_encrypted_part(part, key, inner)):
                yield from field_strings(key, inner, here)


def _arguments(value: Any, path: Path) -> Iterator[Found]:
    for inner_path, text in other_strings(value, path):
        yield Phase.ANSWERING, Span(inner_path, text, SpanKind.ARGUMENTS)


def field_strings(key: str, value: Any, path: Path) -> Iterator[Found]:
    """A field that no reader knows, with its name where that is no name."""
    here = (*path, key)
    if not PLAIN_KEY.fullmatch(key):
        yield Phase.ANSWERING, Span(here, key, SpanKind.OTHER)
    yield from _others(value, here)


def _others(value: Any, path: Path) -> Iterator[Found]:
    for inner_path, text in other_strings(value, path):
        yield Phase.ANSWERING, Span(inner_path, text, SpanKind.OTHER)


def other_strings(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every string below a value, every key that could be text, and what stands in a text's place."""
    if len(path) > MAX_DEPTH:
        raise TooDeep
    if isinstance(value, str):
        if value:
            yield path, value
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from other_strings(inner, (*path, index))
    elif isinstance(value, dict):
        by_model = not BY_MODEL.isdisjoint(path)
        for key, inner in value.items():
            if key and (by_model or not PLAIN_KEY.fullmatch(key)):
                yield (*path, key), key
            if by_model or not is_label(key, inner):
                yield from other_strings(inner, (*path, key))
    elif value is not None and _says(path):
        yield path, json.dumps(value)


def _says(path: Path) -> bool:
    if not BY_MODEL.isdisjoint(path):
        return True
    return next((step for step in reversed(path) if isinstance(step, str)), "") in SAYS


def is_encrypted_part(part: dict[str, Any], key: str, value: Any) -> bool:
    """Whether this is a provider's encrypted reasoning or its signature (OpenRouter)."""
    if (part.get("type"), key) not in (("reasoning.encrypted", "data"), ("reasoning.text", "signature")):
        return False
    return isinstance(value, str) and is_encrypted(value)


def is_encrypted(value: str) -> bool:
    """Whether these are bytes in base64 that are no text."""
    if not ENCRYPTED.fullmatch(value):
        return False
    # Words that were only joined have fewer capitals and digits; of random ones a third and a sixth are.
    if sum(map(str.isupper, value)) * 5 < len(value) or sum(map(str.isdigit, value)) * 25 < len(value):
        return False
    plain = value.rstrip("=").translate(STANDARD_BASE64)
    try:
        b64decode(plain + "=" * (-len(plain) % 4)).decode()
    except UnicodeDecodeError:
        return True
    except binascii.Error:
        return False
    return False


def is_label(key: str, value: Any) -> bool:
    """Whether this only says what a part or a call is."""
    return key in LABELS and isinstance(value, str) and LABEL.fullmatch(value) is not None


def _without_copies(found: list[Found]) -> list[Found]:
    """Reasoning that stands in several fields is one span with copies; what one field says twice is said twice."""
    kept: list[Found] = []
    firsts: dict[str, int] = {}
    for phase, span in found:
        first = firsts.get(span.text)
        if phase is Phase.THINKING and first is not None:
            original = kept[first][1]
            if all(path[:2] != span.path[:2] for path in (original.path, *original.copies)):
                kept[first] = phase, original._replace(copies=(*original.copies, span.path))
                continue
        if phase is Phase.THINKING and first is None:
            firsts[span.text] = len(kept)
        kept.append((phase, span))
    return kept
