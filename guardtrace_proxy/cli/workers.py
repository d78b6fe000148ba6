"""Several processes on one listening socket: a parent that starts them, replaces those that die and passes signals on.

Each worker is a whole server with connections and counts of its own. The parent reads the settings, then only waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import structlog

log = structlog.get_logger("guardtrace")

DID_NOT_START = 2
"""The exit status of a worker whose server didn't start: another one wouldn't either."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Before a worker that died is replaced; doubled where its successor dies soon."""
LIVED_SECONDS = 60.0
"""A worker that lived so long begins with the first pause again."""
PR_SET_PDEATHSIG = 1


class Workers:
    """``serve`` runs a server to its end and returns the exit status; it is called in each worker with its number."""

    def __init__(self, count: int, serve: Callable[[int], int], stop_seconds: float) -> None:
        self._count = count
        self._serve = serve
        self._stop_seconds = stop_seconds
        self._by_pid: dict[int, int] = {}
        self._began: dict[int, float] = {}
        self._pause = FIRST_PAUSE_SECONDS
        self._is_stopping = False

    def run(self) -> int:
        """Until all have ended after SIGTERM or SIGINT, or one couldn't start; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        signal.signal(signal.SIGALRM, self._kill)
        status = 0
        for worker in range(self._count):
            self._start(worker)
        while self._by_pid:
            pid, waited = os.wait()
            worker = self._by_pid.pop(pid)
            ended = os.waitstatus_to_exitcode(waited)
            if ended == DID_NOT_START:
                status = DID_NOT_START
                self._stop()
            elif not self._is_stopping:
                self._replace(worker, pid, ended)
        return status

    def _start(self, worker: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._work(worker, parent)
        self._by_pid[pid] = worker
        self._began[worker] = time.monotonic()
        if self._is_stopping:  # the signal came before there was a process to pass it to
            os.kill(pid, signal.SIGTERM)

    def _work(self, worker: int, parent: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        status = 1
        try:
            _end_with(parent)
            structlog.contextvars.bind_contextvars(worker=worker)
            status = self._serve(worker)
        except Exception as error:
            log.exception("internal error", error=type(error).__name__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _replace(self, worker: int, pid: int, ended: int) -> None:
        lived = time.monotonic() - self._began[worker]
        self._pause = FIRST_PAUSE_SECONDS if lived >= LIVED_SECONDS else self._pause
        log.error("worker ended, another one takes its place", worker=worker, pid=pid, status=ended)
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        if not self._is_stopping:
            self._start(worker)

    def _stop(self, *_: object) -> None:
        self._is_stopping = True
        self._pass_on(signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, self._stop_seconds)

    def _pass_on(self, number: int, _: FrameType | None = None) -> None:
        for pid in self._by_pid:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    def _kill(self, *_: object) -> None:
        log.error("workers didn't end in time and are killed", workers=len(self._by_pid))
        self._pass_on(signal.SIGKILL)


def _end_with(parent: int) -> None:
    """A worker whose parent is killed ends as well (Linux), rather than hold the port."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(0)
