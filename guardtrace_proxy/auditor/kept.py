"""The readings of open sessions, within a budget: what was used longest ago goes first, and is read again at need."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from guardtrace_proxy.auditor.reading import Reading


class KeptReadings:
    """Readings by session. ``most_bytes`` bounds their keys and values together; those in use are never dropped."""

    def __init__(self, most_bytes: int) -> None:
        self.dropped = 0
        """How many went to make room."""
        self.most_bytes = most_bytes
        self._readings: OrderedDict[object, Reading] = OrderedDict()
        self._in_use: set[object] = set()
        self._lock = threading.Lock()

    def borrow(self, session: object, make: Callable[[], Reading]) -> Reading:
        """A session's reading, made where there is none; it is in use until it is given back.

        Raises:
            RuntimeError: it is in use.
        """
        with self._lock:
            if session in self._in_use:
                raise RuntimeError("two audits of one session at once")
            if session not in self._readings:
                self._readings[session] = make()
            self._readings.move_to_end(session)
            self._in_use.add(session)
            self._make_room()
            return self._readings[session]

    def give_back(self, session: object) -> None:
        """The session's audit is over; its reading is kept where there is room."""
        with self._lock:
            self._in_use.discard(session)
            self._make_room()

    def forget(self, session: object) -> None:
        """The session is over; a reading in use is forgotten by whoever gives it back."""
        with self._lock:
            if session not in self._in_use:
                self._readings.pop(session, None)

    def clear(self) -> None:
        """Drop everything that isn't in use."""
        with self._lock:
            for session in [each for each in self._readings if each not in self._in_use]:
                self._drop(session)

    @property
    def nbytes(self) -> int:
        """Bytes of all readings."""
        with self._lock:
            return self._held()

    @property
    def is_full(self) -> bool:
        """Whether the readings in use fill the budget by themselves."""
        with self._lock:
            return sum(self._readings[session].nbytes for session in self._in_use) >= self.most_bytes

    def _held(self) -> int:
        return sum(reading.nbytes for reading in self._readings.values())

    def _make_room(self) -> None:
        over = self._held() - self.most_bytes
        for session in list(self._readings):
            if over <= 0:
                return
            if session not in self._in_use:
                over -= self._readings[session].nbytes
                self._drop(session)

    def _drop(self, session: object) -> None:
        del self._readings[session]
        self.dropped += 1
