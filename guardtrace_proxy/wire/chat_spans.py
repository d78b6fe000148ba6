"""Finds every string of a choice: the slow path, for events whose shape isn't the usual one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_schema import (
    MAX_SHORT,
    THINKING_FIELDS,
    Logprobs,
    is_of_type,
    unknown_beside_choices,
    unknown_of_choice,
)
from guardtrace_proxy.wire.counts import at_most
from guardtrace_proxy.wire.events import Found, Phase, Span, SpanKind
from guardtrace_proxy.wire.media import refuse_media
from guardtrace_proxy.wire.strings import PLAIN_KEY, Path, is_encrypted, is_label, strings_below

TOP = ".."
"""First element of the path of a string that stands beside ``choices``."""


def spans_of_choice(choice: dict[str, Any], body_key: str) -> list[Found]:
    """All strings of a choice in the tape's order: reasoning, content, refusal, tool calls, others. Raises TooMany."""
    return _without_copies(at_most(_in_choice(choice, body_key)))


def _in_choice(choice: dict[str, Any], body_key: str) -> Iterator[Found]:
    body = choice.get(body_key)
    if isinstance(body, dict):
        yield from _body(body, (body_key,))
    elif body is not None:
        yield from _others(body, (body_key,))
    for key in unknown_of_choice(choice):
        if key != body_key:
            yield from field_strings(key, choice[key], ())


def logprobs_of(choice: dict[str, Any]) -> Logprobs | None:
    """A choice's logprobs, where they are of the usual shape."""
    logprobs = choice.get("logprobs")
    if logprobs is None or not is_of_type(logprobs, Logprobs):
        return None
    return msgspec.convert(logprobs, Logprobs)


def spans_beside_choices(event: dict[str, Any]) -> list[Found]:
    """Strings at the top of an event in fields that nobody knows. Raises TooMany."""
    keys = unknown_beside_choices(event)
    return at_most(chain.from_iterable(field_strings(key, event[key], (TOP,)) for key in keys))


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
                yield from field_strings(key, inner, here, part.get("type"))


def _arguments(value: Any, path: Path) -> Iterator[Found]:
    for inner_path, text in strings_below(value, path):
        yield Phase.ANSWERING, Span(inner_path, text, SpanKind.ARGUMENTS)


def field_strings(key: str, value: Any, path: Path, kind: Any = None) -> Iterator[Found]:
    """A field that no reader knows, with its name where that is no name; ``kind`` is the type of what has it. Raises
    Media."""
    here = (*path, key)
    if not PLAIN_KEY.fullmatch(key):
        yield Phase.ANSWERING, Span(here, key, SpanKind.OTHER)
    yield from _others(value, here, kind)


def _others(value: Any, path: Path, kind: Any = None) -> Iterator[Found]:
    refuse_media(path, value, kind)
    for inner_path, text in strings_below(value, path):
        yield Phase.ANSWERING, Span(inner_path, text, SpanKind.OTHER)


def is_encrypted_part(part: dict[str, Any], key: str, value: Any) -> bool:
    """Whether this is a provider's encrypted reasoning or its signature (OpenRouter)."""
    if (part.get("type"), key) not in (("reasoning.encrypted", "data"), ("reasoning.text", "signature")):
        return False
    return isinstance(value, str) and is_encrypted(value)


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
