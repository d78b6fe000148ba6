"""A time in four characters: the text of a paced token says when it was sent."""

from __future__ import annotations

import string

ALPHABET = string.ascii_letters + string.digits + "_."
UNIT_NS = 10_000
"""64⁴ units are 168 seconds, after which stamps come again."""
_DIGITS = {character: place for place, character in enumerate(ALPHABET)}
_TURN = len(ALPHABET) ** 4


def stamp(now_ns: int) -> str:
    """The machine's monotonic time in units of 10 µs, in base 64."""
    units = now_ns // UNIT_NS % _TURN
    text = ""
    for _ in range(4):
        units, digit = divmod(units, len(ALPHABET))
        text = ALPHABET[digit] + text
    return text


def ms_since(stamped: bytes, now_ns: int) -> float:
    """Milliseconds from a stamp until now, if those are less than a turn."""
    units = 0
    for character in stamped.decode():
        units = units * len(ALPHABET) + _DIGITS[character]
    return ((now_ns // UNIT_NS - units) % _TURN) * UNIT_NS / 1e6
