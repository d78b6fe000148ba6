"""Whether the benchmark of the doors runs and what its clients notice; never how fast anything is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.doors import DOORS
from benchmarks.load import WrongReply
from benchmarks.paced import STAMP
from benchmarks.readers import STAMPS, Reader, read
from benchmarks.script import CREATED, HEAD, events, http_chunk
from tests.benchmarks.test_proxy_cpu import answering

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads processes' CPU clocks")


def test_quick_run() -> None:
    command = [sys.executable, "-m", "benchmarks.doors", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["load"] == {"streams": 4, "tokens": 40, "rate": 100.0, "rounds": 1}
    assert [each["name"] for each in report["results"]] == list(DOORS)
    assert report["results"][0]["added_cpu_us"] == 0
    for each in report["results"]:
        assert each["cpu_us"] > 0
        assert 0 < each["delay_ms_p50"] <= each["delay_ms_p99"]


def test_every_event_carries_a_stamp() -> None:
    assert [STAMPS.findall(event) for event in events(5)[:-1]] == [[b"%d" % CREATED]] * 7
    assert STAMPS.findall(events(5)[-1]) == []


def test_an_event_in_two_reads_has_come_with_the_second() -> None:
    reader = Reader(b"", asyncio.new_event_loop().create_future())
    reader.on_body(b"data: {%s1" % STAMP)
    assert reader.delays == []
    before = time.monotonic_ns()
    reader.on_body(b"000}\n\ndata: {%s2000}\n\ndata: {" % STAMP)
    assert len(reader.delays) == 2
    assert reader.delays[0] - reader.delays[1] == 1000
    assert reader.delays[0] >= before - 1000


def test_a_reply_that_lacks_an_event_fails() -> None:
    body = HEAD + b"".join(map(http_chunk, [*events(5)[:3], *events(5)[4:]])) + b"0\r\n\r\n"
    with answering(body) as port, pytest.raises(WrongReply, match="6 of 7 events"):
        asyncio.run(read(port, b"POST / HTTP/1.1\r\n\r\n", 7))
