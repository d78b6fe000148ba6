"""Whether a run kept the stream contract. It reads what a client received, what was sent in, and what the auditor was
shown and said; never the gate."""

from __future__ import annotations

from tests.properties import promises_frames, promises_text
from tests.properties.client import Unreadable
from tests.properties.history import History
from tests.properties.sent import Case
from tests.properties.world import Log

PROMISES = (*promises_text.PROMISES, *promises_frames.PROMISES)


def broken_promises(case: Case, log: Log) -> list[str]:
    """One line for each promise that was broken, with its name first."""
    if log.raised is not None:
        return [f"nothing_raises: {log.raised!r}"]
    try:
        history = History(case, log)
    except Unreadable as found:
        return [f"every_frame_can_be_read: {found}"]
    broken = []
    for promise in PROMISES:
        first = next(promise(history), None)
        if first is not None:
            broken.append(f"{promise.__name__}: {first}")
    return broken
