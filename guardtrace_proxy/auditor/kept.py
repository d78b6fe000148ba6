"""The readings of open sessions, within a budget: what was used longest ago goes first, and is read again at need."""

from __future__ import annotations

import threading
from collections import OrderedDict

from guardtrace_proxy.auditor.reading import Reading


class KeptReadings:
    """Readings by session. ``most_bytes`` bounds their keys and values together, but for the one in use."""

    def __init__(self, most_bytes: int) -> None:
        self.dropped = 0
        """How many went to make room."""
        self._most_bytes = most_bytes
        self._readings: OrderedDict[object, Reading] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, session: object) -> Reading | None:
        """Hand a session its reading; it isn't kept until it is given back."""
        with self._lock:
            return self._readings.pop(session, None)

    def keep(self, session: object, reading: Reading) -> None:
        """Keep a reading, and make room for it."""
        with self._lock:
            self._readings[session] = reading
            held = sum(each.nbytes for each in self._readings.values())
            while held > self._most_bytes:
                _, coldest = self._readings.popitem(last=False)
                held -= coldest.nbytes
                self.dropped += 1

    def forget(self, session: object) -> None:
        """The session is over."""
        self.take(session)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        with self._lock:
            return sum(each.nbytes for each in self._readings.values())
