"""Text for the audit log: cut to a length, and where that is wanted without URLs, e-mail and IP addresses, long
numbers, and what looks like a key or token.

Patterns find what has a form. Names, places and stories have none, and stay.
"""

from __future__ import annotations

import re

MAX_CHARS = 16_384
"""Of one field."""
MASKS = (
    (re.compile(r"\b(?:https?|ftp)://[^\s<>\"']{1,2000}", re.IGNORECASE), "[url]"),
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"), "[email]"),
    (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"), "[address]"),
    (re.compile(r"(?<![\w.:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){3,7}(?![\w:])", re.IGNORECASE), "[address]"),
    (re.compile(r"(?<![\w+/=_-])(?=[A-Za-z_+/-]{0,64}[0-9])[A-Za-z0-9+/=_-]{20,}"), "[secret]"),
    (re.compile(r"\+?\d(?:[ ().,/-]{0,2}\d){6,}|\d{5,}"), "[number]"),
)
"""In this order. Each is linear in the text: no repetition stands inside another without a bound."""


BEHIND_A_CUT = re.compile(r"\S{0,2000}[\s\d().,/+-]*")
"""What may be the end of an address, a key or a number whose beginning was cut off: no pattern would know it."""


def shown(text: str, *, redact: bool) -> str:
    """The text as evidence: its end, where it is too long, since that is the newest. It can always be written, though
    what an auditor wrote as JSON may hold half a surrogate pair."""
    end = text[-MAX_CHARS:].encode("utf-8", "replace").decode("utf-8")
    if redact and len(end) < len(text):
        end = BEHIND_A_CUT.sub("", end, count=1)
    if redact:
        for pattern, mask in MASKS:
            end = pattern.sub(mask, end)
    return end if len(text) <= MAX_CHARS else "…" + end
