"""What the tokens of a whole reply say beside its texts: parsers and ``stop`` strings leave some out of those."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from guardtrace_proxy.wire.ahead import MARKER, PARTIAL, bared, decoded, spoken
from guardtrace_proxy.wire.tags import ANSWER_TAGS, KNOWN_PAIRS

_TAGS = (*ANSWER_TAGS, *(tag for pair in KNOWN_PAIRS for tag in pair if tag is not None))
_BREAK = re.compile(f"({'|'.join((*map(re.escape, _TAGS), PARTIAL.pattern))})")
"""A tag in several tokens, or part of a character behind a space: a parser or a decoder has something else for it."""
MAX_SEARCHED = 256
"""Runs that no text says. Behind so many none is looked for any more, since each search reads all texts."""


def never_said(tokens: Sequence[str], texts: Iterable[str]) -> str:
    """What is sampled and in none of the texts, which stand in the order in which they were said. Spaces don't count:
    parsers strip them, and some tokenizers lose them.

    Tokens are compared in runs between control tokens. A run that goes on where the texts end is its rest; one that
    differs otherwise is all of it, so that it can be judged as it stands.
    """
    text = "".join(texts)
    said, position = _bare(text), 0
    sampled = spoken(tokens)
    if _bare("".join(sampled)) in said:
        return ""
    left: list[str] = []
    for run, is_marker in _runs(sampled):
        bare = _bare(run)
        if is_marker:
            position += len(bare) if said.startswith(bare, position) else 0
            continue
        found = said.find(bare, position) if len(left) < MAX_SEARCHED else -1
        if found >= 0:
            position = found + len(bare)
            continue
        count = len(said) - position
        if 0 < count <= len(bare) and bare.startswith(said[position:]):
            run, position = _behind(run, count), len(said)
            run = run.lstrip() if text[-1].isspace() else run
        left.append(run)
    return "\n".join(left)


def _runs(tokens: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The text in runs, and what stands between them."""
    for is_marker, run in groupby(tokens, lambda token: MARKER.fullmatch(token) is not None):
        text = "".join(run)
        if is_marker:
            yield text, True
        else:
            pieces = _BREAK.split(decoded(text))
            yield from ((piece, position % 2 == 1) for position, piece in enumerate(pieces))


def _bare(text: str) -> str:
    return bared(decoded(text))


def _behind(text: str, count: int) -> str:
    """What follows that many characters, spaces not counted."""
    for position, char in enumerate(text):
        count -= not char.isspace()
        if not count:
            return text[position + 1 :]
    return ""
