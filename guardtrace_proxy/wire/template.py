"""Events that differ from an earlier one in nothing but their text, told by their bytes alone.

Of a thousand tokens nearly all come in the same frame: id, model, field and punctuation are the same bytes each time.
What stands before and behind a string of JSON doesn't depend on what it says, so where both are the bytes of an event
that was read as a whole, the new event says the same, with another text. Whatever isn't so goes the long way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from guardtrace_proxy.wire.events import ChoicePart, MoreOf, MoreText, SpanKind

DATA, BLANK_LINE = b"data: ", b"\n\n"
PROBE = b"[probe]"
LONGEST_TEXT = 1024
"""In bytes. A longer text isn't a token's, and goes the long way."""


class Template(NamedTuple):
    """What stands before and behind the text, and what the event says of it."""

    head: bytes
    tail: bytes
    of: MoreOf

    def read(self, raw: bytes) -> MoreText | None:
        """The event, if it is of this form and its text means what it says: no escapes, no control characters."""
        head, tail, of = self
        start, end = len(head), len(raw) - len(tail)
        if not 0 < end - start <= LONGEST_TEXT or raw[:start] != head or raw[end:] != tail:
            return None
        try:
            text = raw[start:end].decode()
        except UnicodeDecodeError:
            return None
        if '"' in text or "\\" in text or not text.isprintable():
            return None
        return MoreText(raw, text, (end - start + 3) // 4, of)

    def frames(self, raw: bytes) -> bool:
        """Whether the event is of this form, but for its text perhaps."""
        return raw.startswith(self.head) and raw.endswith(self.tail)


def template_of(raw: bytes, part: ChoicePart) -> Template | None:
    """The template of an event with this one part; None where it says more than a text."""
    if len(part.spans) != 1 or len(part.segments) != 1 or part.finish_reason is not None:
        return None
    span, segment = part.spans[0], part.segments[0]
    plain = not (part.role or part.unsaid or part.waits or span.copies or segment.tag)
    if not plain or span.kind is not SpanKind.TEXT or segment.text != span.text or span.text == PROBE.decode():
        return None
    if not (raw.startswith(DATA + b"{") and raw.endswith(b"}" + BLANK_LINE)):
        return None
    needle = b'"' + span.text.encode("utf-8", "surrogatepass") + b'"'
    at = raw.find(needle)
    while at >= 0:
        head, tail = raw[: at + 1], raw[at + len(needle) - 1 :]
        if _says(head + PROBE + tail, span.path) == PROBE.decode():
            return Template(head, tail, MoreOf(part.index, span.path, segment.phase, segment.close))
        at = raw.find(needle, at + 1)
    return None


def _says(raw: bytes, path: tuple[str | int, ...]) -> Any:
    """What stands at the end of the path from the first choice."""
    try:
        found = msgspec.json.decode(raw[len(DATA) : -len(BLANK_LINE)])["choices"][0]
        for step in path:
            found = found[step]
    except (msgspec.MsgspecError, LookupError, TypeError):
        return None
    return found
