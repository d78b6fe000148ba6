"""Training on several cores of a CPU: one process a core, which share each step's rows (data-parallel, over gloo).

Two processes of one thread are faster than one of two threads, at these sizes by far, and no less deterministic.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from guardtrace_trainer.children import die_with_parent
from guardtrace_trainer.stages.settings import StageError
from guardtrace_trainer.stages.trainers import on_gpu

SAID = "stage says: "
"""Begins a line of the first process that is for the log."""
MESSAGE = "a stage can't run: "
ONE = "guardtrace_trainer.stages.one_process"
"""The module that each of them runs: it imports the stages, and those this module."""


def alone() -> bool:
    """Whether nobody trains beside this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def sharded() -> bool:
    """Whether the processes share one network's weights (FSDP), as ``accelerate launch`` tells each of them."""
    return not alone() and parse_flag_from_env("ACCELERATE_USE_FSDP")


@contextmanager
def main_process_first() -> Iterator[bool]:
    """The others wait until the main process has left the context; alone, nobody waits. Yields whether this is it."""
    if alone():
        yield True
        return
    # Told nothing, it takes itself to be alone on a CPU.
    state = PartialState(cpu=not on_gpu())
    with state.main_process_first():
        yield state.is_main_process


def side_by_side(count: int, work: dict[str, Any], folder: Path, log: Callable[[str], None]) -> None:
    """Run a stage in ``count`` processes; their error output is kept in ``folder``. They end when this process does.

    Args:
        count: how many.
        work: the stage's name (``stage``), its ``settings``, and all other arguments of its function but ``log``.
        folder: for their error output.
        log: is given what the first process says.

    Raises:
        StageError: one of them failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = [folder / f"process-{rank}.log" for rank in range(count)]
    port = _free_port()
    running = [_start(rank, count, port, work, errors[rank]) for rank in range(count)]
    reader = threading.Thread(target=_pass_on, args=(running[0], log), daemon=True)
    reader.start()
    try:
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                break
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.wait()
        reader.join()
    for process, path in zip(running, errors, strict=True):
        if process.returncode not in (0, -signal.SIGKILL):
            raise StageError(_reason(path))
    if any(process.returncode for process in running):
        raise StageError(f"a process of the training was killed; its output is in {folder}")


def _start(rank: int, count: int, port: int, work: dict[str, Any], errors: Path) -> subprocess.Popen[str]:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with errors.open("wb") as file:
        return subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", ONE, json.dumps(work)],
            env={**os.environ, **address, **place, "OMP_NUM_THREADS": str(work["settings"]["threads"])},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=file,
            text=True,
            preexec_fn=die_with_parent,
        )


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _pass_on(process: subprocess.Popen[str], log: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(SAID):
            log(line.removeprefix(SAID).rstrip("\n"))


def _reason(errors: Path) -> str:
    lines = errors.read_text("utf-8", "replace").splitlines()
    told = next((line.partition(MESSAGE)[2] for line in lines if MESSAGE in line), None)
    return told or f"a process of the training failed; its output is in {errors}"
