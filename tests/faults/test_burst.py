"""More streams at once than the limits allow: each is served, cut, broken off or told to come back, and then nothing is left of them."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
from pathlib import Path

import pytest

from guardtrace_proxy.server.upstream import KEEPALIVE_SECONDS
from tests.cli.serving import GUARDTRACE
from tests.faults.burst import FILES_BESIDE, REFUSED, allow_open_files, ask_all
from tests.faults.rig import SETTINGS, SETTLE_SECONDS, Rig, rig
from tests.waiting import eventually

MODELS = ("fine", "slow-harmful", "harmful", "slow", "reset", "fine", "half-close", "garbage-event")
HANGING = ("hang-in-mid", "hang-before-head")
ENDINGS = {"fine", "cut", "upstream_error", "upstream_timeout", *REFUSED.values()}
KEY = "gt-without-limits"
STREAMS = 20
BURSTS = 5
STARTED_BYTES = 8 * 2**20
"""What the first requests bring and later ones use too."""
GROWTH_BYTES, GROWTH_BYTES_EACH = 2 * 2**20, 4096
"""Between the second burst and the last, and a stream's share, since not as many run at once in each: a twentieth of
what a stream takes, over three bursts. In the first burst not as many may run."""
RUNNING_BYTES = 131_072
"""A stream while it runs, some 100 KiB. Python's allocator gives little of that back (an arena only when all of it is
free), so as much stays as ran at once; that it is free for the next is what the live blocks say."""
LEFT_BLOCKS = 16
"""A stream, between the same bursts: connections that are kept for the next differ; a stream that stays is hundreds."""
COUNTING = f"""
import gc, os, signal, sys
def count(*_):  # in one piece, whatever other threads write
    os.write(1, b"\\ncollected %d live %d.\\n" % (gc.collect(), sys.getallocatedblocks()))
signal.signal(signal.SIGUSR1, count)
{GUARDTRACE}
"""
COUNTED = re.compile(r"collected (\d+) live (\d+)\.")


def test_a_burst(tmp_path):
    burst(tmp_path, 200)


@pytest.mark.slow
def test_a_burst_of_2000_streams(tmp_path):
    burst(tmp_path, 2000, *HANGING)


def burst(folder: Path, streams: int, *more: str) -> None:
    """Half of them are a tenant's that may have few at once, and all together may be half; five times. Before that is
    reached a busy core may turn more away."""
    allow_open_files(2 * streams + FILES_BESIDE)
    models = [(*MODELS, *more)[number % (len(MODELS) + len(more))] for number in range(streams)]
    settings = {
        "server": {**SETTINGS["server"], "max_concurrent": streams // 2},
        "tenants": {
            "all": {"policy": "test", "limits": {"concurrent": max(4, streams // 64)}},
            "other": {"policy": "test", "keys": ["sha256:" + hashlib.sha256(KEY.encode()).hexdigest()]},
        },
    }
    with rig(folder, COUNTING, timeout_ms=20_000, read_timeout_ms=20_000, settings=settings) as running:
        started, files, memory, blocks, ended = running.memory, running.open_files, [], [], []
        for _ in range(BURSTS):
            ended.append(asyncio.run(ask_all(running, models, ("", KEY))))
            assert ended[-1].keys() <= ENDINGS
            assert running.settles()
            blocks.append(collect(running)[1])
            memory.append(running.memory)
        said, sizes = sum(ended[1:], ended[0]), [round(size / 2**20) for size in (started, *memory)]
        print(f"{streams} at once: {said}, MiB {sizes}, live blocks {blocks}")
        assert min(said[kind] for kind in ("fine", "cut", "upstream_error", *REFUSED.values())) > 0, said
        assert blocks[-1] - blocks[1] < LEFT_BLOCKS * streams * (BURSTS - 2), blocks
        assert memory[-1] - memory[1] < GROWTH_BYTES + GROWTH_BYTES_EACH * streams, memory
        assert memory[-1] - started < STARTED_BYTES + RUNNING_BYTES * streams // 2, (started, memory)
        # Connections to the upstream are kept for the next requests for a while.
        assert eventually(
            lambda: running.open_files <= files + FILES_BESIDE // 4, KEEPALIVE_SECONDS + SETTLE_SECONDS
        ), (files, running.open_files)
        assert_nothing_is_left(running, said["overloaded"], said["rate_limit_exceeded"])
        assert running.ask("fine").is_fine
        assert running.ask("slow-harmful").is_cut


@pytest.mark.parametrize("model", sorted({*MODELS} - {"garbage-event"}))
def test_a_stream_leaves_no_cycles(tmp_path, model):
    """Its text goes with it, and not when the collector comes by.

    Where the client leaves, tasks are cancelled, and it does. Behind `garbage-event` a kept connection may turn out to
    be closed when the next request is sent, and aiohttp's error about it is a cycle of its own.
    """
    with rig(tmp_path, COUNTING) as running:
        for _ in range(2):
            asyncio.run(ask_all(running, [model] * STREAMS))
            assert running.settles()
            collected, _ = collect(running)
        assert collected < STREAMS


def collect(running: Rig) -> tuple[int, int]:
    """How many objects nothing referred to but one another, and how many pieces of memory Python has given out and not
    got back without them."""
    seen = len(COUNTED.findall(running.log()))
    running.proxy.process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: len(COUNTED.findall(running.log())) > seen, SETTLE_SECONDS)
    collected, live = COUNTED.findall(running.log())[-1]
    return int(collected), int(live)


def assert_nothing_is_left(running: Rig, shed: int, limited: int) -> None:
    found = running.metrics()
    for name in ("held_bytes", "requests_running", "replies_running", "audits_running"):
        assert found.value(f"guardtrace_{name}") == 0, name
    assert found.value("guardtrace_requests_shed_total") == shed
    assert found.value("guardtrace_requests_limited_total", tenant="all", limit="concurrent") == limited
