"""The proxy itself is stopped, killed, without a disk, under a clock that jumps, and hit by thousands of streams at once."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.serving import GUARDTRACE
from tests.faults.peer import DONE, MARKER
from tests.faults.rig import LONGEST_SECONDS, SETTLE_SECONDS, Rig, leaks, rig
from tests.waiting import eventually

JUMPING = f"""
import signal, time
real, ahead = time.time, 0.0
time.time = lambda: real() + ahead
def jump(*_):
    global ahead
    ahead += 86_400.0
def back(*_):
    global ahead
    ahead -= 2 * 86_400.0
signal.signal(signal.SIGUSR1, jump)
signal.signal(signal.SIGUSR2, back)
{GUARDTRACE}
"""
"""The wall clock is a day ahead after SIGUSR1 and two days behind that after SIGUSR2. Only root may set the machine's."""
FULL = f"""
import os
full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 1), os.dup2(full, 2)
{GUARDTRACE}
"""
"""Standard output and error are on a disk that is full."""
GROWTH_BYTES = 16 * 2**20
"""Between the first burst and the last. The first one's memory is kept by Python's allocator for the next."""
BURST = ("fine", "slow-harmful", "harmful", "slow", "reset", "fine", "half-close", "garbage-event")


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults"), JUMPING) as built:
        yield built


def test_stopped_for_longer_than_every_timeout(running):
    """As a machine that was suspended, or a core that was taken away: all timers are due at once."""
    with running.asking("slow-harmful") as rest, running.asking("slow") as other:
        running.proxy.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        running.proxy.process.send_signal(signal.SIGCONT)
        harmful, fine = rest(), other()
    assert not leaks(harmful)
    assert not harmful.is_finished
    assert fine.is_fine or fine.is_cut or fine.error
    assert running.settles()
    assert eventually(lambda: running.ask("fine").is_fine, SETTLE_SECONDS)


def test_killed_in_mid_stream(tmp_path):
    with rig(tmp_path) as running, running.asking("slow-harmful") as rest:
        running.proxy.process.kill()
        reply = rest()
        assert not leaks(reply)
        assert not reply.is_whole
        assert eventually(lambda: running.upstream.get("/state")["given_up"] >= 1, SETTLE_SECONDS)


def test_a_clock_that_jumps_changes_nothing(running):
    running.well()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        with running.asking("slow") as rest, running.asking("slow-harmful") as other:
            running.proxy.process.send_signal(number)
            fine, harmful = rest(), other()
        assert fine.is_fine
        assert harmful.is_cut
        assert not leaks(harmful)
        assert running.ask("hang-in-mid").error == "upstream_error"
    assert running.settles()


def test_a_log_on_a_full_disk_costs_its_lines_and_no_reply(tmp_path):
    with rig(tmp_path, FULL) as running:
        assert all(running.ask("fine").is_fine for _ in range(20))
        assert running.ask("slow-harmful").is_cut
        assert running.ask("hang-in-mid").error == "upstream_error"
        assert running.settles()
        assert running.log() == ""


def test_a_burst(tmp_path):
    burst(tmp_path, 150)


@pytest.mark.slow
def test_a_burst_of_2000_streams(tmp_path):
    burst(tmp_path, 2000, "hang-in-mid", "hang-before-head")


def burst(folder: Path, streams: int, *more: str) -> None:
    """So many streams at once, of all kinds, four times: none leaks, none hangs, and memory stays."""
    needed = 4 * streams
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < needed:
        pytest.skip(f"needs {needed} open files")
    models = (*BURST, *more)
    with rig(folder, timeout_ms=20_000, read_timeout_ms=20_000) as running:
        memory = []
        for _ in range(4):
            kinds = asyncio.run(ask_all(running, [models[number % len(models)] for number in range(streams)]))
            assert kinds.keys() <= {"fine", "cut", "upstream_error", "upstream_timeout", "overloaded"}, kinds
            assert min(kinds["fine"], kinds["cut"], kinds["upstream_error"]) > 0, kinds
            assert running.settles()
            memory.append(running.memory)
        print(f"{streams} streams at a time: {kinds}, memory {[round(size / 2**20) for size in memory]} MiB")
        assert memory[-1] - memory[0] < GROWTH_BYTES, memory
        assert eventually(lambda: running.ask("fine").is_fine, SETTLE_SECONDS)


async def ask_all(running: Rig, models: list[str]) -> Counter[str]:
    port = int(running.proxy.url.rpartition(":")[2])
    return Counter(await asyncio.gather(*(one(port, model, len(models)) for model in models)))


async def one(port: int, model: str, streams: int) -> str:
    """How one stream ended."""
    content = {"model": model, "messages": [{"role": "user", "content": "Please help."}], "stream": True}
    body = json.dumps(content).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    # Many at once take their time on few cores; a stream that hangs takes for ever.
    data = await asyncio.wait_for(reader.read(), LONGEST_SECONDS + streams / 10)
    writer.close()
    assert MARKER.encode() not in data, "a marker leaked"
    if b'"overloaded"' in data:
        return "overloaded"
    if DONE in data:
        return "cut" if b"content_filter" in data else "fine"
    return "upstream_timeout" if b'"upstream_timeout"' in data else "upstream_error"


def test_nothing_of_the_suite_depends_on_the_wall_clock():
    """Timers that follow `time.time` end replies early or never when the clock is set."""
    room = Path(__file__).parents[2] / "guardtrace_proxy"
    for place in ("server", "gate", "auditor", "images"):
        for file in (room / place).glob("*.py"):
            source = file.read_text("utf-8")
            assert "time.time(" not in source, file
            assert "datetime.now" not in source, file
