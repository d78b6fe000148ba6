"""How many streams of 50 tokens a second one device sustains, each audited every 64 tokens, beside its roofline.

``python -m benchmarks.audit_streams [--json] [--quick]``. What is measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.audit_method import ASKED, EVERY, around, judge
from benchmarks.command import parser, tell
from benchmarks.shapes import SHAPES, make_auditor, parameters, reasoning
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.transformers import TransformersAuditor

QUERY = Query([Turn("user", ASKED)])
TOKENS_PER_SECOND = 50
P99_SECONDS = 0.3
PERIOD = EVERY / TOKENS_PER_SECOND
GPU_KV_BYTES = 48 << 30


@dataclass(frozen=True)
class Row:
    """Streams that ran at once, milliseconds from a chunk being full to its verdict, and audits that came too late."""

    streams: int
    p50: float
    p99: float
    audits_per_second: float
    device_tokens_per_second: float

    @property
    def sustained(self) -> bool:
        return self.p99 <= P99_SECONDS * 1000


@dataclass(frozen=True)
class Roofline:
    """What the device could do if it did nothing but the products of the language model's weights.

    ``tokens_per_audit`` counts the new ones and the tail; ``streams`` follows from the measured matmul rate.
    """

    matmul_tflops: float
    gflop_per_token: float
    tokens_per_audit: int
    streams: float


def roofline(auditor: TransformersAuditor) -> Roofline:
    """2 FLOP a weight and token, over the rate of a square product in the model's own precision."""
    weight = next(auditor.checkpoint.model.parameters())
    size = 8192 if weight.is_cuda else 1024
    one = torch.randn(size, size, device=weight.device).to(weight.dtype)
    best = float("inf")
    for _ in range(5):
        _settle(weight.device)
        began = time.perf_counter()
        for _ in range(4):
            one @ one
        _settle(weight.device)
        best = min(best, (time.perf_counter() - began) / 4)
    rate, per_token = 2 * size**3 / best, 2 * parameters(auditor)
    tokens = EVERY + around(auditor, QUERY)[1]
    return Roofline(rate / 1e12, per_token / 1e9, tokens, rate / per_token / tokens * PERIOD)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


async def run(auditor: TransformersAuditor, streams: int, seconds: float, start_tokens: int) -> Row:
    """Open-loop: chunks fill by the clock, whether their audits keep up or not. A stream whose audit is still under way
    takes the next chunk with the one after, as the proxy does."""
    audits = int(seconds / PERIOD) + 1
    traces = reasoning(auditor, start_tokens + EVERY * (audits + 1), EVERY)[start_tokens // EVERY :]
    times: list[float] = []
    rng = random.Random(streams)

    async def stream(begin: float) -> None:
        session = await auditor.open(QUERY)
        await judge(session, Trace(traces[0]))
        opened.append(session)
        await go.wait()
        full = time.perf_counter() + begin
        number = 1
        while number < len(traces):
            await asyncio.sleep(full - time.perf_counter())
            await judge(session, Trace(traces[number]))
            now = time.perf_counter()
            times.append(now - full)
            behind = int((now - full) / PERIOD)
            number += 1 + behind
            full += PERIOD * (1 + behind)
        await session.aclose()

    go, opened = asyncio.Event(), []  # type: ignore[var-annotated]
    tasks = [asyncio.create_task(stream(rng.random() * PERIOD)) for _ in range(streams)]
    while len(opened) < streams:
        await asyncio.sleep(0.05)
    read, began = auditor.inference.tokens_read, time.perf_counter()
    go.set()
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return Row(
        streams, cuts[49] * 1e3, cuts[98] * 1e3, len(times) / took, (auditor.inference.tokens_read - read) / took
    )


def search(auditor: TransformersAuditor, most: int, seconds: float, start_tokens: int) -> Iterator[Row]:
    """Doubling, then bisection to within an eighth."""
    good, bad, count = 0, None, 1
    while count <= most and bad is None:
        row = asyncio.run(run(auditor, count, seconds, start_tokens))
        yield row
        good, bad, count = (count, None, count * 2) if row.sustained else (good, count, count)
    while bad is not None and bad - good > max(1, good // 8):
        count = (good + bad) // 2
        row = asyncio.run(run(auditor, count, seconds, start_tokens))
        yield row
        good, bad = (count, bad) if row.sustained else (good, count)


def print_table(rows: Sequence[Row], roof: Roofline, console: Console) -> None:
    """The same for a reader."""
    table = Table(title=f"Streams of {TOKENS_PER_SECOND} tokens/s, a label read every {EVERY}", title_justify="left")
    for column in ("streams", "p50 ms", "p99 ms", "audits/s", "tokens read/s", "sustained"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda each: each.streams):
        figures = (f"{row.p50:.0f}", f"{row.p99:.0f}", f"{row.audits_per_second:.0f}")
        rate = f"{row.device_tokens_per_second:.0f}"
        table.add_row(str(row.streams), *figures, rate, "yes" if row.sustained else "no")
    console.print(table)
    console.print(
        f"roofline: {roof.matmul_tflops:.2f} TFLOP/s measured, {roof.gflop_per_token:.3f} GFLOP a token, "
        f"{roof.tokens_per_audit} tokens an audit: {roof.streams:.0f} streams"
    )


def main() -> None:
    made = parser("audit_streams", __doc__)
    made.add_argument("--most", type=int, default=2048, help="streams tried at most")
    made.add_argument("--seconds", type=float, default=20.0, help="of each run")
    made.add_argument("--start-tokens", type=int, default=1024, help="reasoning that each stream has already")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    auditor = make_auditor(SHAPES[arguments.shape], kv_cache_bytes=GPU_KV_BYTES if torch.cuda.is_available() else None)
    most, seconds, start = (
        (2, 3.0, 64) if arguments.quick else (arguments.most, arguments.seconds, arguments.start_tokens)
    )
    roof = roofline(auditor)
    rows = list(search(auditor, most, seconds, start))
    content = {"rows": [asdict(row) for row in rows], "roofline": asdict(roof)}
    tell("audit_streams", arguments, content, lambda console: print_table(rows, roof, console))


if __name__ == "__main__":
    main()
