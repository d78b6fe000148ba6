"""Near-duplicates: texts of which at least nine tenths of the words are the same.

Compared exactly, by the Jaccard index of their sets of words, rather than by MinHash: a corpus has at most some 100,000
queries, and the index below finds the candidates fast enough without missing any, so that the result depends on no
random permutations. Two sets so alike share a word among the first few of each in any fixed order, so only those are
indexed (prefix filtering: Bayardo, Ma, Srikant, "Scaling up all pairs similarity search", WWW 2007); long words come
first, as they are mostly rare. The order of words doesn't count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from fractions import Fraction
from typing import NamedTuple

NEAR = Fraction(9, 10)
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
"""Chinese and Japanese, which are written without spaces."""


class Near(NamedTuple):
    """A text that is near another one: its id, and how near (1: the same words)."""

    id: str
    similarity: float


def normalised(text: str) -> str:
    """NFKC, without case; each run of what is neither letter, mark nor number is one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return " ".join("".join(kept).split())


def words(text: str) -> frozenset[str]:
    """The set of words of a normalised text; of unspaced scripts the pairs of characters."""
    found: set[str] = set()
    for word in text.split():
        rest = _UNSPACED.sub(" ", word).split()
        found.update(rest)
        for run in _UNSPACED.findall(word):
            found.update(run[start : start + 2] for start in range(max(1, len(run) - 1)))
    return frozenset(found)


def similarity(one: frozenset[str], other: frozenset[str]) -> Fraction:
    """The Jaccard index; 1 for two empty sets."""
    union = len(one | other)
    return Fraction(len(one & other), union) if union else Fraction(1)


class NearIndex:
    """Texts by id, and which of them are near another."""

    def __init__(self) -> None:
        self._sets: dict[str, frozenset[str]] = {}
        self._by_word: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, id: str, text: str) -> None:
        """Take in a normalised text."""
        members = words(text)
        self._sets[id] = members
        for word in _prefix(members):
            self._by_word[word].append(id)

    def near(self, text: str) -> list[Near]:
        """Those at :data:`NEAR` or above, the nearest first; among equals the one that came first."""
        members = words(text)
        candidates = dict.fromkeys(name for word in _prefix(members) for name in self._by_word.get(word, ()))
        found = [(name, similarity(members, self._sets[name])) for name in candidates]
        near = [Near(name, float(value)) for name, value in found if value >= NEAR]
        return sorted(near, key=lambda item: -item.similarity)


def _prefix(members: frozenset[str]) -> list[str]:
    ordered = sorted(members, key=lambda word: (-len(word), word))
    needed = -(-len(ordered) * NEAR.numerator // NEAR.denominator)
    return ordered[: len(ordered) - needed + 1]
