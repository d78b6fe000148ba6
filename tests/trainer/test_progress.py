"""The bars of a step: shown on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

SCRIPT = """
from guardtrace_trainer.progress import Progress
with Progress() as progress:
    progress.expect("judge[red]", 3)
    for _ in range(2):
        progress.spend("judge[red]", 12_000, 0.26)
        progress.advance("judge[red]")
"""


def run(stderr: int) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, stderr=stderr, check=True, timeout=30)


def test_a_terminal_sees_how_far_it_is_and_what_it_costs():
    ours, theirs = pty.openpty()
    run(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    for part in ("judge[red]", "2/3", "24,000 tokens", "cost 0.52"):
        assert part in shown


def test_a_log_sees_nothing():
    reading, writing = os.pipe()
    run(writing)
    os.close(writing)
    assert os.read(reading, 100) == b""
    os.close(reading)
