"""Ports for servers that are told theirs. Those that the system hands out (bind to 0, outgoing connections) may be
another test's a moment later, so these lie below them, apart for each of up to eight workers of one run."""

from __future__ import annotations

import os
import random
import socket

LOWEST, HIGHEST = 12_000, 32_000
"""Linux hands out ports from 32,768 on, other systems from 49,152."""
PROCESSES = 8


def free_port(in_a_row: int = 1) -> int:
    """A loopback port on which nobody listens, the first of so many."""
    width = (HIGHEST - LOWEST) // PROCESSES
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    for _ in range(1000):
        first = LOWEST + worker * width + random.randrange(width - in_a_row)
        if all(_is_free(first + more) for more in range(in_a_row)):
            return first
    raise RuntimeError(f"no {in_a_row} free ports in a row between {LOWEST} and {HIGHEST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
