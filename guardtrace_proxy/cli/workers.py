"""Several processes on one listening socket: a parent that starts them, replaces those that die and passes signals on.

Each worker is a whole server with connections and counts of its own. The parent reads the settings whenever
they change, and waits.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import structlog

from guardtrace_proxy.server.reload import POLL_SECONDS

log = structlog.get_logger("guardtrace")

DID_NOT_START = 2
"""The exit status of a worker whose server didn't start."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Before a worker that died is replaced; doubled where its successor dies soon."""
LIVED_SECONDS = 60.0
"""A worker that lived so long begins with the first pause again."""
LOOK_SECONDS = POLL_SECONDS / 2
"""Between two looks at the files: a change that stands long enough for a worker to use it has been read here too."""
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
PR_SET_PDEATHSIG = 1


class Workers:
    """``serve`` runs a server to its end and returns the exit status; it is called in each worker with its number.

    ``refresh`` reads the settings in the parent, so that a worker never begins with older ones than the others have: as
    files change, and with ``True`` before a worker is started and before SIGHUP is passed on. ``let_go`` closes what
    workers are given, since a connection that nobody accepts is made as long as any process has the port.
    """

    def __init__(
        self,
        count: int,
        serve: Callable[[int], int],
        stop_seconds: float,
        refresh: Callable[[bool], None],
        let_go: Callable[[], None],
    ) -> None:
        self._serve = serve
        self._let_go = let_go
        self._stop_seconds = stop_seconds
        self._refresh = refresh
        self._by_pid: dict[int, int] = {}
        self._began: dict[int, float] = {}
        self._due = dict.fromkeys(range(count), 0.0)
        self._restarted: set[int] = set()
        self._pauses = dict.fromkeys(range(count), FIRST_PAUSE_SECONDS)
        self._signals: list[int] = []
        self._kill_at: float | None = None
        self._status = 0
        self._woken, self._wakes = socket.socketpair()

    def run(self) -> int:
        """Until all have ended after SIGTERM or SIGINT, or because one couldn't start at first; returns the exit
        status."""
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, lambda heard, _: self._signals.append(heard))
        while self._by_pid or self._due:
            self._start_due()
            self._wait()
            self._heed()
            self._reap()
        return self._status

    def _start_due(self) -> None:
        for worker, due in sorted(self._due.items()):
            if due <= time.monotonic() and not self._signals:
                self._refresh(True)
                self._start(worker)

    def _start(self, worker: int) -> None:
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)  # what comes to a worker that isn't ready for it waits
        try:
            pid = os.fork()
            if pid == 0:
                self._work(worker, parent)
        except OSError as error:
            log.error("worker can't be started, tried again", worker=worker, reason=error.strerror)
            self._due[worker] = time.monotonic() + LONGEST_PAUSE_SECONDS
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        del self._due[worker]
        self._by_pid[pid] = worker
        self._began[worker] = time.monotonic()

    def _work(self, worker: int, parent: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self._woken.close()
            self._wakes.close()
            for number in HEARD:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is heard; the change of a file is seen anyway
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            _end_with(parent)
            structlog.contextvars.bind_contextvars(worker=worker)
            status = self._serve(worker)
        except Exception as error:
            log.exception("internal error", error=type(error).__name__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _wait(self) -> None:
        """Until a signal comes, one of a worker's end among them, or something is due."""
        select.select([self._woken], [], [], LOOK_SECONDS)
        with suppress(BlockingIOError):
            self._woken.recv(4096)

    def _heed(self) -> None:
        self._refresh(False)
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                self._refresh(True)
                self._pass_on(number)
            elif number != signal.SIGCHLD:
                self._stop()
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            log.error("workers didn't end in time and are killed", workers=len(self._by_pid))
            self._pass_on(signal.SIGKILL)
            self._kill_at = math.inf

    def _reap(self) -> None:
        while self._by_pid:
            pid, waited = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._by_pid.pop(pid, None)
            if worker is None:  # the first process of a container is given others' children
                continue
            ended = os.waitstatus_to_exitcode(waited)
            if self._kill_at is not None:
                continue
            # Where one has been running before, what hinders the next may pass, and the others go on.
            if ended == DID_NOT_START and worker not in self._restarted:
                self._status = DID_NOT_START
                self._stop()
            else:
                self._replace(worker, pid, ended)

    def _replace(self, worker: int, pid: int, ended: int) -> None:
        now = time.monotonic()
        self._restarted.add(worker)
        if now - self._began[worker] >= LIVED_SECONDS:
            self._pauses[worker] = FIRST_PAUSE_SECONDS
        pause = self._pauses[worker]
        self._due[worker] = now + pause
        self._pauses[worker] = min(2 * pause, LONGEST_PAUSE_SECONDS)
        log.error("worker ended, another one takes its place", worker=worker, pid=pid, status=ended)

    def _stop(self) -> None:
        self._due.clear()
        self._let_go()
        self._pass_on(signal.SIGTERM)
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._stop_seconds

    def _pass_on(self, number: int) -> None:
        for pid in self._by_pid:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)


def _end_with(parent: int) -> None:
    """A worker whose parent is killed ends as well (Linux), rather than hold the port."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(0)
