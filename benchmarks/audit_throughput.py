"""Audits a second by the number of sessions, read together and one by one, and how long one audit takes under load.

``python -m benchmarks.audit_throughput [--json] [--quick]``. What is measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.audit_method import ASKED, EVERY, judge
from benchmarks.command import parser, tell
from benchmarks.shapes import SHAPES, make_auditor, reasoning
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.transformers import TransformersAuditor

QUERY = Query([Turn("user", ASKED)])
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
    one_by_one = auditors["one by one"].worker
    assert one_by_one  # make_auditor starts it
    one_by_one.pass_tokens = 1
    for method, auditor in auditors.items():
        asyncio.run(load(auditor, 1, audits, method))
    for count in sessions:
        for method, auditor in auditors.items():
            yield asyncio.run(load(auditor, count, audits, method))


def print_table(rows: Sequence[Row], console: Console) -> None:
    """The same for a reader."""
    table = Table(title=f"Label reads, {EVERY} new tokens each", title_justify="left")
    for column in ("sessions", "method", "audits/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        figures = (f"{row.audits_per_second:.1f}", f"{row.p50:.0f}", f"{row.p99:.0f}")
        table.add_row(str(row.sessions), row.method, *figures)
    console.print(table)


def main() -> None:
    made = parser("audit_throughput", __doc__)
    made.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16, 64])
    made.add_argument("--audits", type=int, default=16, help="of each session")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    sessions, audits = ([1, 4], 4) if arguments.quick else (arguments.sessions, arguments.audits)
    rows = list(measure(arguments.shape, sessions, audits))
    content = {"rows": [asdict(row) for row in rows]}
    tell("audit_throughput", arguments, content, lambda console: print_table(rows, console))


if __name__ == "__main__":
    main()
