"""Where on a choice's tape tool-call arguments lie that no verdict covers, whether they have left or not.

Nothing can stand in their place, so a verdict that would redact any of them cuts: in mode ``lag`` too, where they may
have left ahead of it and only the end of their call is still to come.
"""

from __future__ import annotations

from collections import deque


class Arguments:
    """Stretches in the order of the tape, each as long as can be."""

    def __init__(self) -> None:
        self._stretches: deque[tuple[int, int]] = deque()

    def add(self, start: int, end: int, judged: int) -> None:
        """Arguments have come behind all others; those up to ``judged`` don't matter any more."""
        stretches = self._stretches
        while stretches and stretches[0][1] <= judged:
            stretches.popleft()
        if stretches and stretches[-1][1] == start:
            start, _ = stretches.pop()
        stretches.append((start, end))

    def lie_in(self, start: int, end: int) -> bool:
        """Whether any lie in this stretch of the tape."""
        return any(first < end and last > start for first, last in self._stretches)
