"""The audit log: a bounded queue, and one thread that appends to the file.

Recording never waits and never raises. While the file can't be written (a full disk, no permission) lines wait in the
queue and are tried again; only what no longer fits is lost. That is counted, logged once, and said in a ``gap`` line
as soon as one can be written.
"""

from __future__ import annotations

import errno
import threading
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


class AuditLog:
    """Takes lines from any thread. ``queue_bytes`` bounds what waits for the file."""

    def __init__(self, file: LineFile, queue_bytes: int) -> None:
        self.written = 0
        self.lost = 0
        self.waiting_bytes = 0
        self.is_failing = False
        """The last attempt to write failed."""
        self._file = file
        self._queue_bytes = queue_bytes
        self._queue: deque[bytes] = deque()
        self._gap: Gap | None = None
        """What was lost and isn't said in the file yet."""
        self._news = threading.Condition()
        self._is_closing = False
        self._warned_of_growth = False
        self._thread = threading.Thread(target=self._run, name="guardtrace-audit-log", daemon=True)

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def record(self, line: bytes) -> None:
        """Take a line, its newline included, and return at once."""
        with self._news:
            fits = self.waiting_bytes + len(line) <= self._queue_bytes and not self._is_closing
            if fits:
                self._queue.append(line)
                self.waiting_bytes += len(line)
                self._news.notify()
        if not fits:
            self._lose(1)

    def close(self) -> None:
        """Write what waits, for a few seconds at most."""
        with self._news:
            self._is_closing = True
            self._news.notify()
        if not self._thread.is_alive():
            return
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():  # a file system that hangs; the thread is a daemon
            log.error("audit log not finished", path=str(self._file.path), waiting_bytes=self.waiting_bytes)

    def _run(self) -> None:
        while batch := self._next():
            if not self._write(batch):
                break
        with self._news:
            left = len(self._queue)
        if left:
            self._lose(left)
        if self._gap is not None:
            log.error("audit log ends with a gap", path=str(self._file.path), lost=self._gap.lost)
        self._file.close()

    def _next(self) -> list[bytes]:
        """The lines to write next, behind them what was lost before; none at the end."""
        with self._news:
            self._news.wait_for(lambda: self._queue or self._is_closing)
            lines: list[bytes] = []
            size = 0
            while self._queue and size < BATCH_BYTES:
                lines.append(self._queue.popleft())
                size += len(lines[-1])
        return lines

    def _write(self, lines: list[bytes]) -> bool:
        """Write them, sooner or later; False where the end came before."""
        data = b"".join(lines)
        while not self._append(data):
            with self._news:
                if self._is_closing:
                    break
                self._news.wait_for(lambda: self._is_closing, RETRY_SECONDS)
        else:
            with self._news:
                self.waiting_bytes -= len(data)
                self.written += len(lines)
            self._say_what_was_lost()
            return True
        self._lose(len(lines))
        return False

    def _append(self, data: bytes) -> bool:
        try:
            self._file.append(data)
        except OSError as error:
            if not self.is_failing:
                self.is_failing = True
                log.error("audit log can't be written", path=str(self._file.path), error=_name(error))
            return False
        if self.is_failing:
            self.is_failing = False
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
        with self._news:
            gap, self._gap = self._gap, None
        if gap is None:
            return
        if self._append(encoded(gap)):
            log.warning("audit log has a gap", path=str(self._file.path), lost=gap.lost)
            return
        with self._news:
            if self._gap is not None:
                gap.lost, gap.until = gap.lost + self._gap.lost, self._gap.until
            self._gap = gap


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
