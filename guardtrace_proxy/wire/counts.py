"""How much may stand in one piece of JSON: what is read value by value holds up everybody else while it is read."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

MAX_REPLY_VALUES = 1_048_576
"""In an event or a whole reply. One of 8 MiB that is all logprobs has fewer."""
MAX_STRINGS = 32_768
"""In an event or a whole reply, that could be text: each is a piece of the text that is judged and released."""
WITH_TOO_MANY = f"with more than {MAX_REPLY_VALUES:,} values, or {MAX_STRINGS:,} strings that could be text"
EVENT_WITH_TOO_MANY = f"The upstream sent an event {WITH_TOO_MANY}."
REPLY_WITH_TOO_MANY = f"a reply {WITH_TOO_MANY}"

Item = TypeVar("Item")


class TooMany(Exception):
    """More strings than any reply has."""


def at_most(found: Iterable[Item]) -> list[Item]:
    """All that is found; raises TooMany as soon as there are more than ``MAX_STRINGS``."""
    items = list(islice(found, MAX_STRINGS + 1))
    if len(items) > MAX_STRINGS:
        raise TooMany
    return items


def has_too_many(reply: bytes) -> bool:
    """Whether an event or a whole reply holds more values than any reply has."""
    return holds_more(reply, MAX_REPLY_VALUES)


def holds_more(json: bytes, most: int) -> bool:
    """Whether there are more values in objects and lists (an empty one counts for one), before any is read. Text may
    hold as many of their signs as it likes: where all signs would be too many, those outside of strings count."""
    if _count(json) <= most:
        return False
    parts = json.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', 4 * most + 4)
    # A value has a string and a key at most: where there are more strings than so many values have, there are more.
    return _count(b"".join(parts[::2])) > most or b'"' in parts[-1]


def _count(json: bytes) -> int:
    """How many values there are at most, if these aren't in strings."""
    return json.count(b",") + json.count(b"[") + json.count(b"{")
