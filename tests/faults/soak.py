"""Good and failing streams for as long as one likes: nothing leaks, nothing hangs, memory stays.

`python -m tests.faults.soak --minutes 30`. A line every few seconds; exit status 1 at the first marker that leaks or stream that
hangs, or if memory is higher in the last third than in the middle one by more than `SLACK_BYTES`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from tests.faults.burst import one
from tests.faults.rig import LONGEST_SECONDS, Rig, rig

MODELS = (
    "fine",
    "fine",
    "fine",
    "slow",
    "slow-harmful",
    "harmful",
    "reset",
    "half-close",
    "garbage-event",
    "hang-in-mid",
)
AUDITOR_MODES = ("well", "well", "well", "slow", "garbage", "hang")
AT_ONCE = 24
MODE_SECONDS = 10.0
SLACK_BYTES = 24 << 20
"""What a larger burst than all before may take anew, late in a short run: 19 MiB were seen in one step, and no more in the
rest of five minutes. The thirds' middles are a third of the run apart, so this finds 5 KiB lost with each of two minutes'
15,000 streams, or 300 bytes with each of half an hour's 250,000."""


async def stream_for(proxy: Rig, until: float, kinds: Counter[str]) -> None:
    port = int(proxy.proxy.url.rpartition(":")[2])
    while time.monotonic() < until:
        kinds[await one(port, random.choice(MODELS), 10 * AT_ONCE)] += 1


async def watch(proxy: Rig, until: float, kinds: Counter[str], memory: list[int]) -> None:
    """Change how the auditor does, and take the memory's size."""
    while time.monotonic() < until:
        await asyncio.sleep(min(MODE_SECONDS, max(0.1, until - time.monotonic())))
        await asyncio.to_thread(proxy.auditor.get, f"/mode/{random.choice(AUDITOR_MODES)}")
        memory.append(proxy.memory)
        print(f"{memory[-1] / 2**20:.1f} MiB  {dict(kinds)}", flush=True)
    proxy.auditor.get("/mode/well")


async def soak(proxy: Rig, seconds: float) -> list[int]:
    """Memory, as it was every few seconds."""
    until, kinds, memory = time.monotonic() + seconds, Counter[str](), list[int]()
    await asyncio.gather(watch(proxy, until, kinds, memory), *(stream_for(proxy, until, kinds) for _ in range(AT_ONCE)))
    assert kinds["fine"] > 0, kinds
    assert kinds["cut"] > 0, kinds
    return memory


def rose(memory: list[int]) -> bool:
    """The last third against the middle one; the first is what a process takes to warm up."""
    third = len(memory) // 3
    return third > 0 and median(memory[-third:]) > median(memory[third : 2 * third]) + SLACK_BYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder, rig(Path(folder)) as proxy:
        memory = asyncio.run(soak(proxy, minutes * 60))
        time.sleep(LONGEST_SECONDS)
        left = proxy.running
        print(f"{minutes:g} minutes: {left} still run, memory {[round(size / 2**20) for size in memory[::6]]} MiB")
    if left or rose(memory):
        print("FAILED: " + ("streams hang" if left else "memory rose"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
