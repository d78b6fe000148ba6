"""What stands in the place of stretches of a tape when they leave: placeholders, and thinking that goes elsewhere.

Offsets count characters of the tape. Runs lie in its order and don't overlap within their kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from guardtrace_proxy.wire.events import Phase, Segment


class Redaction(NamedTuple):
    """A run of redacted text, one placeholder for all of it."""

    start: int
    end: int
    phase: Phase


class Displaced(NamedTuple):
    """A run of thinking that doesn't leave where it came, or a thinking tag, which then doesn't leave at all."""

    start: int
    end: int
    tag: bool


class Overlay:
    """``displaces``: thinking is moved to another field or not shown."""

    def __init__(self, placeholder: str, *, displaces: bool) -> None:
        self.placeholder = placeholder
        self.displaces = displaces
        self._redactions: list[Redaction] = []
        self._displaced: list[Displaced] = []

    def place(self, segment: Segment, start: int, end: int) -> None:
        """Take note of a segment that became certain, where thinking is displaced."""
        if segment.phase is not Phase.THINKING:
            return
        last = self._displaced[-1] if self._displaced else None
        if last is not None and last.end == start and last.tag is segment.tag:
            self._displaced[-1] = last._replace(end=end)
        else:
            self._displaced.append(Displaced(start, end, segment.tag))

    def redact(self, start: int, end: int, phase: Phase) -> bool:
        """Redact a stretch. False where it only makes the last run longer, which has its placeholder already."""
        if self.continues(start, phase):
            self._redactions[-1] = self._redactions[-1]._replace(end=end)
            return False
        self._redactions.append(Redaction(start, end, phase))
        return True

    def continues(self, start: int, phase: Phase) -> bool:
        """Whether a redaction that begins there would lengthen the last run."""
        last = self._redactions[-1] if self._redactions else None
        return last is not None and last.end == start and last.phase is phase

    def touches(self, start: int, end: int) -> bool:
        """Whether this stretch leaves otherwise than it came."""
        if self.redacts(start, end):
            return True
        # No generator, since this is asked for every event that leaves.
        for run in self._displaced:  # noqa: SIM110
            if run.start < end and run.end > start:
                return True
        return False

    def redacts(self, start: int, end: int) -> bool:
        """Whether any of this stretch was redacted."""
        for run in self._redactions:  # noqa: SIM110
            if run.start < end and run.end > start:
                return True
        return False

    def split(self, text: str, start: int) -> tuple[str, str]:
        """Of ``text``, which lies on the tape from ``start``: what leaves in its place, and the thinking in it that
        doesn't. Redacted parts of both are replaced."""
        stays: list[str] = []
        goes: list[str] = []
        done, end = start, start + len(text)
        for run in self._displaced:
            if run.end <= start or run.start >= end:
                continue
            first, last = max(run.start, start), min(run.end, end)
            stays.extend(self._redacted(text[done - start : first - start], done))
            if not run.tag:
                goes.extend(self._redacted(text[first - start : last - start], first))
            done = last
        stays.extend(self._redacted(text[done - start :], done))
        return "".join(stays), "".join(goes)

    def forget(self, released: int) -> None:
        """Drop runs that lie wholly behind what was released; the last ones stay, since they may still grow."""
        self._redactions = [run for run in self._redactions[:-1] if run.end > released] + self._redactions[-1:]
        self._displaced = [run for run in self._displaced[:-1] if run.end > released] + self._displaced[-1:]

    def _redacted(self, text: str, start: int) -> Iterator[str]:
        end = done = start
        end += len(text)
        for run in self._redactions:
            if run.end <= start or run.start >= end:
                continue
            yield text[done - start : max(run.start, start) - start]
            if run.start >= start:
                yield self.placeholder
            done = min(run.end, end)
        yield text[done - start :]
