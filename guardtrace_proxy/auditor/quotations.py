"""Quotation marks in a piece of a line: whether they come in pairs. Apostrophes are none."""

from __future__ import annotations

import re

_LOW = re.compile("„[^„“”]*[“”]")
"""A whole quotation: the mark that ends it may be one that begins others."""
_PAIRS = (("“", "”"), ("«", "»"), ("「", "」"), ("『", "』"))
_BACKTICKS = re.compile("`+")
_SINGLE = re.compile("['＇‘‚‛’´]")
_ONLY_OPENING, _ONLY_CLOSING = "‘‚‛", "’´"


def leaves_quote_open(piece: str) -> bool:
    """Whether a quotation begins in a piece that doesn't end in it, or ends that began before it.

    An odd mark, as of inches, counts as one that is open.
    """
    if _single_is_odd(piece):
        return True
    piece = _LOW.sub("", piece.replace("‟", "“"))
    if "„" in piece or any(piece.count(opening) != piece.count(closing) for opening, closing in _PAIRS):
        return True
    return bool((piece.count('"') + piece.count("＂")) % 2 or len(_BACKTICKS.findall(piece)) % 2)


def _single_is_odd(piece: str) -> bool:
    is_open = False
    for mark in _SINGLE.finditer(piece):
        before = piece[max(mark.start() - 1, 0) : mark.start()]
        after = piece[mark.end() : mark.end() + 1]
        if before.isalnum() and after.isalnum():  # don't
            continue
        if is_open:
            is_open = mark[0] in _ONLY_OPENING or not before.strip()
        elif mark[0] not in _ONLY_CLOSING and not before.isalnum() and after.strip():
            is_open = True
        elif before.strip() and not before.isalpha():  # neither users' nor ’90s
            return True
    return is_open
