"""The audit log: a bounded queue, and one thread that appends to the file.

Recording never waits and never raises. While the file can't be written (a full disk, no permission) lines wait in the
queue and are tried again; only what no longer fits is lost. That is counted, logged once, and said in a ``gap`` line
as soon as one can be written.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque

import structlog

from guardtrace_proxy.records.line_file import LineFile
from guardtrace_proxy.records.lines import Gap, encoded, now

log = structlog.get_logger("guardtrace")

BATCH_BYTES = 262_144
"""How much is written at once."""
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 5.0
"""How long the end waits for the file."""
HANGING_SECONDS = 3.0
"""A write that takes longer counts as failing: another process keeps the lock, a network's file system is gone."""


class AuditLog:
    """Takes lines from any thread. ``queue_bytes`` bounds what waits for the file; a longer line waits alone."""

    def __init__(self, file: LineFile, queue_bytes: int) -> None:
        self.written = 0
        self.lost = 0
        self.waiting_bytes = 0
        self._file = file
        self._queue_bytes = queue_bytes
        self._queue: deque[bytes] = deque()
        self._in_hand = 0
        """Lines taken out of the queue and not written yet."""
        self._gap: Gap | None = None
        """What was lost and isn't said in the file yet."""
        self._has_failed = False
        """The last attempt to write that has ended."""
        self._writing_since: float | None = None
        self._news = threading.Condition()
        self._is_closing = self._has_ended = False
        self._warned_of_growth = False
        self._thread = threading.Thread(target=self._run, name="guardtrace-audit-log", daemon=True)

    @property
    def is_failing(self) -> bool:
        """The last attempt to write failed, or the one that runs hangs."""
        since = self._writing_since
        return self._has_failed or (since is not None and time.monotonic() - since > HANGING_SECONDS)

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def record(self, line: bytes) -> None:
        """Take a line, its newline included, and return at once."""
        with self._news:
            fits = not self.waiting_bytes or self.waiting_bytes + len(line) <= self._queue_bytes
            fits = fits and not self._is_closing
            if fits:
                self._queue.append(line)
                self.waiting_bytes += len(line)
                self._news.notify()
        if not fits:
            self._lose(1)

    def close(self) -> None:
        """Write what waits, for a few seconds at most; what then still waits is lost."""
        with self._news:
            self._is_closing = True
            self._news.notify()
        if not self._thread.is_alive():
            return
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():  # it hangs in a write; it is a daemon
            self._end()

    def _run(self) -> None:
        while batch := self._next():
            if not self._write(batch):
                break
        self._end()
        self._file.close()

    def _end(self) -> None:
        """Count and say what is lost for good. Whoever of the thread and `close` comes first does so."""
        with self._news:
            if self._has_ended:
                return
            self._has_ended = True
            left = self._in_hand + len(self._queue)
            self._queue.clear()
            self.waiting_bytes = self._in_hand = 0
            if left:
                self._lose(left)
            gap, self._gap = self._gap, None
        if gap is not None:
            log.error("audit log ends with a gap", path=str(self._file.path), lost=gap.lost)

    def _next(self) -> list[bytes]:
        """The lines to write next, behind them what was lost before; none at the end."""
        with self._news:
            self._news.wait_for(lambda: self._queue or self._is_closing)
            lines: list[bytes] = []
            size = 0
            while self._queue and size < BATCH_BYTES:
                lines.append(self._queue.popleft())
                size += len(lines[-1])
            self._in_hand = len(lines)
        return lines

    def _write(self, lines: list[bytes]) -> bool:
        """Write them, sooner or later; False where the end came before."""
        data = b"".join(lines)
        while not self._append(data):
            with self._news:
                if self._is_closing:
                    return False
                self._news.wait_for(lambda: self._is_closing, RETRY_SECONDS)
        with self._news:
            if self._has_ended:  # they are counted as lost, and that was said
                return False
            self.waiting_bytes -= len(data)
            self.written += len(lines)
            self._in_hand = 0
        self._say_what_was_lost()
        return True

    def _append(self, data: bytes) -> bool:
        self._writing_since = time.monotonic()
        try:
            self._file.append(data)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.error("audit log can't be written", path=str(self._file.path), error=_name(error))
            return False
        finally:
            self._writing_since = None
        if self._has_failed:
            self._has_failed = False
            log.warning("audit log is written again", path=str(self._file.path))
        if self._file.not_rotated is not None and not self._warned_of_growth:
            log.warning("audit log can't be rotated", path=str(self._file.path), error=_name(self._file.not_rotated))
        self._warned_of_growth = self._file.not_rotated is not None
        return True

    def _lose(self, lines: int) -> None:
        at = now()
        with self._news:
            is_first = self._gap is None
            if self._gap is None:
                self._gap = Gap(lost=0, since=at, until=at)
            self._gap.lost += lines
            self._gap.until = at
            self.lost += lines
        if is_first:
            log.error("audit log loses decisions", path=str(self._file.path))

    def _say_what_was_lost(self) -> None:
        """The gap stays until its line is written, so that an end meanwhile says it."""
        with self._news:
            gap = self._gap
            said = None if gap is None else Gap(lost=gap.lost, since=gap.since, until=gap.until)
        if said is None or not self._append(encoded(said)):
            return
        with self._news:
            if self._gap is not None:
                more = self._gap.lost - said.lost
                self._gap = Gap(lost=more, since=said.until, until=self._gap.until) if more else None
        log.warning("audit log has a gap", path=str(self._file.path), lost=said.lost)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
