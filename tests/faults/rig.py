"""Proxy, upstream, auditors and clients, each a process of its own that can be killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.cli.serving import ENVIRON, GUARDTRACE, Serving, serving, write_config
from tests.faults.peer import DONE, MARKER, WORDS
from tests.ports import free_port
from tests.telemetry.scraping import Scrape
from tests.waiting import eventually

PEER = Path(__file__).with_name("peer.py")
SETTLE_SECONDS = 20.0
LONGEST_SECONDS = 15.0
"""Within which every reply ends, whatever fails: some times the sum of the rig's timeouts."""
SETTINGS: dict[str, Any] = {
    "server": {"port": 0, "client_timeout_ms": 1000, "drain_ms": 500, "keepalive_ms": 0},
    "logging": {"level": "info"},
}
TIMEOUT_MS = 1000
LISTEN, TIME_WAIT = "0A", "06"
READ_TIMEOUT_MS = 1500


@dataclass
class Process:
    """A peer, on a port that stays its own over restarts."""

    what: str
    port: int = field(default_factory=free_port)
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.running = subprocess.Popen([sys.executable, str(PEER), str(self.port), self.what], env=ENVIRON)
        assert eventually(lambda: _answers(self.port), SETTLE_SECONDS), f"the {self.what} didn't start"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> dict[str, Any]:
        return dict(httpx.get(self.url + path, trust_env=False, timeout=10).json())

    def kill(self) -> None:
        if self.running is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.running.wait(10)
            self.running = None

    def signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def well(self) -> None:
        """As it was at the start, whatever was done to it."""
        if self.running is None:
            self.start()
        self.signal(signal.SIGCONT)
        self.get("/mode/well")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


@dataclass
class Reply:
    """What a client got: all bytes behind the head, and whether HTTP says that they are all."""

    status: int
    data: bytes
    is_whole: bool
    seconds: float

    @property
    def text(self) -> str:
        """What a reader sees of thinking and answer."""
        events = [line[6:] for line in self.data.splitlines() if line.startswith(b"data: {")]
        deltas = [choice["delta"] for one in events for choice in json.loads(one).get("choices", ())]
        return "".join(str(delta.get(key) or "") for delta in deltas for key in ("reasoning", "content"))

    @property
    def is_finished(self) -> bool:
        """It looks like a reply that the model ended."""
        return self.is_whole and self.data.endswith(DONE) and b'"finish_reason": "stop"' in self.data

    @property
    def is_fine(self) -> bool:
        return self.status == 200 and self.is_finished and self.text == "".join(WORDS) * 2

    @property
    def is_cut(self) -> bool:
        return self.is_whole and self.data.endswith(DONE) and b'"content_filter"' in self.data

    @property
    def error(self) -> str | None:
        """The code of the error that it is, or that it ends with; without `[DONE]`."""
        last = self.data.strip().rpartition(b"\n")[2].removeprefix(b"data: ")
        try:
            content = json.loads(last)
        except ValueError:
            return None
        return str(content["error"]["code"]) if "error" in content else None


@dataclass
class Watch:
    """What the proxy's log and metrics say since it began; both may take a moment."""

    rig: Rig
    read: int
    before: Scrape

    def logs(self, event: str, **fields: object) -> bool:
        """A line with this event and these fields comes."""
        return eventually(lambda: any(self._is(line, event, fields) for line in self._lines()), SETTLE_SECONDS)

    def counts(self, name: str, **labels: str) -> bool:
        """The counter `guardtrace_NAME` rises."""
        name, before = f"guardtrace_{name}", self.before
        return eventually(
            lambda: self.rig.metrics().value(name, **labels) > before.value(name, **labels), SETTLE_SECONDS
        )

    def _lines(self) -> list[str]:
        return [line for line in self.rig.log()[self.read :].splitlines() if line.startswith("{")]

    @staticmethod
    def _is(line: str, event: str, fields: dict[str, object]) -> bool:
        try:
            content = json.loads(line)
        except ValueError:  # half of it is written
            return False
        return content["event"] == event and fields.items() <= content.items()


@dataclass
class Rig:
    upstream: Process
    auditor: Process
    second: Process
    proxy: Serving
    metrics_port: int

    def ask(self, model: str, **headers: str) -> Reply:
        """A stream, read to its end."""
        with self.asking(model, **headers) as rest:
            return rest()

    @contextmanager
    def asking(self, model: str, **headers: str) -> Iterator[Callable[[], Reply]]:
        """A stream whose first bytes have come, or whose end has; then something may happen, and the rest is read."""
        body = {"model": model, "messages": [{"role": "user", "content": "Please help."}], "stream": True}
        began = time.monotonic()
        url = self.proxy.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, trust_env=False, timeout=LONGEST_SECONDS) as reply:
            pieces = reply.iter_raw()
            data = [next(pieces, b"")]

            def rest() -> Reply:
                whole = True
                try:
                    data.extend(pieces)
                except httpx.RemoteProtocolError:
                    whole = False
                return Reply(reply.status_code, b"".join(data), whole, time.monotonic() - began)

            yield rest

    @property
    def running(self) -> int:
        return int(httpx.get(self.proxy.url + "/readyz", trust_env=False, timeout=10).json()["running"])

    @property
    def memory(self) -> int:
        """Bytes of the proxy's that are in memory."""
        pages = int(Path(f"/proc/{self.proxy.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def open_files(self) -> int:
        """Of the proxy's; a connection is one."""
        return len(list(Path(f"/proc/{self.proxy.process.pid}/fd").iterdir()))

    @property
    def connections(self) -> int:
        """Of clients to the proxy, as the kernel counts them on the proxy's side; those that are closing as well."""
        local = f":{int(self.proxy.url.rpartition(':')[2]):04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[1].endswith(local) and row[3] not in (LISTEN, TIME_WAIT) for row in rows)

    def settles(self) -> bool:
        """No request runs any more, at the proxy or beyond it."""
        return eventually(lambda: self.running == 0, SETTLE_SECONDS)

    def log(self) -> str:
        return self.proxy.log.read_text()

    def metrics(self) -> Scrape:
        answer = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False, timeout=30)
        return Scrape(answer.raise_for_status().text)

    def shows(self, name: str, value: float, **labels: str) -> bool:
        """The gauge `guardtrace_NAME` comes to it."""
        return eventually(lambda: self.metrics().value(f"guardtrace_{name}", **labels) == value, SETTLE_SECONDS)

    def watch(self) -> Watch:
        return Watch(self, len(self.log()), self.metrics())

    def well(self) -> None:
        for peer in (self.upstream, self.auditor, self.second):
            peer.well()
        # The breaker and whoever was left out are tried again after a pause.
        assert eventually(lambda: self.ask("fine").is_fine, SETTLE_SECONDS)


@contextmanager
def rig(
    folder: Path,
    program: str = GUARDTRACE,
    *,
    timeout_ms: int = TIMEOUT_MS,
    read_timeout_ms: int = READ_TIMEOUT_MS,
    with_fallback: bool = False,
    settings: dict[str, Any] | None = None,
) -> Iterator[Rig]:
    """The second auditor is the fallback, if there is to be one. ``settings`` take the place of whole sections."""
    with ExitStack() as stack:
        peers = [Process("upstream"), Process("auditor"), Process("auditor")]
        for peer in peers:
            stack.callback(peer.kill)
            peer.start()
        upstream, auditor, second = peers
        guard: dict[str, Any] = {
            "base_url": auditor.url + "/v1",
            "model": "guard",
            "depth": "annotate",
            "timeout_ms": timeout_ms,
        }
        if with_fallback:
            guard["fallback"] = {"base_url": second.url + "/v1", "model": "guard"}
        default = {"base_url": upstream.url + "/v1", "read_timeout_ms": read_timeout_ms}
        ports = {"metrics": {"port": free_port()}}
        content = {**SETTINGS, **ports, "upstreams": {"default": default}, "auditor": guard, **(settings or {})}
        config = write_config(folder, "", "", **content)
        proxy = stack.enter_context(serving(config, program=program))
        built = Rig(upstream, auditor, second, proxy, ports["metrics"]["port"])
        assert built.ask("fine").is_fine
        yield built


def leaks(reply: Reply) -> bool:
    """What no verdict allowed has left: the auditor judges 1 wherever it sees the marker."""
    return MARKER.encode() in reply.data
