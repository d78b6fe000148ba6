"""Near-duplicates: texts of which at least nine tenths of the words are the same.

Compared exactly, by the Jaccard index of their sets of words, rather than by MinHash: a corpus has at most some 100,000
queries, and the index below finds the candidates fast enough without missing any, so that the result depends on no
random permutations. Two sets so alike share a word among the first few of each in any fixed order, so only those are
indexed, rare words first (prefix filtering: Bayardo, Ma, Srikant, "Scaling up all pairs similarity search", WWW 2007).
The order of words doesn't count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

NEAR = 0.9
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


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """The Jaccard index; 1 for two empty sets."""
    common = len(one & other)
    union = len(one) + len(other) - common
    return common / union if union else 1.0


class NearIndex:
    """Texts by id, of which one may have several, and which of them are near another.

    ``expected`` are normalised texts in which words are about as frequent as in those that will come. They only make it
    fast: what is found is the same.
    """

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self._frequencies = Counter(word for text in expected for word in words(text))
        self._texts: list[tuple[str, frozenset[str]]] = []
        self._by_word: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, id: str, text: str) -> None:
        """Take in a normalised text."""
        members = words(text)
        for word in self._prefix(members):
            self._by_word[word].append(len(self._texts))
        self._texts.append((id, members))

    def near(self, text: str) -> list[Near]:
        """Ids with a text at :data:`NEAR` or above, the nearest first; among equals the one that came first."""
        members = words(text)
        candidates = sorted({place for word in self._prefix(members) for place in self._by_word.get(word, ())})
        nearest: dict[str, float] = {}
        for name, other in (self._texts[place] for place in candidates):
            how_near = similarity(members, other)
            if how_near >= max(NEAR, nearest.get(name, 0.0)):
                nearest[name] = how_near
        return sorted((Near(*found) for found in nearest.items()), key=lambda near: -near.similarity)

    def _prefix(self, members: frozenset[str]) -> list[str]:
        ordered = sorted(members, key=lambda word: (self._frequencies[word], word))
        return ordered[: len(ordered) // 10 + 1]
