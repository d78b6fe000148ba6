"""`guardtrace serve` as a process of its own, as an operator runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from tests.ports import free_port

GUARDTRACE = "from guardtrace_proxy.cli.app import main; main()"
START_SECONDS = 120
ENVIRON = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")} | {"NO_COLOR": "1"}


@dataclass
class Serving:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, key: str = "EMPTY") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=30)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """The exit status."""
        self.process.send_signal(how)
        return self.process.wait(30)


def write_config(folder: Path, upstream: str, auditor: str, /, **more: Any) -> Path:
    """A tenant that needs no key, audited every few tokens."""
    settings = {
        "upstreams": {"default": {"base_url": upstream}},
        "auditor": {"base_url": auditor, "model": "guard", "depth": "annotate", "timeout_ms": 3000},
        "tenants": {"all": {"policy": "test"}},
        "anonymous_tenant": "all",
        **more,
    }
    policy = {"version": 1, "extends": "balanced", "boundary": {"first": 4, "max": 4, "growth": 1.0}}
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "test.yaml").write_text(yaml.safe_dump(policy), "utf-8")
    path = folder / "guardtrace.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return path


def run(*arguments: str | Path, program: str = GUARDTRACE, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A command from beginning to end."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRON)


@contextmanager
def serving(config: Path, *arguments: str, program: str = GUARDTRACE, port: int | None = None) -> Iterator[Serving]:
    """Serve until the context ends; what is said on standard error and output is in ``log``, behind what an earlier one
    on the port said."""
    port = port or free_port()
    log = config.parent / f"log-{port}.txt"
    command = [sys.executable, "-c", program, "serve", "--config", str(config), "--port", str(port), *arguments]
    with log.open("ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=ENVIRON)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield Serving(url, process, log)
    finally:
        process.kill()
        process.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(url + "/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
    raise AssertionError(f"the server didn't start (exit status {process.poll()}): {log.read_text()}")
