"""Encoding a text that grows: only what follows the last safe border before the first change is encoded again."""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers split a text into words, each of which is encoded by itself."""
BORDER = re.compile(r"(?<=\n)(?=[!-~])|(?<=[A-Za-z])(?= [A-Za-z])")
"""Places where QWEN_WORDS always ends a word, whatever stands before and behind: it looks ahead in runs of white space
only, and no word has a line break before something visible, or a letter before a space. NFC changes nothing across."""
WINDOW = 256
"""Characters in which a border is looked for at first."""
LONG_TEXT = 4096
"""Characters that are encoded in some milliseconds."""


def encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    """A text's tokens. While a long text is encoded, Python's other threads go on: a batch leaves them the lock."""
    if len(text) < LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=False)
    [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)
    return encoding


def has_borders(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer splits as Qwen's do, so that a text may be encoded in two at each :data:`BORDER`."""
    settings = json.loads(tokenizer.to_str())
    splitter: dict[str, Any] = settings["pre_tokenizer"] or {}
    split, *others = splitter.get("pretokenizers") or [{}]
    return (
        (settings["normalizer"] or {"type": "NFC"}) == {"type": "NFC"}
        and split.get("type") == "Split"
        and (split["pattern"], split["behavior"], split["invert"]) == ({"Regex": QWEN_WORDS}, "Isolated", False)
        and [(other["type"], other.get("add_prefix_space")) for other in others] == [("ByteLevel", False)]
        and not others[0]["use_regex"]
    )


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How long two sequences are the same from the beginning, by bisection over slices."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class GrowingText:
    """The last encoding of one text, for the next one of the same text grown or changed."""

    def __init__(self) -> None:
        self._text = ""
        self._ids: list[int] = []
        self._starts = array("L")
        """The character at which each token begins."""

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """The same ids as ``tokenizer.encode`` gives; the tokenizer has borders (see :func:`has_borders`)."""
        if text == self._text:
            return self._ids
        border = _last_border(text, common_length(text, self._text))
        count = bisect_left(self._starts, border)
        rest = encoded(tokenizer, text[border:])
        self._ids = self._ids[:count] + rest.ids
        self._starts = self._starts[:count] + array("L", [border + start for start, _ in rest.offsets])
        self._text = text
        return self._ids


def _last_border(text: str, end: int) -> int:
    """The last border of which both sides stand before ``end``; 0 where there is none."""
    window = WINDOW
    while True:
        start = max(0, end - window)
        found = [match.start() for match in BORDER.finditer(text, start, end)]
        if found or start == 0:
            return found[-1] if found else 0
        window *= 4
