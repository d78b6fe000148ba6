"""How one reply ends: its last words, and the usage where a cut took the upstream's."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.reply import Writer


class End(str, Enum):
    """How a reply ended, as its client can tell. The values are what metrics, logs and traces carry."""

    WHOLE = "whole"
    """By the upstream's own end, or a cut's."""
    BROKEN_OFF = "broken_off"
    """With an error event (the upstream's own, or one for what it did, for a bound, or since the reply was stopped), or
    with a finish by which the upstream says that it failed."""


class Ending:
    """The end is known as soon as nothing more comes, and said behind the last verdict."""

    def __init__(self, writer: Writer, *, marks_estimates: bool) -> None:
        self.is_known = False
        self.saw_error = False
        """Whether the upstream said an error, in place of whatever was still to come."""
        self.saw_last = False
        """Whether the upstream said its last event, behind which its connection may end in any way."""
        self.usage: dict[str, Any] | None = None
        """What the upstream said last that it used, in its own words."""
        self._writer = writer
        self._marks_estimates = marks_estimates
        self._broke_off = False
        self._is_error = False
        """Whether the last words that were said are an error of ours; a cut's isn't one."""
        self._lost_error = False
        """Whether the upstream's never leaves, since a cut ends the reply before it."""
        self._usage_came = False
        self._owes_usage = False
        """Whether a cut closed the upstream before it could tell the usage, or dropped its chunk."""
        self._words: Callable[[], bytes] | None = None

    @property
    def end(self) -> End:
        """How the reply ended, from when its last words were said."""
        is_error = self._is_error or (self.saw_error and not self._lost_error)
        return End.BROKEN_OFF if is_error else End.WHOLE

    def learn(self, event: Event) -> None:
        """Note what an event says of the end and of the usage."""
        self.saw_last = self.saw_last or event.is_last
        if event.usage is None:
            return
        self.usage = event.usage
        self._usage_came = self._usage_came or (event.kind is EventKind.CHUNK and not event.parts)

    def cut(self) -> None:
        """The last choice was cut: usage is owed where the upstream hasn't told it. A reply that broke off before that
        verdict ends as any that was cut."""
        self._owes_usage = not self._usage_came
        if self._broke_off:
            self._words = self.done

    def lose_error(self, was_held: bool) -> None:
        """The upstream's error was dropped, if it was held."""
        self._lost_error |= was_held

    def set(self, words: Callable[[], bytes]) -> None:
        """Nothing more comes; ``words`` writes the end of the stream, the upstream's or ours."""
        self.is_known = True
        self._words = words

    def break_off(self, why: str) -> None:
        """Nothing more comes, and ``why`` is to be said at the end."""
        self._broke_off = True
        self.set(lambda: self.error(why))

    def error(self, why: str) -> bytes:
        """Last words for a reply that broke off. To be written when they are said, since a cut may take their place."""
        self._is_error = True
        return self._writer.error(why, "upstream_error", "upstream_error")

    def done(self) -> bytes:
        """Last words for a reply that the upstream has ended: behind its own error there are none."""
        return b"" if self.saw_error and not self._lost_error else self._writer.done()

    def say(self, tokens_read: int) -> bytes:
        """The last words, once: whatever ran ahead of the last verdict, they leave behind it."""
        words, self._words = self._words, None
        if words is None:
            return b""
        usage = b""
        if self._owes_usage:
            usage = self._writer.usage(self.usage, tokens_read, expose=self._marks_estimates)
        return usage + words()
