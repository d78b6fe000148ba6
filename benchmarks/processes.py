"""Child processes: their start, their CPU time, their end."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_SECONDS = 120.0
STOP_SECONDS = 10.0
LOG_TAIL = 2000


class ProcessFailed(Exception):
    """A child didn't start, or ended before it should."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, from the scheduler's clock: no 10 ms ticks."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise ProcessFailed(f"process {pid} has no CPU clock: {os.strerror(error)}")
    return time.clock_gettime(clock.value)


def pin(pid: int, core: int) -> None:
    """Keep a process with all its threads on one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def pss_bytes(pid: int) -> int:
    """A process's proportional share of the memory that is its own or shared."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ProcessFailed(f"process {pid} has no Pss in smaps_rollup")


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server while the context lasts; yields its process id as soon as it takes connections on ``port``.
    ``environment`` is added to our own."""
    env = {**os.environ, **(environment or {})}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env=env)
        try:
            _wait_for(process, port, log)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ProcessFailed(f"{' '.join(process.args)} didn't start:\n{log.read_text('utf-8', 'replace')[-LOG_TAIL:]}")  # type: ignore[arg-type]


def worker_of(pid: int) -> int:
    """The one child of a master process."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        found = children.read_text().split()
        if len(found) == 1:
            return int(found[0])
        time.sleep(0.05)
    raise ProcessFailed(f"process {pid} doesn't have one worker")
