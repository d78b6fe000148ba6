"""Where text may stand in an event of the Responses API, found without the reader's own code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.fuzz.choices_texts import NAME, PADDING, PLAIN_KEY, Within, texts

LABELS = ("type", "id", "item_id", "call_id", "object", "status", "role", "phase")
LABEL = re.compile(r"[!-~]{0,128}")
WORD = re.compile(r"[A-Za-z0-9_.:-]{0,64}")
OF_THE_REQUEST = (
    *("instructions", "metadata", "tools", "tool_choice", "text", "prompt", "reasoning", "truncation", "user", "image"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "service_tier"),
    "moderation_request",
)
REASON = re.compile(r".{0,16}|[a-z_]{0,32}", re.DOTALL)
LIKELY = {"token", "logprob", "bytes"}


def texts_of_event(event: dict[str, Any]) -> Iterator[str]:
    """Of any type."""
    for key, value in event.items():
        if key == "item" and isinstance(value, dict):
            yield from texts_of_item(value)
        elif key == "response" and isinstance(value, dict):
            yield from texts_of_response(value)
        elif key == "part" and isinstance(value, dict):
            yield from texts_of_part(value)
        elif not (key == "obfuscation" and isinstance(value, str) and PADDING.fullmatch(value)):
            yield from texts_of_field(key, value)


def texts_of_response(response: dict[str, Any]) -> Iterator[str]:
    """A response, in an event or whole."""
    for key, value in response.items():
        if key == "output" and isinstance(value, list):
            for item in value:
                yield from texts_of_item(item) if isinstance(item, dict) else texts(item, None)
        elif key in ("model", "previous_response_id"):
            yield from texts(value, NAME)
        elif key == "incomplete_details" and isinstance(value, dict):
            yield from texts({**value, "reason": None}, None)
            yield from texts(value.get("reason"), REASON)
        elif key in OF_THE_REQUEST:
            yield from texts(value, WORD)
        else:
            yield from texts_of_field(key, value)


def texts_of_item(item: dict[str, Any]) -> Iterator[str]:
    """An item; encrypted reasoning never leaves."""
    for key, value in item.items():
        if key in ("content", "summary") and isinstance(value, list):
            for part in value:
                yield from texts_of_part(part) if isinstance(part, dict) else texts(part, None)
        elif key != "encrypted_content" or item.get("type") != "reasoning":
            yield from texts_of_field(key, value)


def texts_of_part(part: dict[str, Any]) -> Iterator[str]:
    """A part of an item."""
    for key, value in part.items():
        yield from texts_of_field(key, value)


def texts_of_field(key: str, value: Any) -> Iterator[str]:
    """Any other field. Logprobs say what was sampled."""
    if key in LABELS and isinstance(value, str) and LABEL.fullmatch(value):
        return
    if key == "logprobs" and are_tokens(value):
        tokens = "".join(each.get("token") or "" for each in value or ())
        if tokens:
            yield Within(tokens)
        return
    if not PLAIN_KEY.fullmatch(key):
        yield key
    yield from texts(value, None)


def are_tokens(value: Any) -> bool:
    """Whether these are logprobs of the usual shape."""
    if not isinstance(value, list):
        return value is None
    return all(
        isinstance(each, dict)
        and each.keys() <= {*LIKELY, "top_logprobs"}
        and is_likely({key: each[key] for key in each if key != "top_logprobs"})
        and all(map(is_likely, each.get("top_logprobs") or ()))
        for each in value
    )


def is_likely(value: Any) -> bool:
    """A token and how likely it was."""
    if not isinstance(value, dict) or not value.keys() <= LIKELY:
        return False
    token = value.get("token")
    return token is None or (isinstance(token, str) and len(token) <= 256)
