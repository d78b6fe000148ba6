"""Real vLLM servers on this machine's CPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.ports import free_port

ON_A_CPU = ("--dtype", "float32", "--block-size", "32", "--enforce-eager")
START_SECONDS = 400
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else both engines sit on the same core
    "OMP_NUM_THREADS": "1",
}


@dataclass
class VllmServer:
    """``url`` ends in ``/v1``."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float

    def wait(self) -> None:
        """Until it answers."""
        while time.monotonic() - self.began < START_SECONDS:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(self.url.removesuffix("/v1") + "/health", trust_env=False).status_code == 200:
                    print(f"{self.log.stem}: up after {time.monotonic() - self.began:.0f} s")
                    return
            except httpx.HTTPError:
                time.sleep(1)
        raise AssertionError(f"vLLM didn't start:\n{self.log.read_text('utf-8', 'replace')[-6000:]}")

    def metric(self, name: str) -> float:
        """A Prometheus metric."""
        text = httpx.get(self.url.removesuffix("/v1") + "/metrics", trust_env=False, timeout=30).text
        return sum(map(float, re.findall(rf"^vllm:{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)))

    @property
    def written(self) -> float:
        """Tokens generated so far. (Requests that were aborted when their client left are counted nowhere.)"""
        return self.metric("generation_tokens_total")

    def is_idle(self) -> bool:
        return self.metric("num_requests_running") == 0 and self.metric("num_requests_waiting") == 0

    def becomes_idle(self) -> bool:
        """Whether nothing runs any more, soon."""
        return eventually(self.is_idle)


def eventually(holds: object, seconds: float = 20) -> bool:
    """Ask again until it holds; the metrics are some steps behind."""
    assert callable(holds)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.2)
    return False


@contextmanager
def vllm_server(
    name: str,
    command: Sequence[str],
    folder: Path,
    *,
    gives_way: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Iterator[VllmServer]:
    """Start one, with ``command`` from the environment's ``bin``; ``{port}`` in it is filled in. Wait for it yourself.

    ``gives_way``: to all other processes, where cores are few. vLLM's own wait for each other without sleeping.
    ``environ``: more of the environment's variables.
    """
    port = free_port()
    log = folder / f"{name}.log"
    program = Path(sys.executable).with_name(command[0])
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, *(word.replace("{port}", str(port)) for word in command[1:])],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **(environ or {})},
            start_new_session=True,
        )
        if gives_way:
            give_way(process.pid)
        try:
            yield VllmServer(f"http://127.0.0.1:{port}/v1", process, log, time.monotonic())
        finally:
            stop(process)


def give_way(pid: int) -> None:
    """The process, what it starts, and (where Linux shares time out by session) its session come last."""
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    session = Path(f"/proc/{pid}/autogroup")
    if session.exists():
        session.write_text("19")


def stop(process: subprocess.Popen[bytes]) -> None:
    """The server with its engine's processes."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
