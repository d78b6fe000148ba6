"""Whether the benchmark runs and would notice a wrong reply; never how fast anything is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import create_server

import pytest

from benchmarks.contenders import NotMeasured, Setting, nginx
from benchmarks.load import WrongReply, stream
from benchmarks.processes import cpu_seconds
from benchmarks.script import HEAD, events, http_chunk
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import EventKind
from guardtrace_proxy.wire.tags import ThinkingStyle

ROOT = Path(__file__).parents[2]
NAMES = ["nginx", "forwarder", "guardtrace monitor", "guardtrace hold"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_quick_run() -> None:
    before = _benchmark_processes()
    command = [sys.executable, "-m", "benchmarks.proxy_cpu", "--quick", "--json", "--nginx", "/nowhere/nginx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["benchmark"] == "proxy_cpu"
    assert report["load"] == {"streams": 4, "tokens": 100, "rounds": 1, "mode": "steps"}
    assert report["machine"]["cores"] == os.cpu_count()
    results = {each["name"]: each for each in report["results"]}
    assert list(results) == NAMES
    missing = results.pop("nginx")
    assert "/nowhere/nginx" in missing["not_measured"]
    assert missing["median"] is None
    for each in results.values():
        assert each["not_measured"] is None
        assert 0 < each["min"] <= each["median"] <= each["max"]
        assert len(each["rounds"]) == 1
    assert results["forwarder"]["ratio_to_forwarder"] == 1
    assert results["forwarder"]["tokens_per_audit"] is None
    # 77 tokens of thinking and 23 of answer: 64 + 13 + 23
    assert results["guardtrace hold"]["tokens_per_audit"] == pytest.approx(100 / 3)
    assert _benchmark_processes() <= before


def test_every_event_counts_as_one_token() -> None:
    reader = ChatStream(ThinkingStyle(), include_usage=False, max_event_bytes=4096)
    found = [event for data in events(500) for event in reader.feed(data)]
    assert sum(part.tokens for event in found for part in event.parts) == 500
    assert found[-1].kind is EventKind.DONE


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        (events(5)[:-1], "doesn't end with"),
        ([*events(4)[:-2], *events(5)[-2:]], "were expected"),
    ],
)
def test_a_wrong_reply_fails(pieces: list[bytes], complaint: str) -> None:
    body = HEAD + b"".join(map(http_chunk, pieces)) + b"0\r\n\r\n"
    with answering(body) as port, pytest.raises(WrongReply, match=complaint):
        asyncio.run(stream(port, b"POST / HTTP/1.1\r\n\r\n", b"".join(events(5))))


def test_a_reply_that_breaks_off_fails() -> None:
    body = HEAD + http_chunk(events(5)[0])
    with answering(body) as port, pytest.raises(WrongReply, match="closed before"):
        asyncio.run(stream(port, b"POST / HTTP/1.1\r\n\r\n", b"".join(events(5))))


def test_no_nginx(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="/nowhere/nginx"), nginx(Setting(tmp_path, 1, 2, "/nowhere/nginx")):
        pass


def test_cpu_clock_runs_with_work() -> None:
    before = cpu_seconds(os.getpid())
    sum(range(2_000_000))
    assert cpu_seconds(os.getpid()) > before


@contextmanager
def answering(data: bytes) -> Iterator[int]:
    """Answer one connection with ``data``, then close it."""
    with closing(create_server(("127.0.0.1", 0))) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(data)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


def _benchmark_processes() -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"\0benchmarks." in command:
            found.add(int(process.name))
    return found
