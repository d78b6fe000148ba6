"""Audits a second by the number of sessions, read together and one by one, and how long one audit takes under load.

``python -m benchmarks.audit_throughput [--json] [--quick]``. What is measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.audit_cost import EVERY, QUERY, judge
from benchmarks.machine import AUDITOR_PACKAGES, facts
from benchmarks.shapes import SHAPES, make_auditor, reasoning
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.transformers import TransformersAuditor

METHODS = ("batched", "one by one")


@dataclass(frozen=True)
class Row:
    """``p50`` and ``p99`` are milliseconds from asking to the verdict, while all sessions ask as fast as they can."""

    sessions: int
    method: str
    audits_per_second: float
    p50: float
    p99: float


async def load(auditor: TransformersAuditor, sessions: int, audits: int, method: str) -> Row:
    """Each session judges its trace at every 64 tokens, one audit after the other; the first isn't counted."""
    traces = reasoning(auditor, EVERY * (audits + 1), EVERY)
    times: list[float] = []

    async def follow() -> None:
        session = await auditor.open(QUERY)
        await judge(session, Trace(traces[0]))
        async with ready:
            arrived.append(session)
            ready.notify_all()
            await ready.wait_for(lambda: len(arrived) == sessions)
        for thinking in traces[1:]:
            began = time.perf_counter()
            await judge(session, Trace(thinking))
            times.append(time.perf_counter() - began)
        await session.aclose()

    ready, arrived = asyncio.Condition(), []  # type: ignore[var-annotated]
    tasks = [asyncio.create_task(follow()) for _ in range(sessions)]
    async with ready:
        await ready.wait_for(lambda: len(arrived) == sessions)
    began = time.perf_counter()
    await asyncio.gather(*tasks)
    seconds = time.perf_counter() - began
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return Row(sessions, method, len(times) / seconds, cuts[49] * 1000, cuts[98] * 1000)


def measure(shape: str, sessions: Sequence[int], audits: int) -> Iterator[Row]:
    """A row for each number of sessions and method, in turn."""
    auditors = {method: make_auditor(SHAPES[shape]) for method in METHODS}
    auditors["one by one"].worker.pass_tokens = 1
    for method, auditor in auditors.items():
        asyncio.run(load(auditor, 1, audits, method))
    for count in sessions:
        for method, auditor in auditors.items():
            yield asyncio.run(load(auditor, count, audits, method))


def print_table(rows: Sequence[Row], machine: dict[str, Any], console: Console) -> None:
    """The same for a reader."""
    table = Table(title=f"Label reads, {EVERY} new tokens each", title_justify="left")
    for column in ("sessions", "method", "audits/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        figures = (f"{row.audits_per_second:.1f}", f"{row.p50:.0f}", f"{row.p99:.0f}")
        table.add_row(str(row.sessions), row.method, *figures)
    console.print(table)
    console.print("; ".join(f"{name} {value}" for name, value in machine.items()), soft_wrap=True)


def main() -> None:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_throughput", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="few sessions and audits: whether it runs, not how fast")
    parser.add_argument("--shape", choices=SHAPES, default="7.7M")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--audits", type=int, default=16, help="of each session")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sessions, audits = ([1, 4], 4) if arguments.quick else (arguments.sessions, arguments.audits)
    rows = list(measure(arguments.shape, sessions, audits))
    machine = {**facts(packages=AUDITOR_PACKAGES), "threads": arguments.threads, "shape": arguments.shape}
    if arguments.json:
        print(json.dumps({"benchmark": "audit_throughput", "machine": machine, "rows": [asdict(row) for row in rows]}))
    else:
        print_table(rows, machine, Console())


if __name__ == "__main__":
    main()
