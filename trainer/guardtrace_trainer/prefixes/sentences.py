"""Thinking in sentences, byte for byte: joined, they are the text again. Pure.

A sentence keeps the white space behind it. It ends at its mark (``.``, ``!``, ``?``, ``…`` and their full-width
likes) with closing quotes and brackets, or at a line's end. Dots in numbers, names, abbreviations, list numbers and
inline code end nothing; in a fenced code block only lines do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_CLOSERS = r"[\"'”’»)\]}）」』】》*_]*"
_WIDE = rf"[。！？｡]+{_CLOSERS}\s*"
"""Chinese and Japanese marks need no space behind them."""
_NARROW = rf"(?P<mark>[.!?…]+){_CLOSERS}\s+"
_CODE = r"`[^`\n]+`"
_PIECE = re.compile(rf"(?P<code>{_CODE})|(?P<line>\s*\n\s*)|(?P<wide>{_WIDE})|(?P<narrow>{_NARROW})")
_FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)`*~*[ \t]*(?:\n\s*|\Z)|\Z)", re.MULTILINE | re.DOTALL
)
_LINE = re.compile(r"[^\n]*\n\s*|[^\n]+")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]*$")
_LIST_NUMBER = re.compile(r"(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})")
_INITIAL = re.compile(r"(?:[A-Z]\.)*[A-Z]")

NEVER_LAST = frozenset(
    "dr mr mrs ms prof rev gen sen rep gov capt lt col sgt st mt vs cf eg ie e.g i.e viz approx resp ca dept est "
    "jan feb apr jun jul aug sep sept oct nov dec".split()
)
"""Words, in small letters and without their last dot, behind which a sentence goes on."""
MAYBE_LAST = frozenset("etc a.m p.m am pm u.s u.k u.n e.u ph.d b.a m.a sec min hr ft lb oz".split())
"""As these, unless a capital follows."""
BEFORE_NUMBERS = frozenset("no nos fig figs eq eqs vol p pp ch sec".split())
"""As these, where a number follows."""


def split(text: str) -> list[str]:
    """The sentences of a text, each with the white space behind it; ``"".join`` gives the text back.

    An empty text has none; white space in front belongs to the first.
    """
    ends = [end for end in _ends(text) if text[:end].strip()]
    starts = [0, *ends]
    pieces = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    if len(pieces) > 1 and not pieces[-1].strip():
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    return [piece for piece in pieces if piece]


def prefix(sentences: Sequence[str], count: int) -> str:
    """The first ``count`` sentences as a thinking that stops there, without the white space behind."""
    return "".join(sentences[:count]).rstrip()


def _ends(text: str) -> Iterator[int]:
    """Where sentences end, in order."""
    at = 0
    for fence in _FENCE.finditer(text):
        yield from _ends_of_prose(text, at, fence.start())
        if fence.start():
            yield fence.start()
        for line in _LINE.finditer(text, fence.start(), fence.end()):
            yield line.end()
        at = fence.end()
    yield from _ends_of_prose(text, at, len(text))


def _ends_of_prose(text: str, start: int, end: int) -> Iterator[int]:
    begin = start
    for found in _PIECE.finditer(text, start, end):
        if found["code"] or (found["narrow"] and _goes_on(text, begin, found)):
            continue
        begin = found.end()
        yield begin


def _goes_on(text: str, begin: int, found: re.Match[str]) -> bool:
    """Whether the sentence from ``begin`` goes on behind a narrow mark and its white space."""
    if "\n" in found[0]:
        return False
    following = text[found.end() : found.end() + 1]
    small = following.islower()
    mark = found["mark"]
    if mark != ".":
        # an ellipsis, or a quoted question, in the middle of a sentence
        return small and (mark[-1] in ".…" or found.end("mark") < len(found[0].rstrip()) + found.start())
    if small:
        return True
    before = text[begin : found.start()]
    last = _LAST_WORD.search(before)
    word = last[0] if last else ""
    if _LIST_NUMBER.fullmatch(word) and not before[: len(before) - len(word)].strip(" \t-*•>#("):
        return True
    if _INITIAL.fullmatch(word) and word != "I":
        return word.casefold() not in MAYBE_LAST or not following.isupper()
    plain = word.casefold()
    if plain in BEFORE_NUMBERS:
        return following.isdigit()
    return plain in NEVER_LAST or (plain in MAYBE_LAST and not following.isupper())
