"""What a dialect's reader makes of a reply: events, the text they carry, and whose phase it is.

Every choice has a *tape*: all its text in the order of arrival, tags included. An event's spans lie on the tape one
after another; segments partition the same tape by phase. Segments may trail the spans by a few characters, while the
beginning of what could become a tag waits for its rest. Whoever holds events back compares positions on the tape.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar, NamedTuple

import msgspec


class Phase(Enum):
    """Which part of a trace a text belongs to."""

    THINKING = "thinking"
    ANSWERING = "answering"

    __hash__ = object.__hash__
    """Members are compared by identity anyway, and Enum's own hash is a Python call, made for every token."""


class SpanKind(Enum):
    """What becomes of a span that must not leave."""

    TEXT = "text"
    """A placeholder can stand in its place."""
    ARGUMENTS = "arguments"
    """Tool-call arguments: nothing can stand in their place, so the choice is cut."""
    OTHER = "other"
    """A string in a field that no reader knows: it is audited as answer text, and dropped if it may not leave."""


class Segment(NamedTuple):
    """A run of tape with one phase. ``tag`` marks a thinking tag itself, which no auditor is shown.

    ``close`` is the dialect's own closing tag where the text stands inside an inline thinking block, else None.
    """

    phase: Phase
    text: str
    tag: bool = False
    close: str | None = None


class Span(NamedTuple):
    """One string of an event. ``path`` leads to it from the choice; ``copies`` lead to strings that repeat it."""

    path: tuple[str | int, ...]
    text: str
    kind: SpanKind = SpanKind.TEXT
    copies: tuple[tuple[str | int, ...], ...] = ()


Found = tuple[Phase, Span]
"""A span, and whose phase its text is by the field that it stands in; inline tags may say otherwise."""


class ChoicePart(msgspec.Struct, gc=False):
    """What one event says of one choice."""

    index: int
    spans: list[Span]
    segments: list[Segment]
    """Segments that became certain with this event; their text may have begun in an earlier one."""
    finish_reason: str | None = None
    tokens: int = 0
    """Tokens in this part: the length of ``token_ids``, else bytes / 4 rounded up (0 where it carries no text)."""
    role: bool = False
    """Whether it carries ``role``."""
    unsaid: int = 0
    """How many characters of text, at most, are still to come for the logprobs and token ids that it carries: a server
    that keeps text back (a tag, a tool call, a ``stop`` string) sends them ahead of it."""
    waits: bool = False
    """Whether it leaves behind the verdict on all text before it, even where text may leave ahead of its own: a
    signature vouches for what it signs."""


class EventKind(Enum):
    CHUNK = "chunk"
    COMPLETION = "completion"
    """A whole reply that was not streamed."""
    DONE = "done"
    ERROR = "error"
    """The upstream's own error object; ``raw`` is already rebuilt from its type, code and bounded message, or never
    passes, where errors are numbered and the writer writes it when it leaves."""
    MALFORMED = "malformed"
    """Not a JSON object, or one that can't be read: the stream ends with an error."""


class Event(msgspec.Struct, gc=False):
    """One event of the upstream, with the very bytes that are sent on when nothing is altered."""

    kind: EventKind
    raw: bytes
    parts: list[ChoicePart] = []
    usage: dict[str, Any] | None = None
    detail: str | None = None
    """What is wrong with a MALFORMED event, without any of its text."""
    is_last: bool = False
    """Whether it says that nothing follows it, though it carries text; some servers put ``[DONE]`` behind it all the
    same."""


def malformed(raw: bytes, detail: str) -> Event:
    """An event that ends the stream."""
    return Event(EventKind.MALFORMED, raw, [], None, detail)


class MoreOf(NamedTuple):
    """What events of one kind have in common: whose text they carry, where it stands in the choice, and its phase."""

    choice: int
    path: tuple[str | int, ...]
    phase: Phase
    close: str | None


class MoreText(msgspec.Struct, gc=False):
    """An event that brings a choice another piece of text, and nothing else. Most are such, so what an event has beside
    is made only where it is asked for. Of dialects alone in which every event can leave by itself."""

    raw: bytes
    text: str
    tokens: int
    """Ruling 16: UTF-8 bytes / 4 rounded up."""
    of: MoreOf

    kind: ClassVar = EventKind.CHUNK
    usage: ClassVar[dict[str, Any] | None] = None
    detail: ClassVar[str | None] = None
    is_last: ClassVar[bool] = False

    @property
    def parts(self) -> list[ChoicePart]:
        """The one part, made anew each time."""
        index, path, phase, close = self.of
        return [
            ChoicePart(index, [Span(path, self.text)], [Segment(phase, self.text, False, close)], None, self.tokens)
        ]

    def whole(self) -> Event:
        """The same as an event like any other."""
        return Event(EventKind.CHUNK, self.raw, self.parts)
