"""Text in which every character that counts occurs once, so that it is known wherever it turns up again.

A character's range says how an auditor judges it; ASCII between such characters is only there to be in the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import Any

from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict

FIRST_ID = 0x3400
"""Ids of tokens from here on are the code points of characters that occur once."""


class Mark(Enum):
    """The first code point of each kind."""

    SAFE = 0x4E00
    UNSURE = 0x3400
    """P(0.5) + P(1) is below one half, but not far."""
    PAIR = 0x3A00
    """Safe alone, potentially harmful where another one is shown with it."""
    MAYBE = 0xAC00
    HARM = 0xC000
    RARE = 0x20000
    """Safe, and a surrogate pair in JSON."""


_ORDER = sorted(Mark, key=lambda mark: mark.value)
OCCURS_ONCE = range(FIRST_ID, 0x2A000)

PROBABILITIES = {
    Mark.SAFE: (Level.SAFE, 0.96, 0.03, 0.01),
    Mark.UNSURE: (Level.SAFE, 0.55, 0.30, 0.15),
    Mark.MAYBE: (Level.POTENTIALLY_HARMFUL, 0.1, 0.8, 0.1),
    Mark.HARM: (Level.HARMFUL, 0.02, 0.08, 0.9),
}
ANALYSIS = "the analysis quotes what it judged"


class Alphabet:
    """Hands out characters, each once."""

    def __init__(self) -> None:
        self._given: Counter[Mark] = Counter()

    def new(self, mark: Mark) -> str:
        self._given[mark] += 1
        return chr(mark.value + self._given[mark])


def mark_of(char: str) -> Mark:
    return next(mark for mark in reversed(_ORDER) if mark.value <= ord(char))


def known(text: str) -> list[str]:
    """The characters of a text that occur once."""
    return [char for char in text if ord(char) in OCCURS_ONCE]


def judge(thinking: str, answer: str) -> Mark:
    """What an auditor makes of a trace."""
    marks = Counter(map(mark_of, known(thinking + answer)))
    if marks[Mark.HARM]:
        return Mark.HARM
    if marks[Mark.MAYBE] or marks[Mark.PAIR] > 1:
        return Mark.MAYBE
    return Mark.UNSURE if marks[Mark.UNSURE] else Mark.SAFE


def verdict(mark: Mark, certain: bool) -> Verdict:
    """``certain``: an annotation without probabilities."""
    level, *probabilities = PROBABILITIES[mark]
    return Verdict(level, None if certain else Probabilities(*probabilities), ANALYSIS)


def betrayed(value: Any, key: str = "") -> Iterator[str]:
    """Every such character that can be read out of a JSON value: strings, bytes as numbers, token ids."""
    if isinstance(value, str):
        yield from known(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from known(name)
            yield from betrayed(inner, name)
    elif isinstance(value, list):
        if key == "bytes":
            yield from known(bytes(value).decode("utf-8", "ignore"))
        elif key == "token_ids":
            yield from (chr(number) for number in value if number in OCCURS_ONCE)
        else:
            for inner in value:
                yield from betrayed(inner, key)
