"""The choices of one reply together: what is due first, and whether all of them have come to their end."""

from __future__ import annotations

from collections.abc import Iterator

from guardtrace_proxy.gate.choice import Choice
from guardtrace_proxy.gate.outputs import StartAudit

FAILED = frozenset(("error", "failed", "cancelled"))
"""Finishes by which upstreams say that they failed: OpenRouter's of a choice, those of a response."""


class Choices:
    """Those that have turned up; ``expected`` of them were asked for."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._seen: dict[int, Choice] = {}
        self._over: dict[int, str | None] = {}
        """How each finished; None: by a cut."""

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._seen.values())

    def get(self, index: int) -> Choice | None:
        """The choice, if it has been seen."""
        return self._seen.get(index)

    def add(self, choice: Choice) -> Choice:
        """The choice, which hasn't been seen before."""
        self._seen[choice.index] = choice
        return choice

    def note_over(self, index: int, finish_reason: str) -> None:
        """The upstream finished this choice."""
        self._over.setdefault(index, finish_reason)

    def note_cut(self, index: int) -> None:
        """A cut finishes this choice, whatever the upstream says or has said."""
        self._over[index] = None

    @property
    def has_failed(self) -> bool:
        """Whether a choice's own finish is a failure of the upstream's."""
        return any(reason in FAILED for reason in self._over.values())

    @property
    def all_over(self) -> bool:
        """Whether what was asked for is over, and whatever else was seen."""
        return self._over.keys() >= {*range(self._expected), *self._seen}

    @property
    def deadline(self) -> float | None:
        """When the first of them has something to do even if nothing comes in."""
        earliest: float | None = None
        for choice in self:
            deadline = choice.deadline
            if deadline is not None and (earliest is None or deadline < earliest):
                earliest = deadline
        return earliest

    @property
    def are_settled(self) -> bool:
        """Whether everything that came in has been decided."""
        return all(choice.is_settled for choice in self)

    @property
    def wait_for_nothing(self) -> bool:
        """Whether no text waits for a verdict; those that are only recorded may be due."""
        return all(not choice.is_live or choice.received <= choice.leave.settled for choice in self)

    def waiting_bytes(self) -> int:
        """What text takes that has left and waits for its verdict."""
        return sum(choice.tape.waiting_bytes(choice.released) for choice in self)

    def poll(self, now: float, full: bool) -> Iterator[StartAudit]:
        """The audits that are due; ``full``: nothing more is read until a verdict comes."""
        for choice in self:
            audit = choice.poll(now, full)
            if audit is not None:
                yield audit

    def end(self) -> None:
        """The upstream has ended all of them."""
        for choice in self:
            choice.end()

    def stop(self) -> None:
        """The whole stream stops."""
        for choice in self:
            choice.stop()
