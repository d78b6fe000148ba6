"""Where random choices come from: a seed, lists of numbers (to shrink them), or Hypothesis. Zero is always the simplest.

Numbers come in sections, so that a shorter text doesn't make another policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol, TypeVar

T = TypeVar("T")
Numbers = dict[str, list[int]]


class Source(Protocol):
    def __call__(self, section: str, low: int, high: int) -> int: ...


class Seeded:
    """Numbers from a seed; they are kept, so that what they led to can be shrunk."""

    def __init__(self, seed: int) -> None:
        self.drawn: Numbers = {}
        self._random = Random(seed)

    def __call__(self, section: str, low: int, high: int) -> int:
        # Quicker than randint, and the same thing.
        number = int(self._random.random() * (high - low + 1))
        self.drawn.setdefault(section, []).append(number)
        return low + number


class Replayed:
    """Numbers from lists, and zeros behind their ends."""

    def __init__(self, numbers: Mapping[str, list[int]]) -> None:
        self._numbers = {section: iter(those) for section, those in numbers.items()}

    def __call__(self, section: str, low: int, high: int) -> int:
        return low + min(next(self._numbers.get(section, iter(())), 0), high - low)


class Draw:
    def __init__(self, source: Source, section: str = "") -> None:
        self._source = source
        self._section = section

    def section(self, name: str) -> Draw:
        return Draw(self._source, name)

    def number(self, low: int, high: int) -> int:
        return self._source(self._section, low, high)

    def pick(self, *options: T) -> T:
        return options[self.number(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.number(0, 99) >= 100 - percent


def shrink(numbers: Numbers, fails: Callable[[Numbers], bool], tries: int = 800) -> Numbers:
    """Less that still fails: of each section a beginning, fewer numbers, smaller ones."""
    best = numbers

    def holds(section: str, those: list[int]) -> bool:
        nonlocal best, tries
        tries -= 1
        candidate = {**best, section: those}
        if tries < 0 or those == best[section] or not fails(candidate):
            return False
        best = candidate
        return True

    while True:
        before = best
        for section in numbers:
            width = len(best[section])
            while width:
                at = 0
                while at < len(best[section]):
                    those = best[section]
                    less = [those[:at] + those[at + width :], [*those[:at], *[0] * width, *those[at + width :]]]
                    if not holds(section, less[0]):
                        holds(section, less[1][: len(those)])
                        at += width
                width //= 2
            for at in range(len(best[section])):
                those = best[section]
                for smaller in {0, those[at] // 2, those[at] - 1} if at < len(those) and those[at] else ():
                    if holds(section, [*those[:at], smaller, *those[at + 1 :]]):
                        break
        if best == before or tries < 0:
            return best
