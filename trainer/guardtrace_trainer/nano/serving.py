"""The scripted models as a process of their own, and the settings under which the pipeline finds them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from guardtrace_trainer.children import die_with_parent
from guardtrace_trainer.nano.expansion import truth_of
from guardtrace_trainer.nano.scripted import Parties
from guardtrace_trainer.steps import StepError

HOST = "127.0.0.1"
STOP_SECONDS = 10
BACKLOG = 128


def serve(folder: Path, *, seed: int, descriptor: int) -> None:
    """Serve on a socket that listens already, until the process is stopped."""
    listening = socket.socket(fileno=descriptor)
    web.run_app(Parties(truth_of(folder, seed)).app, sock=listening, print=None, access_log=None)


@contextlib.contextmanager
def parties(folder: Path, *, seed: int, port: int) -> Iterator[None]:
    """The scripted models of a corpus, served by a process that ends with this block.

    Its socket listens from the start, so that whoever asks too early waits.

    Raises:
        StepError: another process has the port.
    """
    with socket.socket() as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((HOST, port))
            listening.listen(BACKLOG)
        except OSError as error:
            raise StepError(
                f"nano.port: the scripted models can't have {HOST}:{port} ({error}); take another"
            ) from error
        arguments = [str(folder), "--seed", str(seed), "--descriptor", str(listening.fileno())]
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "guardtrace_trainer", "nano", "parties", *arguments],
            pass_fds=[listening.fileno()],
            preexec_fn=die_with_parent,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
