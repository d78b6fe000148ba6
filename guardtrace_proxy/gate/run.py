"""Text that is gathered because nothing can come of it yet, and then taken in one piece.

While a chunk isn't full, or its audit is under way, another token of the same kind changes nothing but how much is
held. So the gate doesn't go through its choices for it: it notes the token here, and takes all of them at once before
anything else happens to it.
"""

from __future__ import annotations

from guardtrace_proxy.gate.choice import Choice
from guardtrace_proxy.wire.events import ChoicePart, MoreOf, MoreText, Segment, Span


class Run:
    """Events of one kind in a row: fewer than ``max_tokens`` and ``max_size`` bytes, none from ``until`` on."""

    __slots__ = ("_max_size", "_max_tokens", "_until", "choice", "events", "of", "since", "size", "tokens")

    def __init__(self, choice: Choice, of: MoreOf, max_tokens: float, max_size: int, until: float) -> None:
        self.choice = choice
        self.of = of
        self.events: list[MoreText] = []
        self.since = 0.0
        self.tokens = 0
        self.size = 0
        self._max_tokens = max_tokens
        self._max_size = max_size
        self._until = until

    def takes(self, event: MoreText, now: float) -> bool:
        """Take the event, unless something could come of it."""
        tokens, size = self.tokens + event.tokens, self.size + len(event.raw)
        if event.of is not self.of or tokens >= self._max_tokens or size >= self._max_size or now >= self._until:
            return False
        if not self.events:
            self.since = now
        self.events.append(event)
        self.tokens, self.size = tokens, size
        return True

    def part(self) -> ChoicePart:
        """All of it as one event would say it."""
        text = "".join([event.text for event in self.events])
        index, path, phase, close = self.of
        return ChoicePart(index, [Span(path, text)], [Segment(phase, text, False, close)], None, self.tokens)


def run_of(choice: Choice, event: MoreText, room: int) -> Run | None:
    """A run that could begin with this event; None where something may come of each. ``room``: bytes that may still be
    held."""
    patience = choice.patience(event.of.phase, event.of.close)
    if patience is None:
        return None
    tokens, until = patience
    return Run(choice, event.of, tokens, room, until)
