"""Every string below a value of JSON that could be text, and which ones can't be, by their exact form."""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from guardtrace_proxy.wire.chat_schema import LABEL, THINKING_FIELDS

Path = tuple[str | int, ...]
"""The keys and positions that lead to a string."""
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


class TooDeep(Exception):
    """Nested deeper than any reply is."""


def strings_below(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every string below a value, every key that could be text, and what stands in a text's place."""
    if len(path) > MAX_DEPTH:
        raise TooDeep
    if isinstance(value, str):
        if value:
            yield path, value
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings_below(inner, (*path, index))
    elif isinstance(value, dict):
        by_model = not BY_MODEL.isdisjoint(path)
        for key, inner in value.items():
            if key and (by_model or not PLAIN_KEY.fullmatch(key)):
                yield (*path, key), key
            if by_model or not is_label(key, inner):
                yield from strings_below(inner, (*path, key))
    elif value is not None and _says(path):
        yield path, json.dumps(value)


def _says(path: Path) -> bool:
    if not BY_MODEL.isdisjoint(path):
        return True
    return next((step for step in reversed(path) if isinstance(step, str)), "") in SAYS


def is_label(key: str, value: Any) -> bool:
    """Whether this only says what a part or a call is."""
    return key in LABELS and isinstance(value, str) and LABEL.fullmatch(value) is not None


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
